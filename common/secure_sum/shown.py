"""That two shops were shown the same rows of a round's state: their mask is made of what they saw.

Where shops are sent the rows alone that they stock (:mod:`common.shop_state`), no digest of a whole
state is there for all of them to sign. What all are sent alike, they sign; and the mask of two
shops is derived from the rows that both were sent. Shown two values of one row, they make two
masks, which no sum takes off: the defence of Pasquini, Francati & Ateniese 2022 ("Eluding Secure
Aggregation in Federated Learning via Model Inconsistency", arXiv 2111.07380, section 6) against a
server that gives one shop a model of its own. Rows that any two shops agree on are one state.
"""

import hashlib
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np

from common.catalogue.stock import Stock
from common.protocol import Arrays
from common.secure_sum.primitives import digest
from common.stocked_rows import stocked_among

#: Shops -> digest of the rows that all of them were shown; of none where all is shown alike.
Shown = Callable[..., bytes]
_DIGEST_BYTES = 32


def alike(*_: str) -> bytes:
    """Return what is said of rows where there are none that only some shops are shown."""
    return b""


class ShownRows:
    """Rows of a round's state, and which shops are sent them.

    Parameters
    ----------
    by_row
        Name -> (r, ...) arrays, all of the same r rows: a shop's own, or all.
    products
        (r,) catalogue row of each.
    stock
        As published.
    """

    def __init__(self, by_row: Arrays, products: np.ndarray, stock: Stock) -> None:
        self._by_row, self._products, self._stock = by_row, products, stock

    def digest(self, *shops: str) -> bytes:
        """Return the digest of these rows that all ``shops`` stock, 32 bytes, in their order."""
        if not self._by_row:
            return alike()
        common = np.ones(len(self._products), dtype=bool)
        for shop in shops:
            if (rows := self._stock.rows.get(shop)) is not None:
                common &= stocked_among(self._products, rows)
        return digest("shown rows", self._rows[common].tobytes())

    @cached_property
    def _rows(self) -> np.ndarray:
        """(r, w) bytes that stand for each row: its digest, where that is shorter."""
        count = len(self._products)
        parts = [
            # Of no rows "-1" would tell numpy no width.
            np.ascontiguousarray(a.reshape(count, math.prod(a.shape[1:])), dtype="<f4").view(
                np.uint8
            )
            for _, a in sorted(self._by_row.items())
        ]
        rows = np.ascontiguousarray(np.concatenate(parts, axis=1))
        if rows.shape[1] <= _DIGEST_BYTES:
            return rows
        digests = b"".join(hashlib.sha256(row).digest() for row in rows)
        return np.frombuffer(digests, np.uint8).reshape(count, _DIGEST_BYTES)
