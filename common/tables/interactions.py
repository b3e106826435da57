"""Interactions of any size: checked block by block, kept as small integer columns."""

import secrets
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.compute as pc

from common.errors import DataError
from common.tables import checks
from common.tables.checks import Checker, filled, number
from common.tables.columns import as_text, cast, shown, times_as_numbers
from common.tables.contract import BEHAVIORS, OPTIONAL_INTERACTIONS, REQUIRED

IDS = ("merchant_id", "user_id", "item_id")
#: The behaviours whose records must have a value, where the column is there at all.
NEEDED_BY = {"rating": ("rating",), "quantity": ("purchase",), "price": ("purchase",)}

DTYPES = {
    "merchant_id": np.int16,
    "user_id": np.int32,
    "item_id": np.int32,
    "behavior": np.int8,
    "timestamp": np.int64,
    "session_id": np.int64,
    "rating": np.float32,
    "quantity": np.float32,
    "price": np.float32,
}


MAX_MERCHANTS = int(np.iinfo(np.int16).max)
# No result depends on it: digests tell strings apart, and order nothing.
_DIGEST_KEY = secrets.token_hex(8)


class InteractionsBuilder:
    """Checks interactions block by block and keeps their codes.

    Columns grow in byte arrays: reallocating one moves pages, not bytes, so that no column is
    ever in memory twice.
    """

    def __init__(
        self,
        checker: Checker,
        item_ids: pd.Series | None,
        columns: Iterable[str],
        now: int,
        drop: Collection[str] = (),
    ) -> None:
        """Begin a table.

        Parameters
        ----------
        checker
            Names the table; decides what becomes of bad rows.
        item_ids
            The products that records may name; None allows any.
        columns
            Columns that the source has.
        now
            Epoch seconds; a later timestamp is bad.
        drop
            Optional columns to check but not to keep.
        """
        have = list(columns)
        checker.require(have, REQUIRED["interactions"])
        optional = [name for name in OPTIONAL_INTERACTIONS if name in have]
        self.columns = [*REQUIRED["interactions"], *optional]
        self.rows = 0
        self._checker = checker
        self._names = {name: _Names() for name in IDS}
        self._kept = {name: bytearray() for name in self.columns if name not in drop}
        self._products = None if item_ids is None else pd.Index(item_ids)
        self._schema = _schema(now, optional)

    def begin(self, checker: Checker) -> None:
        """Go on with another source of the same table: its rows are counted from 1 again."""
        self._checker, self.rows = checker, 0

    def add(self, block: arrow.Table) -> None:
        """Check and keep one block of ``self.columns``, strings or typed.

        Raises
        ------
        DataError
            If a row is bad and bad rows are refused.
        """
        columns = {name: block.column(name).combine_chunks() for name in self.columns}
        texts = {
            name: as_text(columns[name], name, self._checker.table).dictionary_encode()
            for name in self.columns
            if name in (*IDS, "behavior", "session_id")
        }
        frame = {name: text.indices.to_pandas() for name, text in texts.items()}
        frame["item_id"] = self._rows_of_products(texts["item_id"])
        frame["behavior"] = texts["behavior"].to_pandas()
        seconds, wrong = checks.times(times_as_numbers(columns["timestamp"]).to_pandas())
        frame["timestamp"] = pd.Series(seconds)
        faults = [("timestamp", checks.NOT_A_TIME, wrong)]
        for name in set(NEEDED_BY) & set(columns):
            values = cast(columns[name], arrow.float64()).to_pandas()
            found, bad = checks.numbers(name, values)
            frame[name] = pd.Series(found)
            needed = frame["behavior"].isin(NEEDED_BY[name]).to_numpy(dtype=bool)
            empty = needed & values.isna().to_numpy(dtype=bool)
            faults += [*bad, (name, checks.EMPTY, empty)]
        good = self._checker.good(
            pd.DataFrame(frame)[self.columns],
            self._schema,
            raw=lambda name, rows: shown(columns[name].take(arrow.array(rows))),
            faults=faults,
            first_row=self.rows + 1,
        )
        self.rows += len(good)
        for name, kept in self._kept.items():
            values = self._values(name, frame[name], texts.get(name), good)
            kept += values.astype(DTYPES[name]).tobytes()

    def _rows_of_products(self, text: arrow.DictionaryArray) -> pd.Series:
        """Return each record's row in the products, -1 for none, NaN for no id."""
        rows = text.indices
        if self._products is not None:
            found = self._products.get_indexer(text.dictionary.to_pandas())
            rows = pc.take(arrow.array(found), rows)
        return pd.Series(rows.to_pandas())

    def _values(
        self, name: str, column: pd.Series, text: arrow.DictionaryArray | None, good: np.ndarray
    ) -> np.ndarray:
        """Return what is kept of a column's good rows."""
        if text is None:
            plain: np.ndarray = column.to_numpy(dtype=np.float64)
            return np.compress(good, plain)
        if name == "behavior":
            meaning = pd.Index(BEHAVIORS).get_indexer(text.dictionary.to_pandas())
        elif name == "session_id":
            # Sessions may be nearly as many as records: their names would fill the memory.
            meaning = _digests(text.dictionary).view(np.int64)
        else:
            meaning = self._names[name].codes(text.dictionary)
            if len(self._names["merchant_id"]) > MAX_MERCHANTS:
                raise DataError(
                    f"{self._checker.table}: column 'merchant_id' names more than "
                    f"{MAX_MERCHANTS} merchants: does it hold another id?"
                )
        indices = text.indices.to_numpy(zero_copy_only=False)
        values: np.ndarray = np.asarray(meaning)[indices[good].astype(np.int32)]
        return values

    def finish(self, *, may_be_empty: bool = False) -> pd.DataFrame:
        """Return the table; the builder is of no use afterwards.

        Raises
        ------
        DataError
            If no row is left, unless the table may be empty.
        """
        if not may_be_empty and not self._kept["timestamp"]:
            raise DataError(f"{self._checker.table}: {self._why_empty()}")
        columns: dict[str, object] = {}
        for name in list(self._kept):
            values = np.frombuffer(self._kept.pop(name), dtype=DTYPES[name])
            if name in IDS:
                columns[name] = pd.Categorical.from_codes(values, self._names.pop(name).index())
            elif name == "behavior":
                columns[name] = pd.Categorical.from_codes(values, pd.Index(BEHAVIORS))
            else:
                columns[name] = values
        return pd.DataFrame(columns, copy=False)

    def _why_empty(self) -> str:
        reasons = self._checker.set_aside.most_common()
        if not reasons:
            return "no rows: there is nothing to learn from"
        counts = "; ".join(f"{count} for {what}" for what, count in reasons)
        return f"no row is left to learn from: set aside were {counts}"


class _Names:
    """The distinct strings of a column, numbered as they come.

    Strings are told apart by 64-bit digests: two of a million share one with probability 3e-8,
    whatever they are (:func:`_digests`).
    """

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._codes = np.empty(0, dtype=np.int32)
        self._chunks: list[arrow.Array] = []

    def __len__(self) -> int:
        return len(self._codes)

    def codes(self, names: arrow.Array) -> np.ndarray:
        """Return the (n,) int32 codes of distinct names, numbering those that are new."""
        digests = _digests(names)
        place = np.searchsorted(self._sorted, digests)
        fresh = np.ones(len(digests), dtype=bool)
        inside = place < len(self._sorted)
        fresh[inside] = self._sorted[place[inside]] != digests[inside]
        if fresh.any():
            self._chunks.append(names.filter(arrow.array(fresh)))
            new = np.arange(np.count_nonzero(fresh), dtype=np.int32) + len(self._codes)
            order = np.argsort(digests[fresh])
            where = place[fresh][order]
            self._sorted = np.insert(self._sorted, where, digests[fresh][order])
            self._codes = np.insert(self._codes, where, new[order].astype(np.int32))
            place = np.searchsorted(self._sorted, digests)
        codes: np.ndarray = self._codes[place]
        return codes

    def index(self) -> pd.Index:
        """Return the names in the order of their codes."""
        names = arrow.chunked_array(self._chunks, arrow.string()).to_pandas()
        index: pd.Index = pd.Index(names, dtype=str)
        return index


def _digests(names: arrow.Array) -> np.ndarray:
    """Return (n,) uint64 digests of strings: SipHash under a key that this process alone knows.

    Under a key that is known, such as pandas' own, two strings of one digest are found in minutes:
    records of the one would be taken for the other's, customers and products alike.
    """
    values = names.to_numpy(zero_copy_only=False).astype(object)
    digests: np.ndarray = pd.util.hash_array(values, hash_key=_DIGEST_KEY, categorize=False)
    return digests


def _schema(now: int, optional: Iterable[str]) -> pa.DataFrameSchema:
    columns = {
        "merchant_id": filled(),
        "user_id": filled(),
        "item_id": filled(pa.Check.ge(0, error=checks.UNKNOWN_ITEM)),
        "timestamp": filled(
            pa.Check.le(now, error=checks.FUTURE), pa.Check.ge(0, error=checks.BEFORE_1970)
        ),
        "behavior": filled(pa.Check.isin(BEHAVIORS, error=checks.UNKNOWN_BEHAVIOR)),
    }
    for name in optional:
        columns[name] = filled() if name == "session_id" else number()
    return pa.DataFrameSchema(columns)
