"""Columns of any source as Arrow arrays of the types that checks read."""

from contextlib import suppress

import pandas as pd
import pyarrow as arrow
import pyarrow.compute as pc

from common.errors import DataError


def as_text(column: arrow.Array, name: str, table: str) -> arrow.Array:
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
        raise DataError(f"{table}: column {name!r} holds {kind}: give ids as text")
    text = column.cast(arrow.string())
    return pc.if_else(pc.equal(text, ""), None, text)


def to_arrow(column: pd.Series) -> arrow.Array:
    """Return a pandas column for Arrow; one of mixed types as text."""
    try:
        return arrow.array(column, from_pandas=True)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return arrow.array(column.map(str, na_action="ignore"), from_pandas=True)


def cast(column: arrow.Array, *kinds: arrow.DataType) -> arrow.Array:
    """Return text as the first type that all of it fits, or else as it is."""
    if arrow.types.is_string(column.type):
        for kind in kinds:
            with suppress(arrow.ArrowInvalid):
                return column.cast(kind)
    return column


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
