"""From anything that claims to be the contract's tables to validated tables.

Interactions come in blocks and are kept as codes, so that a file need not fit into memory.
"""

from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.compute as pc

from common import checks
from common.checks import BadRows, Checker
from common.errors import DataError
from common.schema import BEHAVIORS, OPTIONAL_INTERACTIONS, REQUIRED, Tables

CODED = ("merchant_id", "user_id", "item_id", "behavior")
NUMBERS = ("rating", "quantity", "price")
#: The behaviours whose records must have a value, where the column is there at all.
NEEDED_BY = {"rating": ("rating",), "quantity": ("purchase",), "price": ("purchase",)}
BLOCK_ROWS = 262_144
SMALL = 2**15


def validate_tables(
    interactions: pd.DataFrame,
    products: pd.DataFrame,
    customers: pd.DataFrame | None = None,
    stock: pd.DataFrame | None = None,
    *,
    now: int,
    bad_rows: BadRows = "refuse",
) -> Tables:
    """Return validated tables of four frames.

    Parameters
    ----------
    interactions, products, customers, stock
        The contract's tables; ids of any type, times as ISO 8601 or epoch seconds.
    now
        Epoch seconds; a later timestamp is bad.
    bad_rows
        ``"refuse"`` raises at the first bad rows, ``"set-aside"`` leaves them out and counts them.

    Raises
    ------
    DataError
        If a table breaks the contract.
    """
    set_aside: Counter[str] = Counter()
    goods = check_products(products, Checker("products", bad_rows, set_aside))
    builder = InteractionsBuilder(
        Checker("interactions", bad_rows, set_aside), goods["item_id"], interactions.columns, now
    )
    frame = interactions[builder.columns]
    for start in range(0, len(frame), BLOCK_ROWS):
        part = frame.iloc[start : start + BLOCK_ROWS]
        builder.add(arrow.table({name: _to_arrow(part[name]) for name in builder.columns}))
    return Tables(
        interactions=builder.finish(),
        products=goods,
        customers=None
        if customers is None
        else check_customers(customers, Checker("customers", bad_rows, set_aside)),
        stock=None
        if stock is None
        else check_stock(stock, goods["item_id"], Checker("stock", bad_rows, set_aside)),
        set_aside=dict(set_aside),
    )


def check_products(frame: pd.DataFrame, checker: Checker) -> pd.DataFrame:
    """Return the products table with string ids, each of them once."""
    frame = _with_ids(frame, ("item_id",), checker)
    if frame.empty:
        raise DataError(f"{checker.table}: no products: give one row for each")
    duplicate = frame["item_id"].duplicated() & frame["item_id"].notna()
    faults = [("item_id", checks.DUPLICATE, duplicate.to_numpy(dtype=bool))]
    raw, columns = frame, {"item_id": _filled()}
    if "price" in frame:
        price, wrong = checks.numbers("price", frame["price"])
        frame, faults = frame.assign(price=price), faults + wrong
        columns["price"] = _number()
    return _kept(frame, columns, checker, raw, faults)


def check_customers(frame: pd.DataFrame, checker: Checker) -> pd.DataFrame:
    """Return the customers table; a customer is (merchant_id, user_id) or, without, user_id."""
    keys = ["merchant_id", "user_id"] if "merchant_id" in frame else ["user_id"]
    frame = _with_ids(frame, keys, checker)
    duplicate = (frame.duplicated(keys) & frame[keys].notna().all(axis=1)).to_numpy(dtype=bool)
    faults = [("user_id", checks.DUPLICATE, duplicate)]
    return _kept(frame, {key: _filled() for key in keys}, checker, frame, faults)


def check_stock(frame: pd.DataFrame, item_ids: pd.Series, checker: Checker) -> pd.DataFrame:
    """Return the stock table; a pair that is there twice is no harm."""
    frame = _with_ids(frame, REQUIRED["stock"], checker)
    known = pd.Index(item_ids)
    item = _filled(pa.Check(lambda s: s.isin(known), error=checks.UNKNOWN_ITEM))
    frame = _kept(frame, {"merchant_id": _filled(), "item_id": item}, checker, frame, [])
    return frame.drop_duplicates(ignore_index=True)


class InteractionsBuilder:
    """Checks interactions block by block and keeps them as small integer columns."""

    def __init__(
        self,
        checker: Checker,
        item_ids: pd.Series,
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
            The products that records may name.
        columns
            Columns that the source has.
        now
            Epoch seconds; a later timestamp is bad.
        drop
            Optional columns that need not be read.
        """
        have = list(columns)
        checker.require(have, REQUIRED["interactions"])
        optional = [c for c in OPTIONAL_INTERACTIONS if c in have and c not in drop]
        self.columns = [*REQUIRED["interactions"], *optional]
        self.rows = 0
        self._checker = checker
        self._vocabulary: dict[str, dict[str, int]] = {name: {} for name in CODED}
        self._vocabulary["behavior"] = {name: code for code, name in enumerate(BEHAVIORS)}
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in self.columns}
        self._schema = _interactions_schema(pd.Index(item_ids), now, optional)

    def add(self, block: arrow.Table) -> None:
        """Check and keep one block of ``self.columns``, strings or typed.

        Raises
        ------
        DataError
            If a row is bad and bad rows are refused.
        """
        texts, raw, frame, faults = {}, {}, {}, []
        for name in self.columns:
            column = block.column(name).combine_chunks()
            if name in CODED or name == "session_id":
                texts[name] = as_text(column, name, self._checker).dictionary_encode()
                raw[name] = frame[name] = texts[name].to_pandas()
            elif name == "timestamp":
                raw[name] = _times_as_numbers(column).to_pandas()
                frame[name], wrong = checks.times(raw[name])
                faults.append((name, checks.NOT_A_TIME, wrong))
            else:
                raw[name] = column.to_pandas()
                frame[name], bad = checks.numbers(name, raw[name])
                faults += bad
                needed = frame["behavior"].isin(NEEDED_BY[name]).to_numpy(dtype=bool)
                empty = raw[name].isna().to_numpy(dtype=bool)
                faults.append((name, checks.EMPTY, needed & empty))
        good = self._checker.good(
            pd.DataFrame(frame),
            self._schema,
            raw=pd.DataFrame(raw),
            faults=faults,
            first_row=self.rows + 1,
        )
        self.rows += len(good)
        for name in self.columns:
            if name in CODED:
                kept = self._codes(name, texts[name], good)
            elif name == "session_id":
                kept = _digests(texts[name], good)
            else:
                dtype = np.int64 if name == "timestamp" else np.float32
                kept = frame[name][good].astype(dtype)
            self._blocks[name].append(kept)

    def _codes(self, name: str, text: arrow.DictionaryArray, good: np.ndarray) -> np.ndarray:
        """Return the kept rows' codes in the vocabulary of all blocks so far."""
        vocabulary = self._vocabulary[name]
        codes: np.ndarray = np.array(
            [
                vocabulary.setdefault(value, len(vocabulary))
                for value in text.dictionary.to_pylist()
            ],
            dtype=np.int32 if len(vocabulary) + len(text.dictionary) >= SMALL else np.int16,
        )
        return np.take(codes, _indices(text, good))

    def finish(self) -> pd.DataFrame:
        """Return the table; the builder is empty afterwards.

        Raises
        ------
        DataError
            If no row is left.
        """
        if not sum(map(len, self._blocks["timestamp"])):
            why = "no row is left after setting bad ones aside" if self.rows else "no rows"
            raise DataError(f"{self._checker.table}: {why}: there is nothing to learn from")
        columns: dict[str, object] = {}
        for name in self.columns:
            # One column at a time, so that at most one is in memory twice.
            values = np.concatenate(self._blocks.pop(name))
            if name in CODED:
                categories = pd.Index(list(self._vocabulary.pop(name)), dtype=str)
                columns[name] = pd.Categorical.from_codes(values, categories=categories)
            else:
                columns[name] = values
        return pd.DataFrame(columns, copy=False)


def _digests(text: arrow.DictionaryArray, good: np.ndarray) -> np.ndarray:
    """Return int64 digests of the kept rows' values.

    Sessions may be as many as records: their names would be most of the memory.
    """
    names = text.dictionary.to_numpy(zero_copy_only=False).astype(object)
    digests = pd.util.hash_array(names, categorize=False).view(np.int64)
    return np.take(digests, _indices(text, good))


def _indices(text: arrow.DictionaryArray, good: np.ndarray) -> np.ndarray:
    """Return the kept rows' places in the block's dictionary; no kept row is null."""
    return text.indices.to_numpy(zero_copy_only=False)[good].astype(np.int32)


def as_text(column: arrow.Array, name: str, checker: Checker) -> arrow.Array:
    """Return ids as strings, null where they are empty; 12.0 is the id "12".

    Raises
    ------
    DataError
        If the column's type cannot hold ids.
    """
    kind = column.type
    if arrow.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if arrow.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.all(pc.equal(pc.floor(column), column)).as_py():
            column = column.cast(arrow.int64())
    elif arrow.types.is_nested(kind) or arrow.types.is_temporal(kind):
        raise DataError(f"{checker.table}: column {name!r} holds {kind}: give ids as text")
    text = column.cast(arrow.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def _to_arrow(column: pd.Series) -> arrow.Array:
    """Return a pandas column for Arrow; one of mixed types as text."""
    try:
        return arrow.array(column, from_pandas=True)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return arrow.array(column.map(str, na_action="ignore"), from_pandas=True)


def _times_as_numbers(column: arrow.Array) -> arrow.Array:
    """Return typed times as epoch seconds; numbers and text pass as they are."""
    if arrow.types.is_date(column.type) or arrow.types.is_timestamp(column.type):
        zone = getattr(column.type, "tz", None)
        return column.cast(arrow.timestamp("s", tz=zone), safe=False).cast(arrow.int64())
    return column


def _with_ids(frame: pd.DataFrame, ids: Collection[str], checker: Checker) -> pd.DataFrame:
    """Return the frame with its id columns as strings and rows counted from 0."""
    checker.require(map(str, frame.columns), list(ids))
    frame = frame.reset_index(drop=True)
    return frame.assign(
        **{name: as_text(_to_arrow(frame[name]), name, checker).to_pandas() for name in ids}
    )


def _kept(
    frame: pd.DataFrame,
    columns: dict[str, pa.Column],
    checker: Checker,
    raw: pd.DataFrame,
    faults: list[tuple[str, str, np.ndarray]],
) -> pd.DataFrame:
    """Return the good rows of a table that fits into memory."""
    good = checker.good(frame, pa.DataFrameSchema(columns), raw=raw, faults=faults)
    kept = frame[good].reset_index(drop=True)
    return kept.astype({name: str for name in columns if name != "price"})


def _filled(*more: pa.Check) -> pa.Column:
    return pa.Column(None, checks=list(more), nullable=False)


def _number() -> pa.Column:
    finite = pa.Check(lambda s: ~np.isinf(s), error=checks.NOT_FINITE)
    return pa.Column(None, checks=[pa.Check.ge(0, error=checks.NEGATIVE), finite], nullable=True)


def _interactions_schema(known: pd.Index, now: int, optional: Iterable[str]) -> pa.DataFrameSchema:
    def in_products(items: pd.Series) -> pd.Series:
        # By category, not by row: the products are looked up once for each distinct item.
        found = np.append(known.get_indexer(items.cat.categories) >= 0, True)
        return pd.Series(found[items.cat.codes], index=items.index)

    columns = {
        "merchant_id": _filled(),
        "user_id": _filled(),
        "item_id": _filled(pa.Check(in_products, error=checks.UNKNOWN_ITEM)),
        "behavior": _filled(pa.Check.isin(BEHAVIORS, error=checks.UNKNOWN_BEHAVIOR)),
        "timestamp": _filled(
            pa.Check.le(now, error=checks.FUTURE), pa.Check.ge(0, error=checks.BEFORE_1970)
        ),
    }
    for name in optional:
        columns[name] = _filled() if name == "session_id" else _number()
    return pa.DataFrameSchema(columns)
