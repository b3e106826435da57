"""A shop's tables in any SQL database: read in chunks, checked by the same code as files.

Only the columns that the contract needs are asked for. The connection reads and never writes,
and all tables are of one moment where the database can do that (PostgreSQL: one read-only
transaction at REPEATABLE READ; SQLite: one transaction).
"""

import time
from collections import Counter
from collections.abc import Sequence

import pandas as pd
import pyarrow as arrow
import sqlalchemy as sa

from client.data.people import person_of
from client.data.sql_rows import Part, chunks, columns_of, reading
from client.database_settings import OPTIONAL, Database, TableSource
from common.config import nearest
from common.errors import ConfigError, DataError
from common.schema import Tables
from common.tables.checks import MERCHANT, Checker, like_merchant
from common.tables.contract import REQUIRED, BadRows
from common.tables.folders import Progress
from common.tables.interactions import InteractionsBuilder
from common.tables.validation import check_customers, check_stock


class SqlSource:
    """Tables in a SQL database, as a shop's settings map them.

    Rows that name no merchant are the shop's own.
    """

    def __init__(
        self,
        database: Database,
        merchant_id: str,
        *,
        now: int | None = None,
        bad_rows: BadRows = "refuse",
        progress: Progress | None = None,
        user_id: str | None = None,
    ) -> None:
        self._database = database
        self._progress = progress
        self._merchant_id = merchant_id
        self._now = now
        self._bad_rows: BadRows = bad_rows
        self._user_id = user_id

    def tables(self) -> Tables:
        """Return the shop's tables.

        Raises
        ------
        ConfigError
            If the password is not where the settings say.
        DataError
            If the database does not answer, or a table is missing or breaks the contract.
        """
        set_aside: Counter[str] = Counter()
        database = self._database

        def checker(source: TableSource, name: str) -> Checker:
            return Checker(source.label(name), self._bad_rows, set_aside)

        with reading(database) as connection:
            customers = stock = None
            if self._user_id is None and (source := database.customers) is not None:
                rows = self._small(connection, source, "customers")
                customers = check_customers(rows, checker(source, "customers"))
            if (source := database.stock) is not None:
                rows = self._small(connection, source, "stock")
                stock = check_stock(rows, None, checker(source, "stock"))
            parts = [
                self._part(connection, source, "interactions", OPTIONAL)
                for source in database.interactions
            ]
            # A column that some parts lack says nothing of their records: a rating is then
            # missing there, but a basket can't be, so baskets are known of all or of none.
            have = {name for part in parts for name in part.have}
            if not all("session_id" in part.have for part in parts):
                have.discard("session_id")
            checkers = [checker(part.source, "interactions") for part in parts]
            # The tables are of a moment that is past by now: what was sold since, such as while a
            # mapping was read, is not in them, and what is in them is not in the future.
            now = int(time.time()) if self._now is None else self._now
            builder, done = InteractionsBuilder(checkers[0], None, sorted(have), now), 0
            for part, own in zip(parts, checkers, strict=True):
                builder.begin(own)
                for rows in chunks(connection, part, builder.columns, self._user_id):
                    builder.add(rows)
                    done += len(rows)
                    if self._progress is not None:
                        self._progress(done, 0)  # How many there are only a count would tell.
        interactions = builder.finish(may_be_empty=True)
        products = pd.DataFrame({"item_id": interactions["item_id"].cat.categories})
        return Tables(interactions, products, customers, stock, dict(set_aside))

    def products(self, column: str) -> pd.DataFrame:
        """Return ``item_id`` and one more column of the shop's products, as text.

        Raises
        ------
        ConfigError
            If the settings name no such table.
        DataError
            If the database does not answer, or the table lacks a column.
        """
        source = self._database.products
        if source is None:
            raise ConfigError(
                f"catalogue_mapping.by = {column!r} needs the shop's own products: add "
                f'[database.products] with item_id and {column!r}, such as table = "articles"'
            )
        with reading(self._database) as connection:
            part = self._part(connection, source, "products", (column,))
            if column not in part.places:
                raise DataError(
                    f"{part.label} has no column {column!r}: map the one that holds it with "
                    f'columns = {{ {column} = "..." }}'
                )
            blocks = list(chunks(connection, part, ["item_id", column]))
        frame: pd.DataFrame = arrow.concat_tables(blocks).to_pandas()
        return frame

    def described(self, columns: Sequence[str]) -> pd.DataFrame | None:
        """Return what the shop's products table says of its products; None without one.

        Raises
        ------
        DataError
            If the database does not answer, or the table names no products.
        """
        source = self._database.products
        if source is None:
            return None
        with reading(self._database) as connection:
            part = self._part(connection, source, "products", columns)
            names = ["item_id", *(name for name in columns if name in part.places)]
            blocks = list(chunks(connection, part, names))
        frame: pd.DataFrame = arrow.concat_tables(blocks).to_pandas()
        return frame

    def person(self, user_id: str) -> dict[str, str]:
        """Return what the shop's customers table says of one customer, whom the database finds.

        Raises
        ------
        DataError
            If the database does not answer, or the table breaks the contract.
        """
        source = self._database.customers
        if source is None:
            return {}
        with reading(self._database) as connection:
            people = self._small(connection, source, "customers", user_id)
        checked = check_customers(people, Checker(source.label("customers"), self._bad_rows))
        return person_of(checked, user_id, self._merchant_id)

    def _part(
        self, connection: sa.Connection, source: TableSource, name: str, optional: Sequence[str]
    ) -> Part:
        constants = dict(source.constants)
        found = columns_of(connection, source, name)
        places = {}
        for column in (*REQUIRED[name], *optional, *source.columns):
            theirs = source.columns.get(column, column)
            if column in constants:
                continue
            if theirs in found:
                places[column] = theirs
            elif column in source.columns:
                raise DataError(
                    f"{source.label(name)} has no column {theirs!r} for {column!r}: "
                    f"{nearest(theirs, found)}"
                )
        if MERCHANT not in {*places, *constants}:
            if name != "products" and (near := like_merchant(found)):
                # Only misspelt, it must not make other merchants' rows the shop's own.
                raise DataError(
                    f"{source.label(name)} has no column {MERCHANT!r}, but {near!r}: map it with "
                    f'columns = {{ {MERCHANT} = "{near}" }} or, if all rows are the shop\'s own, '
                    f'say so with constants = {{ {MERCHANT} = "{self._merchant_id}" }}'
                )
            constants[MERCHANT] = self._merchant_id
        missing = [c for c in REQUIRED[name] if c not in places and c not in constants]
        if missing:
            also = " (or name one for all rows in constants)" if missing[0] == "behavior" else ""
            raise DataError(
                f"{source.label(name)} has no column {missing[0]!r}: map the one that holds it "
                f'with columns = {{ {missing[0]} = "..." }}{also}. Columns found: '
                f"{', '.join(map(repr, found))}"
            )
        return Part(source, source.label(name), places, constants)

    def _small(
        self,
        connection: sa.Connection,
        source: TableSource,
        name: str,
        user_id: str | None = None,
    ) -> pd.DataFrame:
        """Return a table that fits into memory: its ids and the columns that are mapped.

        A database's customers have names and addresses, which nobody here needs to see.
        """
        part = self._part(connection, source, name, (MERCHANT,))
        if name == "customers" and MERCHANT not in source.constants:
            part.constants.pop(MERCHANT, None)
        blocks = list(chunks(connection, part, [*part.places, *part.constants], user_id))
        frame: pd.DataFrame = arrow.concat_tables(blocks).to_pandas()
        return frame
