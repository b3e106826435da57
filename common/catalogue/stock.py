"""What each shop stocks, as all agree on it: published beside the catalogue, public.

A shop that the table does not name stocks the whole catalogue. The fingerprint stands in every
secure sum's session: a shop that holds another table takes no part.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from common.errors import ArtifactError, DataError
from common.features import STOCK, Catalogue
from common.protocol import NO_FINGERPRINT, shop_key


@dataclass(frozen=True)
class Stock:
    """Which products of the catalogue each shop stocks.

    Attributes
    ----------
    rows
        Public name of a shop (:func:`common.protocol.shop_key`) -> sorted catalogue rows (k,).
    """

    rows: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, table: pd.DataFrame, catalogue: Catalogue) -> "Stock":
        """Return what a table of ``merchant_id`` and ``item_id`` says.

        Raises
        ------
        DataError
            If it names a product that the catalogue does not hold.
        """
        places = catalogue.rows(table["item_id"].to_numpy(dtype=object).astype(str))
        if (unknown := np.flatnonzero(places < 0)).size:
            names = ", ".join(repr(str(n)) for n in table["item_id"].iloc[unknown[:5]])
            raise DataError(
                f"the stock table names products that the catalogue does not hold: {names}. Take "
                "them out, or publish a catalogue with them"
            )
        codes, merchants = pd.factorize(table["merchant_id"].astype(str))
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(merchants)))
        parts = np.split(places[order], ends[:-1]) if len(merchants) else []
        found = zip(map(shop_key, merchants), map(np.unique, parts), strict=True)
        return cls(dict(sorted(found, key=lambda shop: shop[0])))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every shop's rows, 64 hex digits; the catalogue has its own."""
        digest = hashlib.sha256()
        for shop, rows in self.rows.items():
            digest.update(f"{shop}\0{len(rows)}\0".encode())
            digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
        return digest.hexdigest()


def stock_fingerprint(stock: Stock | None) -> str:
    """Return the fingerprint of a stock table; zeros where none is published."""
    return NO_FINGERPRINT if stock is None else stock.fingerprint


def read_stock(folder: Path, catalogue: Catalogue) -> Stock | None:
    """Return the stock table that was published with a catalogue; None where none was.

    Raises
    ------
    ArtifactError
        If it cannot be read.
    """
    path = folder / STOCK
    if not path.exists():
        return None
    try:
        return Stock.of(pd.read_parquet(path), catalogue)
    except (OSError, ValueError, KeyError, RecursionError, DataError) as error:
        raise ArtifactError(f"{path} is no stock table of this catalogue: {error}") from error
