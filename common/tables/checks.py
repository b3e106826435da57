"""Pandera's checks with messages that a shop's engineer can act on."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pandera.pandas as pa

from common.errors import DataError
from common.tables.contract import OPTIONAL_INTERACTIONS, BadRows

EMPTY = "empty"
NEGATIVE = "negative"
NEGATIVE_PRICE = "a negative price"
NOT_FINITE = "not finite"
NOT_NUMERIC = "not a number"
NOT_A_TIME = "neither an ISO 8601 time nor epoch seconds"
FUTURE = "in the future"
BEFORE_1970 = "before 1970"
UNKNOWN_BEHAVIOR = "not a behaviour"
UNKNOWN_ITEM = "not in the products table"
DUPLICATE = "there already"

ADVICE = {
    EMPTY: "fill it in",
    NEGATIVE: "returns and corrections are no records of interest: leave those rows out",
    NEGATIVE_PRICE: "correct it, or leave the price empty where it is not known",
    NOT_FINITE: "give a finite number",
    NOT_NUMERIC: "give a number with a point for decimals and nothing else",
    NOT_A_TIME: "write times like 2024-05-31T14:00:00Z or as whole seconds since 1970 UTC",
    FUTURE: "check the time zone, or whether the column holds milliseconds",
    BEFORE_1970: "check the unit of the column",
    UNKNOWN_BEHAVIOR: "use one of view, favourite, cart, purchase, rating",
    UNKNOWN_ITEM: "add the product to products, or leave the record out (were zeros in front or "
    "spaces lost from ids in one of the two tables?)",
    DUPLICATE: "keep one row for each",
}

MERCHANT = "merchant_id"
# "merchant" and "MerchantId" are; "terminal_id" is not.
_SIMILAR = 0.8
SHOWN = 5
# Of a second: what is kept of a time is its second.
_FRACTION = r"(?<=:\d\d)[.,]\d{1,9}(?!\d)"


@dataclass
class Checker:
    """Finds the bad rows of one table, and refuses them or sets them aside.

    Attributes
    ----------
    table
        Name of the file or table in messages.
    bad_rows
        What becomes of a bad row.
    set_aside
        Counts of rows left out, by ``"table.column: reason"``; shared between tables.
    may_set_aside
        Whether whoever reads the message could ask for that.
    """

    table: str
    bad_rows: BadRows = "refuse"
    set_aside: Counter[str] = field(default_factory=Counter)
    may_set_aside: bool = True

    def require(self, have: Iterable[str], columns: Sequence[str]) -> None:
        """Raise unless the columns are there, and no column is there twice."""
        have = list(have)
        twice = sorted(name for name, count in Counter(have).items() if count > 1)
        if twice:
            raise DataError(f"{self.table}: column {twice[0]!r} is there twice: keep one")
        # Capitals and spaces around a name hide no likeness: "Item_ID " is near.
        alike = {name.strip().lower(): name for name in have if name not in columns}
        near, missing = [], []
        for column in dict.fromkeys(columns):
            if column not in have:
                found = difflib.get_close_matches(column, alike, n=1, cutoff=0.6)
                hint = f"column {column!r} is missing: did you mean {{!r}}? Rename it"
                near += [hint.format(alike[name]) for name in found]
                missing += [] if found else [column]
        if missing:
            one = len(missing) == 1
            near.append(
                f"column{'' if one else 's'} {', '.join(map(repr, missing))} "
                f"{'is missing: add it' if one else 'are missing: add them'}, "
                "or rename what holds the same"
            )
        if near:
            raise DataError(
                f"{self.table}: {'; '.join(near)}. "
                f"Columns found: {', '.join(map(repr, have)) or 'none'}"
            )

    def good(
        self,
        frame: pd.DataFrame,
        schema: pa.DataFrameSchema,
        *,
        raw: Callable[[str, np.ndarray], list[object]],
        faults: Iterable[tuple[str, str, np.ndarray]] = (),
        first_row: int = 1,
    ) -> np.ndarray:
        """Return (N,) bool: the rows to keep.

        Parameters
        ----------
        frame
            (N rows) values as converted, with a RangeIndex from 0.
        schema
            Pandera's schema; the ``error`` of a check is its reason here.
        raw
            (column, row indices) -> the values as they came, for messages.
        faults
            (column, reason, (N,) bool) found while converting; these come first.
        first_row
            Number of the first data row, counted from 1.

        Raises
        ------
        DataError
            If a row is bad and bad rows are refused.
        """
        bad = np.zeros(len(frame), dtype=bool)
        found: list[tuple[str, str, np.ndarray]] = []
        for column, reason, mask in [*faults, *self._failures(frame, schema)]:
            fresh = mask & ~bad
            if fresh.any():
                found.append((column, reason, np.flatnonzero(fresh)))
            bad |= mask
        if found and self.bad_rows == "refuse":
            raise DataError("\n".join(self._describe(raw, *f, first_row) for f in found))
        for column, reason, rows in found:
            self.set_aside[f"{self.table}.{column}: {reason}"] += len(rows)
        return ~bad

    def _failures(
        self, frame: pd.DataFrame, schema: pa.DataFrameSchema
    ) -> list[tuple[str, str, np.ndarray]]:
        try:
            schema.validate(frame, lazy=True)
        except pa.errors.SchemaErrors as errors:
            found = []
            cases = errors.failure_cases
            for (column, check), group in cases.groupby(["column", "check"], sort=False):
                mask = np.zeros(len(frame), dtype=bool)
                mask[group["index"].to_numpy(dtype=np.int64)] = True
                reason = EMPTY if check == "not_nullable" else str(check)
                found.append((str(column), reason, mask))
            return found
        return []

    def _describe(
        self,
        raw: Callable[[str, np.ndarray], list[object]],
        column: str,
        reason: str,
        rows: np.ndarray,
        first_row: int,
    ) -> str:
        values = raw(column, rows[:SHOWN])
        cells = ", ".join(
            f"row {row + first_row}: {_shown(value)}"
            for row, value in zip(rows[:SHOWN].tolist(), values, strict=True)
        )
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        advice = ADVICE[reason]
        if reason == EMPTY and column in OPTIONAL_INTERACTIONS:
            # Else purchases are left out, or prices made up, for a column that nobody has to give.
            advice += ", or leave out the whole column, which is optional"
        aside = '; or set bad rows aside with bad_rows = "set-aside"' if self.may_set_aside else ""
        return (
            f"{self.table}: column {column!r} is {reason} in {cells}{more}. "
            f"What to do: {advice}{aside}"
        )


def like_merchant(columns: Iterable[object]) -> str:
    """Return the name of the column that says whose a row is, or may do so; "" where none does."""
    names = {str(name).lower(): str(name) for name in columns}
    found = difflib.get_close_matches(MERCHANT, names, n=1, cutoff=_SIMILAR)
    return names[found[0]] if found else ""


def _shown(value: object) -> str:
    """Return a cell as a message shows it."""
    text = repr(value)
    if text in {"None", "nan", "<NA>", "NaT"}:
        return "no value"
    return text if len(text) <= 60 else f"{text[:57]}..."


def numbers(column: str, values: pd.Series) -> tuple[np.ndarray, list[tuple[str, str, np.ndarray]]]:
    """Return values as float64 (NaN where there is none), and what was no number.

    To pandas a time is one, and even none at all is: of units since 1970.
    """
    if values.dtype.kind in "mM":
        values = values.astype(str).where(values.notna())
    converted = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = np.isnan(converted) & values.notna().to_numpy(dtype=bool)
    return converted, [(column, NOT_NUMERIC, wrong)]


def times(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 seconds since 1970 UTC, NaN where there is no time, and where it is wrong.

    A number is epoch seconds, anything else ISO 8601; a time without a zone is UTC.
    """
    present = values.notna().to_numpy(dtype=bool)
    numeric = pd.to_numeric(values, errors="coerce")
    seconds = numeric.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    text = present & np.isnan(seconds)
    if text.any():
        # Pandas takes all in the finest unit that one of them needs, and "now" for a time.
        words = values[text].astype(str).str.replace(_FRACTION, "", regex=True)
        words = words.where(words.str.contains(r"\d", regex=True), "")
        parsed = pd.to_datetime(words, format="ISO8601", utc=True, errors="coerce")
        whole = parsed.to_numpy(dtype="datetime64[s]")
        seconds[text] = np.where(np.isnat(whole), np.nan, whole.astype(np.int64))
    seconds[np.isinf(seconds)] = np.nan  # "infinity" is a number for pandas, and no time.
    return np.floor(seconds), present & np.isnan(seconds)


def filled(*more: pa.Check) -> pa.Column:
    """Return a column that has a value in every row."""
    return pa.Column(None, checks=list(more), nullable=False)


def number(negative: str = NEGATIVE) -> pa.Column:
    """Return a column of finite numbers from 0; where one must be given is checked apart."""
    finite = pa.Check(lambda s: ~np.isinf(s), error=NOT_FINITE)
    return pa.Column(None, checks=[pa.Check.ge(0, error=negative), finite], nullable=True)
