"""Where a shop's data come from, and how they become records on the catalogue's rows."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from client.data.mapping import ItemMapping, read_mapping, texts_of
from client.data.people import person_of
from client.mapping_settings import CatalogueMapping
from client.settings import ShopSettings
from common.catalogue.content_columns import ITEM_ID
from common.catalogue.content_columns import as_text as content_text
from common.errors import ConfigError, DataError
from common.features import Catalogue
from common.schema import ShopEvents, Tables, encode_shop
from common.tables.checks import MERCHANT, Checker
from common.tables.contract import BEHAVIOR_WEIGHTS, BadRows
from common.tables.folders import (
    Progress,
    find_table,
    lacks_merchant,
    read_interactions,
    read_small,
    require_table,
)
from common.tables.validation import check_customers, check_stock

logger = logging.getLogger(__name__)

SHOWN = 5


class Source(Protocol):
    """Anything that holds a shop's own tables."""

    def tables(self) -> Tables:
        """Return the shop's validated interactions and customers; products are not needed."""


class OwnSource(Source, Protocol):
    """A source that also knows what the shop's own products are."""

    def products(self, column: str) -> pd.DataFrame:
        """Return ``item_id`` and one more column of the shop's products, as text."""

    def described(self, columns: Sequence[str]) -> pd.DataFrame | None:
        """Return ``item_id`` and those of some columns that the shop's products have, as text.

        None where the shop has no products table.
        """

    def person(self, user_id: str) -> dict[str, str]:
        """Return what the shop's customers table says of one customer, as text."""


class FolderSource:
    """Tables in a folder of CSV or Parquet files.

    A products table there is read for a mapping, and for what the shop knows at home: what the
    federation trains on is its catalogue, and a shop may sell what the catalogue does not name.

    Where ``merchant_id`` is given, it fills that column of a table that has none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        now: int | None = None,
        bad_rows: BadRows = "refuse",
        progress: Progress | None = None,
        user_id: str | None = None,
        merchant_id: str | None = None,
    ) -> None:
        self._folder, self._user_id, self._merchant_id = folder, user_id, merchant_id
        self._progress = progress
        self._bad_rows: BadRows = bad_rows
        self._now = now

    def tables(self) -> Tables:
        """Return the folder's tables.

        Raises
        ------
        DataError
            If a table is missing or breaks the contract.
        """
        set_aside: Counter[str] = Counter()

        def checker(path: Path) -> Checker:
            return Checker(path.name, self._bad_rows, set_aside)

        path = require_table(self._folder, "interactions")
        interactions = read_interactions(
            path,
            checker(path),
            None,
            # When they are read: the shop goes on selling while a mapping is.
            now=int(time.time()) if self._now is None else self._now,
            progress=self._progress,
            drop=("quantity", "price"),
            may_be_empty=True,
            user_id=self._user_id,
            merchant_id=self._merchant_id,
        )
        customers = stock = None
        if self._user_id is None and (people := find_table(self._folder, "customers")) is not None:
            customers = check_customers(read_small(people, checker(people)), checker(people))
        if (shelves := find_table(self._folder, "stock")) is not None:
            frame = read_small(shelves, checker(shelves))
            if self._merchant_id is not None and lacks_merchant(frame.columns):
                checker(shelves).require(map(str, frame.columns), ["item_id"])
                frame = frame.assign(**{MERCHANT: self._merchant_id})
            stock = check_stock(frame, None, checker(shelves))
        products = pd.DataFrame({"item_id": interactions["item_id"].cat.categories})
        return Tables(interactions, products, customers, stock, dict(set_aside))

    def products(self, column: str) -> pd.DataFrame:
        """Return ``item_id`` and one more column of the folder's products table, as text.

        Raises
        ------
        DataError
            If the table or a column is missing.
        """
        path = find_table(self._folder, "products")
        if path is None:
            raise DataError(
                f"catalogue_mapping.by = {column!r} needs the shop's own products: put "
                f"products.csv or products.parquet with item_id and {column!r} into {self._folder}"
            )
        return texts_of(read_small(path, as_text=True), column, path.name)

    def described(self, columns: Sequence[str]) -> pd.DataFrame | None:
        """Return what the folder's products table says of its products; None without one.

        Raises
        ------
        DataError
            If the table can't be read, or names no products.
        """
        path = find_table(self._folder, "products")
        if path is None:
            return None
        frame = read_small(path, as_text=True)
        texts = texts_of(frame, ITEM_ID, path.name).set_axis([ITEM_ID], axis=1)
        for name in columns:
            if name in frame:
                values = pd.Series(content_text(frame[name]), dtype=object)
                texts[name] = values.where(values != "", None)
        return texts

    def person(self, user_id: str) -> dict[str, str]:
        """Return what the folder's customers table says of one customer.

        Raises
        ------
        DataError
            If the table breaks the contract.
        """
        path = find_table(self._folder, "customers")
        if path is None:
            return {}
        checker = Checker(path.name, self._bad_rows)
        people = check_customers(read_small(path, checker), checker)
        return person_of(people, user_id, self._merchant_id)


@dataclass(frozen=True)
class MappedSource:
    """A shop's tables with the catalogue's product numbers in place of its own."""

    source: OwnSource
    settings: CatalogueMapping
    catalogue: Path

    def mapping(self) -> ItemMapping:
        """Read the mapping; raises as :func:`client.data.mapping.read_mapping`."""
        return read_mapping(self.settings, self.catalogue, self.source.products)

    def tables(self) -> Tables:
        """Return the mapped tables."""
        mapping = self.mapping()  # First: what is wrong with it is said before the long read.
        return mapping.apply(self.source.tables())


def open_source(
    settings: ShopSettings,
    bad_rows: BadRows | None = None,
    user_id: str | None = None,
) -> Source:
    """Return where the shop's tables are, with the catalogue's product numbers; nothing is read.

    Parameters
    ----------
    bad_rows
        Takes the place of the settings' own.
    user_id
        Read this customer's interactions alone, and no customers table.
    """
    source = open_own_source(settings, bad_rows, user_id=user_id)
    if settings.catalogue_mapping is None:
        return source
    return MappedSource(source, settings.catalogue_mapping, settings.catalogue)


def open_own_source(
    settings: ShopSettings,
    bad_rows: BadRows | None = None,
    progress: Progress | None = None,
    user_id: str | None = None,
) -> OwnSource:
    """Return the same as :func:`open_source` with the shop's own product numbers.

    Parameters
    ----------
    progress
        Told how far the interactions are read; of a database (rows, 0).
    """
    rows = bad_rows or settings.bad_rows
    if settings.database is not None:
        from client.data.sql_source import SqlSource  # Slow to import, and most shops do without.

        return SqlSource(
            settings.database,
            settings.merchant_id,
            bad_rows=rows,
            progress=progress,
            user_id=user_id,
        )
    if settings.data is None:
        raise ConfigError("the shop's settings name neither data nor a database")
    return FolderSource(
        settings.data,
        bad_rows=rows,
        progress=progress,
        user_id=user_id,
        merchant_id=settings.merchant_id,
    )


def shop_mapping(settings: ShopSettings) -> ItemMapping | None:
    """Return what the shop's own product numbers are in the catalogue; None: the same.

    Raises
    ------
    InputError
        If the mapping can't be read, or maps a product to several of the catalogue's.
    """
    source = open_source(settings)
    return source.mapping() if isinstance(source, MappedSource) else None


def read_shop(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
    """Return the records of the shop that the settings name.

    Raises
    ------
    DataError
        If the data break the contract. A shop without records is no error.
    """
    return encode_source(open_source(settings), settings, catalogue)


def unknown_merchant(tables: Tables, merchant_id: str) -> str:
    """Return advice where the tables hold records, but know this merchant nowhere; else ""."""
    merchants = tables.merchant_ids
    if merchant_id in merchants or not len(tables.interactions):
        return ""
    others = ", ".join(map(repr, merchants[:SHOWN]))
    return (
        f"the data know no merchant {merchant_id!r}, only {others}: correct merchant_id in the "
        "shop's settings or in the data"
    )


def encode_source(source: Source, settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
    """Return a shop's records from any source; see :func:`read_shop`."""
    tables = source.tables()
    if unknown_merchant(tables, settings.merchant_id):
        # To refuse would tell whoever asked that the shop has no customers: with one it is known.
        logger.warning(
            "data=read records=none: all rows are other merchants', and the shop takes part with "
            "noise alone. If that is not so, correct merchant_id in the shop's settings or in the "
            "data: python -m client check names the merchants"
        )
        tables = replace(tables, interactions=tables.interactions.iloc[:0])
    events = encode_shop(
        tables,
        settings.merchant_id,
        catalogue.item_ids,
        settings.behavior_weights or BEHAVIOR_WEIGHTS,
        settings.rating_scale,
    )
    # The shop's own log, on its own machine: still no id, and no count of its customers.
    known = catalogue.rows(np.asarray(tables.products["item_id"], dtype=object)) >= 0
    logger.info("data=read products_outside_catalogue=%s", "none" if known.all() else "some")
    return events
