"""Where a shop's data come from, and how they become records on the catalogue's rows."""

import logging
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from client.settings import ShopSettings
from common.checks import Checker
from common.errors import DataError
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

    def __init__(self, folder: Path, *, now: int | None = None) -> None:
        self._folder = folder
        self._now = int(time.time()) if now is None else now

    def tables(self) -> Tables:
        """Return the folder's tables.

        Raises
        ------
        DataError
            If a table is missing or breaks the contract.
        """
        path = require_table(self._folder, "interactions")
        interactions = read_interactions(
            path,
            Checker(path.name),
            None,
            now=self._now,
            drop=("quantity", "price"),
            may_be_empty=True,
        )
        customers = stock = None
        if (people := find_table(self._folder, "customers")) is not None:
            customers = check_customers(read_small(people), Checker(people.name))
        if (shelves := find_table(self._folder, "stock")) is not None:
            stock = check_stock(read_small(shelves), None, Checker(shelves.name))
        products = pd.DataFrame({"item_id": interactions["item_id"].cat.categories})
        return Tables(interactions, products, customers, stock)


def read_shop(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
    """Return the records of the shop that the settings name.

    Raises
    ------
    DataError
        If the data break the contract, or hold other merchants' records but do not know this one.
    """
    return encode_source(FolderSource(settings.data), settings, catalogue)


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
