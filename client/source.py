"""Where a shop's data come from, and how they become records on the catalogue's rows."""

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from client.settings import ShopSettings
from common.checks import BadRows, Checker
from common.errors import ConfigError, DataError
from common.features import Catalogue
from common.folders import find_table, read_interactions, read_small, require_table
from common.schema import BEHAVIOR_WEIGHTS, ShopEvents, Tables, encode_shop
from common.validation import check_customers, check_stock

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Anything that holds a shop's own tables."""

    def tables(self) -> Tables:
        """Return the shop's validated interactions and customers; products are not needed."""


class FolderSource:
    """Tables in a folder of CSV or Parquet files.

    A products table there is not read: what the federation trains on is its catalogue, and a
    shop may sell what the catalogue does not name.
    """

    def __init__(
        self, folder: Path, *, now: int | None = None, bad_rows: BadRows = "refuse"
    ) -> None:
        self._folder = folder
        self._bad_rows: BadRows = bad_rows
        self._now = int(time.time()) if now is None else now

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
            now=self._now,
            drop=("quantity", "price"),
            may_be_empty=True,
        )
        customers = stock = None
        if (people := find_table(self._folder, "customers")) is not None:
            customers = check_customers(read_small(people), checker(people))
        if (shelves := find_table(self._folder, "stock")) is not None:
            stock = check_stock(read_small(shelves), None, checker(shelves))
        products = pd.DataFrame({"item_id": interactions["item_id"].cat.categories})
        return Tables(interactions, products, customers, stock, dict(set_aside))


def open_source(settings: ShopSettings, bad_rows: BadRows | None = None) -> Source:
    """Return where the settings say that the shop's tables are; nothing is read yet.

    ``bad_rows`` takes the place of the settings' own.
    """
    rows = bad_rows or settings.bad_rows
    if settings.database is not None:
        from client.sql_source import SqlSource  # Slow to import, and most shops do without.

        return SqlSource(settings.database, settings.merchant_id, bad_rows=rows)
    if settings.data is None:
        raise ConfigError("the shop's settings name neither data nor a database")
    return FolderSource(settings.data, bad_rows=rows)


def read_shop(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
    """Return the records of the shop that the settings name.

    Raises
    ------
    DataError
        If the data break the contract, or hold other merchants' records but do not know this one.
    """
    return encode_source(open_source(settings), settings, catalogue)


def encode_source(source: Source, settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
    """Return a shop's records from any source; see :func:`read_shop`."""
    tables = source.tables()
    if settings.merchant_id not in tables.merchant_ids and len(tables.interactions):
        others = ", ".join(map(repr, tables.merchant_ids[:5]))
        raise DataError(
            f"the data know no merchant {settings.merchant_id!r}, only {others}: correct "
            "merchant_id in the shop's settings or in the data"
        )
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
