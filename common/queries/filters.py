"""Which products may be listed: category, brand, price band, stock, exclusions, a least score."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from common.catalogue.content_columns import RETIRED
from common.errors import InputError
from common.features import retired_words
from common.tables.columns import value_text


@dataclass(frozen=True)
class Filters:
    """What a list may hold; what is not named is not asked for.

    Attributes
    ----------
    price_from, price_to
        Inclusive; a product without a price is then left out.
    merchant_id
        Only what this shop stocks.
    minimum_score
        In units of the model's own score.
    """

    category: str | None = None
    brand: str | None = None
    price_from: float | None = None
    price_to: float | None = None
    merchant_id: str | None = None
    exclude: frozenset[str] = frozenset()
    minimum_score: float | None = None


@dataclass(frozen=True)
class Table:
    """What filters ask of the products, in catalogue order.

    Attributes
    ----------
    values
        Column -> value -> (m,) rows.
    prices
        (n,) float64, NaN where unknown; None without such a column.
    stock
        merchant_id -> (m,) rows.
    retired
        (m,) rows of products that are never listed, whatever is asked for.
    """

    values: Mapping[str, Mapping[str, np.ndarray]]
    prices: np.ndarray | None
    stock: Mapping[str, np.ndarray]
    retired: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @classmethod
    def of(cls, products: pd.DataFrame, stock: Mapping[str, np.ndarray]) -> "Table":
        """Index the columns that can be filtered by."""
        values = {
            column: {
                str(value_text(value)): np.asarray(rows)
                for value, rows in products.groupby(column).indices.items()
            }
            for column in ("category", "brand")
            if column in products
        }
        prices = None
        if "price" in products:
            numbers = pd.to_numeric(products["price"], errors="coerce")
            prices = numbers.to_numpy(dtype=float, na_value=np.nan)
        retired = np.empty(0, dtype=np.int64)
        if RETIRED in products:
            retired = np.flatnonzero(retired_words(products[RETIRED]))
        return cls(values, prices, stock, retired)

    def hide(self, scores: np.ndarray, filters: Filters, rows_of: Mapping[str, int]) -> None:
        """Write ``-inf`` over the (n,) scores of all that may not be listed.

        Raises
        ------
        InputError
            If a category, brand or shop is unknown, or there are no prices.
        """
        for column, value in (("category", filters.category), ("brand", filters.brand)):
            if value is not None:
                _keep(scores, self._rows(column, value))
        if filters.price_from is not None or filters.price_to is not None:
            if self.prices is None:
                raise InputError("the catalogue has no prices to filter by")
            low = -np.inf if filters.price_from is None else filters.price_from
            high = np.inf if filters.price_to is None else filters.price_to
            # A NaN lies in no band.
            scores[~((self.prices >= low) & (self.prices <= high))] = -np.inf
        if filters.merchant_id is not None:
            if filters.merchant_id not in self.stock:
                raise InputError(f"no stock is known of a shop {filters.merchant_id!r}")
            _keep(scores, self.stock[filters.merchant_id])
        scores[self.retired] = -np.inf
        hidden = [rows_of[item] for item in filters.exclude if item in rows_of]
        scores[hidden] = -np.inf
        if filters.minimum_score is not None:
            scores[scores < in_float32(filters.minimum_score)] = -np.inf

    def _rows(self, column: str, value: str) -> np.ndarray:
        if column not in self.values:
            raise InputError(f"the catalogue has no column {column!r} to filter by")
        if value not in self.values[column]:
            raise InputError(f"no product of the catalogue has the {column} {value!r}")
        return self.values[column][value]


def in_float32(number: float) -> np.float32:
    """Return a number as scores are compared with it: no larger than any of them can be."""
    most = float(np.finfo(np.float32).max)
    return np.float32(min(max(number, -most), most))


def _keep(scores: np.ndarray, rows: np.ndarray) -> None:
    """Write ``-inf`` over all scores but those of some rows."""
    kept = scores[rows]
    scores.fill(-np.inf)
    scores[rows] = kept
