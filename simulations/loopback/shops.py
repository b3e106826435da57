"""Three local markets of Complete Journey as three shops: a CSV folder, a Parquet one, a database.

The database is laid out as a shop's own might be, with other names and a time with a zone, so the
shop's settings map it onto the contract's columns.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psycopg

from common.datasets import load_complete_journey
from simulations.loopback.postgres import Postgres

#: Of the larger ones: a federation of three needs the customers.
MARKETS = ("market-05", "market-17", "market-03")
#: What describes a product; the title only tells people what it is.
CONTENT = ("type", "type*brand", "type*manufacturer", "category*manufacturer")
PASSWORD_VARIABLE = "SHOP_DB_PASSWORD"  # noqa: S105 - a name, not a secret
#: What somebody has bought of whom nothing else is known: the makings of a taco.
BASKET_TYPES = ("MEXICAN TACO TOSTADO SHELLS", "SHREDDED CHEESE", "MEXICAN SAUCESSALSAPICANTEE")

DATABASE = """
[database]
url = "{url}"
password_env = "SHOP_DB_PASSWORD"

[[database.interactions]]
table = "sales"
columns = {{ user_id = "customer_no", item_id = "article", timestamp = "sold_at" }}
constants = {{ behavior = "purchase", merchant_id = "{merchant}" }}
"""
_LEAST_PRODUCTS = 60


@dataclass(frozen=True)
class Markets:
    """The products and the three shops' sales.

    Attributes
    ----------
    products
        With a ``title``.
    sales
        merchant_id -> its interactions, ids as text.
    """

    products: pd.DataFrame
    sales: dict[str, pd.DataFrame]

    def customer_of(self, merchant_id: str) -> str:
        """Return the first customer who has bought enough to say something about."""
        bought = self.sales[merchant_id].groupby("user_id")["item_id"].nunique()
        return str(bought.index[bought >= _LEAST_PRODUCTS].min())

    def basket(self) -> list[str]:
        """Return the product of each of :data:`BASKET_TYPES` that sold best in all shops."""
        sold = pd.concat(list(self.sales.values()))["item_id"].value_counts()
        types = self.products.set_index("item_id")["type"]
        return [
            str(sold[sold.index.isin(types.index[types == kind])].idxmax()) for kind in BASKET_TYPES
        ]


def load_markets() -> Markets:
    """Return the three markets of the packaged data set."""
    tables = load_complete_journey().tables
    products = tables.products.copy()
    products["title"] = _titles(products)
    frame = tables.interactions
    sales = {}
    for merchant in MARKETS:
        own = frame[frame["merchant_id"] == merchant]
        text = {name: own[name].astype(str) for name in ("merchant_id", "user_id", "item_id")}
        sales[merchant] = own.assign(**text, behavior=own["behavior"].astype(str))
    return Markets(products, sales)


def write_csv(sales: pd.DataFrame, folder: Path) -> None:
    """Write a shop's sales as a CSV file, with times that people can read."""
    times = pd.to_datetime(sales["timestamp"], unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    sales.assign(timestamp=times).to_csv(folder / "interactions.csv", index=False)


def write_parquet(sales: pd.DataFrame, folder: Path) -> None:
    """Write a shop's sales as a Parquet file."""
    sales.to_parquet(folder / "interactions.parquet", index=False)


def fill_database(sales: pd.DataFrame, server: Postgres) -> str:
    """Copy a shop's sales into a database; return the password of ``reader``, who may only read."""
    password = secrets.token_hex(8)
    with psycopg.connect(server.url(), password=server.password) as connection:
        connection.execute(
            "CREATE TABLE sales (receipt bigint, customer_no text, article text,"
            " sold_at timestamptz, pieces int)"
        )
        rows = sales[["session_id", "user_id", "item_id", "timestamp", "quantity"]]
        times = pd.to_datetime(rows["timestamp"], unit="s", utc=True)
        columns = rows.assign(timestamp=times, quantity=rows["quantity"].astype(int))
        with connection.cursor().copy("COPY sales FROM STDIN") as copy:
            for row in columns.itertuples(index=False):
                copy.write_row(tuple(row))
        connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{password}'")
        connection.execute("GRANT SELECT ON sales TO reader")
    return password


def _titles(products: pd.DataFrame) -> pd.Series:
    """Return what a product is called: the data have no names, but its kind, size and brand."""
    size = products["package_size"].fillna("").astype(str).str.split().str.join(" ")
    size = size.where(size == "", ", " + size.str.lower())
    brand = products["brand"].astype(str).str.lower() + " brand " + products["manufacturer"]
    return products["type"].astype(str).str.capitalize() + size + " (" + brand + ")"
