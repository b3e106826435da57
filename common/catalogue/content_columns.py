"""How a column of the products table becomes values of a feature.

The table itself suggests it: few numbers are values, many fall into bins, and texts that hardly
repeat are taken as words. A published catalogue settles it, so that a later version of the table
changes no feature of a product that stays as it is.
"""

from typing import Literal

import numpy as np
import pandas as pd

from common.protocol import Frozen

#: What a products table holds besides content.
ITEM_ID, RETIRED = "item_id", "retired"
_NUMBER_BINS = 20
_MAX_WORDS = 40
_FEWEST_WORDS = 50
_EXACT = 2.0**53


class ColumnRule(Frozen):
    """What a column's cells are: values (several, split by ``|``), words, or numbers in bins.

    Attributes
    ----------
    edges
        Ascending edges between the bins of ``numbers``.
    """

    kind: Literal["values", "words", "numbers"]
    edges: tuple[float, ...] = ()


def is_number(column: pd.Series) -> bool:
    """Return whether a column is typed as numbers."""
    return bool(pd.api.types.is_numeric_dtype(column)) and not pd.api.types.is_bool_dtype(column)


def as_text(column: pd.Series) -> np.ndarray:
    """Return a column as text, "" where it says nothing; the numbers 2 and 2.0 are both "2"."""
    filled = column.astype(object).where(column.notna(), "")
    text: np.ndarray = filled.map(str).to_numpy(dtype=object)
    if pd.api.types.is_float_dtype(column):
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
        whole = np.flatnonzero((np.abs(numbers) < _EXACT) & (np.floor(numbers) == numbers))
        text[whole] = numbers[whole].astype(np.int64).astype(str)
    return text


def rule_of(column: pd.Series) -> ColumnRule:
    """Return the rule that a column itself suggests."""
    if is_number(column) and column.nunique() > _NUMBER_BINS:
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
        edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, _NUMBER_BINS + 1)[1:-1]))
        return ColumnRule(kind="numbers", edges=tuple(edges.tolist()))
    distinct = pd.Series(as_text(column)).nunique()
    several = distinct > max(_FEWEST_WORDS, len(column) // 2)  # Titles, not categories.
    return ColumnRule(kind="words" if several else "values")


def values_of(column: pd.Series, rule: ColumnRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (V,) distinct values, and (M,) the row and value of each occurrence."""
    text = pd.Series(as_text(column))
    if rule.kind == "numbers":
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        bins = np.digitize(numbers, np.asarray(rule.edges))
        names = np.array([*(f"bin {b}" for b in range(len(rule.edges) + 1)), ""], dtype=object)
        text = pd.Series(names[np.where(np.isnan(numbers), -1, bins)])
    if rule.kind == "words":
        words = text.str.lower().str.findall(r"\w{2,}").map(lambda found: found[:_MAX_WORDS])
    else:
        words = text.str.split("|")
    exploded = words.explode().dropna().astype(str).str.strip()
    exploded = exploded[exploded != ""]
    codes, values = pd.factorize(exploded.to_numpy(dtype=object), sort=True)
    return np.asarray(values), exploded.index.to_numpy(), codes
