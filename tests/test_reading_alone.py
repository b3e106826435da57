"""What one value reads as follows from that value alone, whatever stands in other rows.

Else one customer's record would change what is read of all others, and no noise is meant for that.
"""

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.sql_rows import _attribute, _id
from common.errors import DataError
from common.tables import checks
from common.tables.columns import as_text, cast, plain_text, times_as_numbers, to_arrow, value_text
from common.tables.folders import read_small
from common.tables.interactions import InteractionsBuilder

NOW = 1_800_000_000
COLUMNS = ["merchant_id", "user_id", "item_id", "timestamp", "behavior"]
WHOLE = st.integers(-(2**53), 2**53)
FLOATS = st.one_of(
    st.floats(allow_infinity=False),
    WHOLE.map(float),
    st.sampled_from([-0.0, 0.5, 1e10, 1e16, 1e22, 2.0**53, 2.0**63, 4006381333931.5, 1e-5]),
)
KINDS: dict[str, tuple[arrow.DataType, st.SearchStrategy[Any]]] = {
    "float64": (arrow.float64(), FLOATS),
    "float32": (arrow.float32(), st.floats(width=32)),
    "float16": (arrow.float16(), st.floats(width=16)),
    "int64": (arrow.int64(), st.integers(-(2**63), 2**63 - 1)),
    "uint64": (arrow.uint64(), st.integers(0, 2**64 - 1)),
    "bool": (arrow.bool_(), st.booleans()),
    "decimal": (
        arrow.decimal128(24, 4),
        st.decimals(-(10**12), 10**12, places=4, allow_nan=False, allow_infinity=False),
    ),
    "whole decimal": (arrow.decimal128(20, 0), st.integers(-(10**18), 10**18).map(Decimal)),
    "string": (arrow.string(), st.text(max_size=5)),
    "large string": (arrow.large_string(), st.text(max_size=5)),
    "words": (arrow.dictionary(arrow.int8(), arrow.string()), st.sampled_from(["", "a", "12.0"])),
    "codes": (arrow.dictionary(arrow.int8(), arrow.float64()), st.sampled_from([12.0, 0.5, 1e22])),
}


def texts(values: list[Any], kind: arrow.DataType) -> list[str | None]:
    array = arrow.array(values, kind)
    found: list[str | None] = as_text(array, "user_id", "t").to_pylist()
    # Attributes of customers are read by the same rule; there "" is as good as nothing.
    said = plain_text(array).to_pylist()
    assert [v or None for v in said if v not in ("inf", "-inf")] == [
        v for v, plain in zip(found, said, strict=True) if plain not in ("inf", "-inf")
    ]
    return found


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_value_reads_as_it_does_alone(name: str, data: st.DataObject) -> None:
    kind, strategy = KINDS[name]
    values = data.draw(st.lists(st.none() | strategy, min_size=1, max_size=8))
    assert texts(values, kind) == [texts([value], kind)[0] for value in values]


PARTS: dict[str, tuple[arrow.DataType, list[Any]]] = {
    "list": (arrow.list_(arrow.int64()), [[25, 3], [None, 1], [], None, [2**53 + 1]]),
    "flags": (arrow.list_(arrow.bool_()), [[True], [None, False], None]),
    "record": (arrow.struct([("a", arrow.int64())]), [{"a": 25}, {"a": None}, None]),
    "map": (arrow.map_(arrow.string(), arrow.int64()), [[("a", 25)], [("b", None)], None]),
    "times": (arrow.list_(arrow.timestamp("us")), [[0], [10**18], [None], None]),
    "day": (arrow.date32(), [0, None, 20_000]),
    "time": (arrow.timestamp("us"), [0, 1, None, 10**17]),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_known_of_a_customer_reads_alone_if_it_has_parts(tmp_path: Path, name: str) -> None:
    """Pandas chooses one type for all that all lists of a column hold."""
    kind, values = PARTS[name]

    def read(given: list[Any]) -> list[str]:
        users = [f"u{k}" for k in range(len(given))]
        table = arrow.table({"user_id": users, "known": arrow.array(given, kind)})
        pq.write_table(table, tmp_path / "customers.parquet")
        people = read_small(tmp_path / "customers.parquet")
        return [value_text(value) or "" for value in people["known"].astype(object)]

    assert read(values) == [read([value])[0] for value in values]
    assert len(set(read(values))) > 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | WHOLE, min_size=1, max_size=6))
def test_a_whole_number_is_the_same_in_every_type(values: list[int | None]) -> None:
    """Pandas makes floats of whole numbers as soon as one is missing; a database decimals."""
    plain = [None if value is None else str(value) for value in values]
    for kind in (arrow.int64(), arrow.float64(), arrow.decimal128(20, 2), arrow.decimal128(18, 0)):
        assert texts(values, kind) == plain
    assert [value_text(value) for value in values] == plain
    assert as_text(to_arrow(pd.Series(values, dtype="Int64")), "c", "t").to_pylist() == plain
    assert as_text(to_arrow(pd.Series(values, dtype=object)), "c", "t").to_pylist() == plain


@settings(max_examples=200, deadline=None)
@given(FLOATS | st.decimals(allow_infinity=False, allow_nan=False, places=6))
def test_files_and_databases_write_a_number_alike(value: float | Decimal) -> None:
    if isinstance(value, Decimal):
        column = arrow.array([value])
    else:
        column = arrow.array([value], arrow.float64())
    assert _id(value) == _attribute(value) == as_text(column, "c", "t")[0].as_py()


MIXED = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(MIXED | st.sampled_from([12.0, Decimal("12.50"), 2**63, 1e22]), min_size=1))
def test_a_frame_of_mixed_values_reads_each_alone(values: list[object]) -> None:
    def read(column: list[object]) -> list[str | None]:
        found: list[str | None] = as_text(
            to_arrow(pd.Series(column, dtype=object)), "c", "t"
        ).to_pylist()
        return [None if v in ("inf", "-inf") else v for v in found]

    assert read(values) == [read([value])[0] for value in values]


def test_large_and_odd_floats_have_the_text_that_is_written_here() -> None:
    given = [4006381333931.0, 12.5, 1e16, 1e22, -0.0, 2.0**53, 1e-7, math.nan, math.inf, -math.inf]
    said = ["4006381333931", "12.5", "1" + "0" * 16, "1" + "0" * 22, "0", "9007199254740992"]
    assert texts(given, arrow.float64()) == [*said, "1e-07", None, None, None]


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="'user_id' holds what is no text"):
        as_text(arrow.array([b"\xff"]), "user_id", "interactions.parquet")


@pytest.mark.parametrize("odd", [math.inf, math.nan, None])
@pytest.mark.parametrize("column", ["user_id", "item_id", "session_id"])
def test_an_id_that_is_no_number_is_a_bad_row_with_its_number(
    column: str, odd: float | None
) -> None:
    rows = {
        "merchant_id": arrow.array(["m", "m"]),
        "user_id": arrow.array([1.0, 2.0]),
        "item_id": arrow.array([1.0, 2.0]),
        "timestamp": arrow.array([1, 2]),
        "behavior": arrow.array(["view", "view"]),
        "session_id": arrow.array([1.0, 2.0]),
    }
    rows[column] = arrow.array([1.0, odd], arrow.float64())
    builder = InteractionsBuilder(checks.Checker("interactions"), None, rows, NOW)
    with pytest.raises(DataError, match=f"column '{column}' is empty in row 2"):
        builder.add(arrow.table(rows))


# What Arrow, pandas and Python read differently, or only in some company.
ODD = [
    *("0x10", "nan", "NAN", "-nan", "nan(1)", "inf", "Infinity", "1e400", "1e-400", "5.", ".5"),
    *(" 5", "5 ", "+5", "0010", "1_0", "1,5", "1e5", "True", "today", "now", "NaT", "NA", "", "x"),
    *("99999999999999999999", "18446744073709551615", "-1", "9223372036854775808", "1700000000.5"),
    *("2024-05-31", "2024-05-31T14:00:00Z", "2024-05-31T14:00:00", "2024-05-31T14:00:00+02:00"),
    *("2024-05-31T14:00:00.5Z", "2024-05-31T14:00:00.123456789Z", "2024-05-31 14:00", "20240531"),
    *("0001-01-01", "9999-12-31", "1600-01-01", "2300-01-01T00:00:00Z", "2024-02-30", "2024-W22-5"),
]
TEXTS = st.sampled_from(ODD) | st.text("0123456789+-.eExnaT:Z ", max_size=12)


def number(column: list[str], kind: arrow.DataType) -> list[tuple[float, bool, bool]]:
    raw = cast(arrow.array(column, kind), arrow.float64()).to_pandas()
    values, faults = checks.numbers("rating", raw)
    return list(zip(values.tolist(), faults[0][2].tolist(), raw.isna().tolist(), strict=True))


def seconds(column: list[str], kind: arrow.DataType) -> list[tuple[float, bool]]:
    found, wrong = checks.times(times_as_numbers(arrow.array(column, kind)).to_pandas())
    return list(zip(found.tolist(), wrong.tolist(), strict=True))


@pytest.mark.parametrize("kind", [arrow.string(), arrow.large_string()], ids=str)
@pytest.mark.parametrize("read", [number, seconds])
@settings(max_examples=150, deadline=None)
@given(column=st.lists(TEXTS, min_size=2, max_size=5))
def test_a_number_or_time_in_words_reads_as_it_does_alone(
    read: Any, kind: arrow.DataType, column: list[str]
) -> None:
    assert repr(read(column, kind)) == repr([read([text], kind)[0] for text in column])


def test_pairs_of_odd_words_read_as_they_do_alone() -> None:
    for read in (number, seconds):
        alone = {text: repr(read([text], arrow.string())[0]) for text in ODD}
        for text in ODD:
            for other in ODD:
                found = read([text, other], arrow.string())[0]
                assert repr(found) == alone[text], (text, other)


def test_no_time_is_whenever_the_table_is_read() -> None:
    for word in ("now", "today", "NOW"):
        assert np.isnan(seconds([word], arrow.string())[0][0]), word
