"""Partitioners: which merchant each customer of a table belongs to.

Every partitioner puts each customer, (merchant_id, user_id), into exactly one merchant, keeps
all of the customer's records together, and depends on its seed alone.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from common.errors import ConfigError, DataError
from common.rng import derive
from common.schema import Tables

#: (tables, customers) -> (C,) int64 merchant of each customer; rows of ``customers`` are
#: (merchant, user) codes of the interactions' categoricals.
Partitioner = Callable[[Tables, pd.DataFrame], np.ndarray]

# Below it a float loses digits: what is left of gamma draws says nothing of their proportions.
_UNDERFLOW = 1e-300


def shop_shares(n_merchants: int, skew: float) -> np.ndarray:
    """Return (n_merchants,) shares of customers: proportional to rank ** -skew, largest first.

    Raises
    ------
    ConfigError
        If there is no merchant, or the skew is negative.
    """
    if n_merchants < 1:
        raise ConfigError(f"a partition needs at least 1 merchant, not {n_merchants}")
    if skew < 0:
        raise ConfigError(f"quantity skew is {skew}; it is 0 (equal shops) or more")
    shares = np.arange(1, n_merchants + 1, dtype=np.float64) ** -skew
    return np.asarray(shares / shares.sum())


def natural() -> Partitioner:
    """Return the partitioner that keeps the table's own merchants."""

    def assign(_: Tables, customers: pd.DataFrame) -> np.ndarray:
        return customers["merchant"].to_numpy(dtype=np.int64)

    return assign


def uniform(n_merchants: int, *, seed: int, skew: float = 0.0) -> Partitioner:
    """Return the partitioner that deals customers at random, ``skew`` making shops unequal."""
    shares = shop_shares(n_merchants, skew)

    def assign(_: Tables, customers: pd.DataFrame) -> np.ndarray:
        order = derive(seed, purpose="partition").permutation(len(customers))
        # Exact shares rather than a draw for each: no shop is empty by chance.
        ends = np.round(np.cumsum(shares) * len(customers))
        merchant = np.empty(len(customers), dtype=np.int64)
        merchant[order] = np.searchsorted(ends, np.arange(len(customers)), side="right")
        return merchant

    return assign


def dirichlet(
    n_merchants: int, *, alpha: float, seed: int, column: str = "category", skew: float = 0.0
) -> Partitioner:
    """Return the partitioner that gives merchants different mixes of product categories.

    Customers are grouped by the category they have most records of; each group is divided among
    merchants in proportions drawn from Dirichlet(alpha * n_merchants * shares) (Hsu et al. 2019,
    arXiv 1909.06335): the smaller ``alpha``, the more each merchant is about few categories.

    Raises
    ------
    ConfigError
        If ``alpha`` is not above 0; else as :func:`shop_shares`.
    """
    shares = shop_shares(n_merchants, skew)
    if alpha <= 0:
        raise ConfigError(f"alpha is {alpha}; it is above 0")

    def assign(tables: Tables, customers: pd.DataFrame) -> np.ndarray:
        generator = derive(seed, purpose="partition")
        group = _favourite(tables, customers, column)
        merchant = np.empty(len(customers), dtype=np.int64)
        for value in np.unique(group):
            members = generator.permutation(np.flatnonzero(group == value))
            weights = generator.gamma(alpha * n_merchants * shares)
            if weights.max() < _UNDERFLOW:
                # All draws of tiny parameters are 0 to a float: in the limit one shop has all.
                weights = generator.multinomial(1, shares).astype(np.float64)
            ends = np.round(np.cumsum(weights / weights.sum()) * len(members))
            ends[-1] = len(members)
            merchant[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
        return merchant

    return assign


def by_column(column: str) -> Partitioner:
    """Return the partitioner with a merchant for each value of a column of customers.

    Raises
    ------
    DataError
        When it is used, if the customers table lacks the column.
    """

    def assign(tables: Tables, customers: pd.DataFrame) -> np.ndarray:
        table = tables.customers
        if table is None or column not in table:
            have = [] if table is None else list(map(str, table.columns))
            raise DataError(
                f"customers: column {column!r} is missing, and merchants were to be formed by it; "
                f"there are {', '.join(have) or 'no customers'}"
            )
        users = tables.interactions["user_id"].cat.categories[customers["user"]]
        if "merchant_id" in table:
            merchants = tables.interactions["merchant_id"].cat.categories[customers["merchant"]]
            place = pd.MultiIndex.from_frame(table[["merchant_id", "user_id"]]).get_indexer(
                pd.MultiIndex.from_arrays([merchants, users])
            )
        else:
            place = pd.Index(table["user_id"]).get_indexer(users)
        values = np.append(table[column].astype(object).fillna("").astype(str), "")[place]
        return np.unique(values, return_inverse=True)[1].astype(np.int64)

    return assign


def _favourite(tables: Tables, customers: pd.DataFrame, column: str) -> np.ndarray:
    """Return (C,) code of the value of a products column that each customer has most of."""
    products = tables.products
    if column not in products:
        raise DataError(
            f"products: column {column!r} is missing, and customers were to be grouped by it; "
            f"there are {', '.join(map(str, products.columns))}"
        )
    values = pd.factorize(products[column].astype(object).fillna(""), sort=True)[0]
    frame = tables.interactions
    rows = pd.Index(products["item_id"]).get_indexer(frame["item_id"].cat.categories)
    records = pd.DataFrame(
        {
            "merchant": frame["merchant_id"].cat.codes.to_numpy(),
            "user": frame["user_id"].cat.codes.to_numpy(),
            "value": values[rows][frame["item_id"].cat.codes.to_numpy()],
        }
    )
    counts = records.value_counts(sort=False).rename("n").reset_index()
    counts = counts.sort_values(
        ["merchant", "user", "n", "value"], ascending=[True, True, False, True]
    )
    first = counts.drop_duplicates(["merchant", "user"])
    merged = customers[["merchant", "user"]].merge(first, on=["merchant", "user"], how="left")
    return merged["value"].to_numpy(dtype=np.int64)


def partition(tables: Tables, partitioner: Partitioner) -> Tables:
    """Return the tables with the merchants that a partitioner forms.

    Merchants are called ``shop-0``, ``shop-1``, ...; those of :func:`natural` keep their names.
    A stock table says what the old merchants stocked: it goes, unless they stay.

    Raises
    ------
    DataError
        If two customers of different merchants share a ``user_id`` and would meet in one.
    """
    frame = tables.interactions
    codes = pd.DataFrame(
        {
            "merchant": frame["merchant_id"].cat.codes.to_numpy(),
            "user": frame["user_id"].cat.codes.to_numpy(),
        }
    )
    key = codes["merchant"].to_numpy(dtype=np.int64) << 32 | codes["user"].to_numpy(np.int64)
    distinct, inverse = np.unique(key, return_inverse=True)
    customers = pd.DataFrame({"merchant": distinct >> 32, "user": distinct & 0xFFFFFFFF})
    merchant = partitioner(tables, customers)
    if np.array_equal(merchant, customers["merchant"]):
        return tables
    clash = customers.assign(new=merchant).duplicated(["new", "user"])
    if clash.any():
        user = frame["user_id"].cat.categories[customers["user"][clash].iloc[0]]
        raise DataError(
            f"interactions: user_id {user!r} is a customer of several merchants who would meet "
            "in one: give customers ids that are unique over all merchants"
        )
    names = pd.Index([f"shop-{number}" for number in range(int(merchant.max()) + 1)], dtype=str)
    new = pd.Categorical.from_codes(merchant[inverse], names)
    return replace(
        tables,
        interactions=frame.assign(merchant_id=new),
        customers=_moved(tables, customers, names[merchant]),
        stock=None,
    )


def _moved(tables: Tables, customers: pd.DataFrame, names: pd.Index) -> pd.DataFrame | None:
    """Return the customers table with the new merchants of those who have any records."""
    table = tables.customers
    if table is None or "merchant_id" not in table:
        return table
    frame = tables.interactions
    moves = pd.DataFrame(
        {
            "merchant_id": frame["merchant_id"].cat.categories[customers["merchant"]],
            "user_id": frame["user_id"].cat.categories[customers["user"]],
            "new": names,
        }
    )
    moved = table.merge(moves, on=["merchant_id", "user_id"], how="inner")
    return moved.assign(merchant_id=moved["new"]).drop(columns="new")
