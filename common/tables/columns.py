"""Columns of any source as Arrow arrays of the types that checks read.

What one value reads as follows from that value alone: files are read in blocks and programs choose
one type for a column, but one customer's record must not change what another's says.
"""

import json
import math
import re
from collections.abc import Collection
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc
from pandas.api.types import infer_dtype

from common.errors import DataError

# Between these Arrow writes fractions as Python and pandas do; beyond, in another notation.
_ARROW_FROM, _ARROW_BELOW = 1e-4, 1e10
# What pandas calls the numbers of rows of a table of which some were taken out.
_NUMBERS = re.compile(r"__index_level_\d+__")
# Epoch seconds of 0001-01-02 and 9999-12-31.
_YEAR_1, _YEAR_9999 = -62_135_510_400, 253_402_214_400


def as_text(column: arrow.Array, name: str, table: str) -> arrow.Array:
    """Return ids as strings, null where they are empty or infinite; 12.0 is the id "12".

    Raises
    ------
    DataError
        If the column's type cannot hold ids.
    """
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if _has_parts(kind):
        raise DataError(f"{table}: column {name!r} holds {kind}: give ids as text")
    if arrow.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, None)
    try:
        text = plain_text(column)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{table}: column {name!r} holds what is no text: {error}") from error
    return pc.if_else(pc.equal(text, ""), None, text)


def plain_text(column: arrow.Array) -> arrow.Array:
    """Return a column, of no nested or temporal type, as strings that each follow from their value.

    Neither another row nor the type that a program chose for all of them shows: 12, 12.0 and
    Decimal("12.00") are "12", for a column of whole numbers becomes one of floats where pandas has
    met a row without. What is no number is null.
    """
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if arrow.types.is_floating(kind):
        return _float_text(column)
    if arrow.types.is_boolean(kind):
        return pc.if_else(column, "True", "False")
    if arrow.types.is_decimal(kind) and kind.scale:
        found = column.dictionary_encode()
        words = [value_text(value) for value in found.dictionary.to_pylist()]
        return arrow.array(words, arrow.string()).take(found.indices)
    return column.cast(arrow.string())


def _float_text(column: arrow.Array) -> arrow.Array:
    """Return floats as :func:`value_text` writes them; where Arrow writes the same, it does."""
    if column.type == arrow.float16():
        column = column.cast(arrow.float32())
    numbers = pc.if_else(pc.is_nan(column), None, column)
    size = pc.abs(numbers)
    whole = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(size, 2.0**63))
    if pc.all(whole).as_py():
        return numbers.cast(arrow.int64()).cast(arrow.string())
    short = pc.and_(pc.greater_equal(size, _ARROW_FROM), pc.less(size, _ARROW_BELOW))
    text = pc.if_else(
        whole,
        pc.if_else(whole, numbers, None).cast(arrow.int64()).cast(arrow.string()),
        pc.if_else(short, numbers, None).cast(arrow.string()),
    )
    rest = pc.and_(numbers.is_valid(), pc.is_null(text))
    if pc.any(rest).as_py():
        found = numbers.filter(rest).dictionary_encode()
        odd = found.dictionary
        # A float32 has fewer digits as one of NumPy's than as one of Python's.
        values = odd.to_numpy() if odd.type == arrow.float32() else odd.to_pylist()
        words = [str(int(v) if v.is_integer() else v) for v in values]
        text = pc.replace_with_mask(text, rest, arrow.array(words).take(found.indices))
    return text


def value_text(value: object) -> str | None:
    """Return one value as text, None where there is none; 12.0 and Decimal("12.00") are "12"."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float | np.floating | Decimal):
        if math.isnan(value):
            return None
        if math.isfinite(value) and value == math.floor(value):
            return str(math.floor(value))
        if isinstance(value, Decimal) and value.is_finite():
            return format(value, "f").rstrip("0")
    return str(value)


def to_arrow(column: pd.Series) -> arrow.Array:
    """Return a pandas column for Arrow; one of mixed types as text."""
    with suppress(arrow.ArrowInvalid, arrow.ArrowTypeError, OverflowError):
        # Of 0 and False Arrow makes whole numbers.
        if column.dtype != object or not infer_dtype(column).startswith("mixed"):
            return arrow.array(column, from_pandas=True)
    return arrow.array([value_text(value) for value in column], arrow.string())


def shown(column: arrow.Array) -> list[object]:
    """Return values as messages show them; a time that Python can't hold as its number and type."""
    return [_python(value) for value in column]


def _python(value: arrow.Scalar) -> object:
    try:
        found: object = value.as_py()
    except (OverflowError, ValueError):  # A year after 9999, or a time zone that is none.
        return f"{value.value} as {value.type}"
    return found


def small_frame(
    table: arrow.Table, ids: Collection[str], name: str, *, texts: bool, people: bool = False
) -> pd.DataFrame:
    """Return a table for pandas with its ids as strings; with ``texts`` other columns, too.

    Left to pandas, whole numbers become floats in a column that lacks one, and those that do not
    fit into a float become others. Times stay what they are, value by value, but for those that
    Python can't hold, which say nothing. In lists pandas chooses one type for what all of them
    hold: those of ``people`` are read one at a time. So are maps, which a file that pandas writes
    would give back as lists: the table would no longer be the one that was written. Numbers of rows
    that pandas wrote beside them are no column, and what was its index is one.
    """
    named = [n for n, column in enumerate(table.column_names) if not _NUMBERS.fullmatch(column)]
    table = table.select(named)
    for place, field in enumerate(table.schema):
        if _may_be_no_time(field.type):
            table = table.set_column(place, field.name, _times_of_python(table.column(place)))
    frame = _of_pandas(table)
    for place, column in enumerate(table.column_names):
        values = table.column(place).combine_chunks()
        if column in ids:
            frame[column] = as_text(values, column, name).to_numpy(zero_copy_only=False)
        elif texts and not _has_parts(values.type):
            frame[column] = plain_text(values).to_numpy(zero_copy_only=False)
        elif (people and arrow.types.is_nested(values.type)) or _holds_map(values.type):
            frame[column] = np.array([_parts_text(value) for value in values], dtype=object)
    return frame


def _of_pandas(table: arrow.Table) -> pd.DataFrame:
    """Return a table's frame, with none of its columns as index: all keep their names and places.

    What pandas noted of their types counts where it can be read: they may be another library's.
    """
    frame: pd.DataFrame
    try:
        if facts := table.schema.pandas_metadata:
            facts = json.dumps(facts | {"index_columns": [], "column_indexes": []})
            table = table.replace_schema_metadata({**table.schema.metadata, b"pandas": facts})
        frame = table.to_pandas()
    except (KeyError, TypeError, ValueError, RecursionError):
        frame = table.replace_schema_metadata(None).to_pandas()
    return frame


def _parts_text(value: arrow.Scalar) -> str | None:
    """Return a list, or what else has parts, as text; None where Python can't hold a part."""
    try:
        return value_text(value.as_py())
    except (OverflowError, ValueError):
        return None


def _may_be_no_time(kind: arrow.DataType) -> bool:
    """Return whether Python may fail at a value of a type: pandas has far times without a zone."""
    zoned = arrow.types.is_timestamp(kind) and kind.tz is not None
    return bool(zoned or arrow.types.is_date(kind))


def _times_of_python(column: arrow.ChunkedArray) -> arrow.ChunkedArray:
    """Return dates or times, null outside of the years that Python knows."""
    seconds = times_as_numbers(column)
    # A day less at both ends: in its zone a time has another date.
    inside = pc.and_(pc.greater_equal(seconds, _YEAR_1), pc.less(seconds, _YEAR_9999))
    return column if pc.all(inside).as_py() else pc.if_else(inside, column, None)


def _holds_map(kind: arrow.DataType) -> bool:
    """Return whether values of a type are maps, or hold some."""
    parts = (kind.field(place).type for place in range(kind.num_fields))
    return bool(arrow.types.is_map(kind)) or any(map(_holds_map, parts))


def _has_parts(kind: arrow.DataType) -> bool:
    return bool(arrow.types.is_nested(kind) or arrow.types.is_temporal(kind))


def cast(column: arrow.Array, *kinds: arrow.DataType) -> arrow.Array:
    """Return text as the first type that all of it fits, or else as it is.

    Only where nothing reads otherwise for it: whether all of it fits depends on every row.
    """
    if arrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if arrow.types.is_string(column.type):
        for kind in kinds:
            with suppress(arrow.ArrowInvalid):
                found = column.cast(kind)
                if not _only_arrow_reads(column, found):
                    return found
    return column


def _only_arrow_reads(text: arrow.Array, found: arrow.Array) -> bool:
    """Return whether :mod:`common.tables.checks` would not take some text for such a value."""
    if arrow.types.is_floating(found.type):
        return bool(pc.any(pc.is_nan(found)).as_py())  # "NAN" is no number.
    if arrow.types.is_integer(found.type):
        return bool(pc.any(pc.match_substring(text, "x", ignore_case=True)).as_py())  # "0x10"
    return False


def times_as_numbers(column: arrow.Array) -> arrow.Array:
    """Return times as epoch seconds; text that is not all of one form passes as it is."""
    seconds = arrow.timestamp("s")
    column = cast(column, arrow.int64(), arrow.timestamp("s", tz="UTC"), seconds)
    if arrow.types.is_date(column.type):
        column = column.cast(seconds)
    if arrow.types.is_timestamp(column.type):
        zone = column.type.tz
        return column.cast(arrow.timestamp("s", tz=zone), safe=False).cast(arrow.int64())
    return column
