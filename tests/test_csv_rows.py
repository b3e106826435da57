"""Rows of CSV files whose length is bounded: which are passed on follows from each row alone."""

from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import DataError
from common.tables.csv_rows import BoundedRows, all_in_lines

BOUND = 20
HEADER = b"a,b\n"
# What lexers stumble over, in any order.
TEXTS = st.lists(st.sampled_from([b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"x", b"yz" * 4]))


def split(text: bytes) -> list[tuple[bytes, bytes]]:
    """Return rows and their line ends, byte by byte as Arrow's lexer goes."""
    rows, row, place, at = [], b"", "begin", 0
    while at < len(text):
        byte = text[at : at + 1]
        at += 1
        if place == "quoted":
            row += byte
            if byte == b'"' and text[at : at + 1] == b'"':
                row, at = row + b'"', at + 1
            elif byte == b'"':
                place = "plain"
        elif byte in b"\r\n":
            if byte == b"\r" and text[at : at + 1] == b"\n":
                byte, at = b"\r\n", at + 1
            rows.append((row, byte))
            row, place = b"", "begin"
        else:
            row += byte
            opens = byte == b'"' and place == "begin"
            place = "quoted" if opens else "begin" if byte == b"," else "plain"
    return [*rows, (row, b"")] if row else rows


def passed(path: Path, size: int) -> tuple[list[bytes], BoundedRows]:
    with closing(BoundedRows(path, 2, max_row=BOUND)) as file:
        parts = list(iter(lambda: bytes(file.read(size)), b""))
    assert file.closed
    assert file.taken == path.stat().st_size
    return parts, file


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows") / "table.csv"


@given(st.lists(TEXTS, max_size=12), st.integers(BOUND + 3, 90), st.booleans())
@example([[b"x" * BOUND, b"\r\n", b"x" * (BOUND + 1), b"\r\n"]], BOUND + 3, False)
@example([[b'"', b"\n" * 40, b'"', b"\n", b"x", b"\n"]], 30, True)
@example([[b"x", b"\n", b'"', b"\n" * 40]], 30, True)
@settings(max_examples=500, deadline=None)
def test_rows_above_the_bound_are_stood_in_for_and_others_are_as_they_were(
    path: Path, parts: list[list[bytes]], size: int, marked: bool
) -> None:
    text = b"\xef\xbb\xbf" * marked + HEADER + b"".join(map(b"".join, parts))
    path.write_bytes(text)
    begin = 3 * marked
    rows = split(text[begin:])
    found, file = passed(path, size)
    stand_in = file.stand_in.encode()
    expected = [row + end if len(row) <= BOUND else stand_in + b"\n" for row, end in rows]
    assert b"".join(found) == text[:begin] + b"".join(expected)
    long = [row for row, _ in rows if len(row) > BOUND]
    assert file.count == len(long)
    if long:
        assert file.first is not None
        assert file.first[0] == len(long[0])
    ends = {begin}
    for row in expected:
        ends.add(max(ends) + len(row))
    at = 0
    for part in found:
        at += len(part)
        assert at in ends, "no read ends within a row"
        assert len(part) <= size + len(stand_in) + 1


@given(TEXTS)
@settings(max_examples=500, deadline=None)
def test_lines_are_taken_for_rows_only_where_they_are(parts: list[bytes]) -> None:
    """Over several words of bits, and never wrong where marks stand at odd places."""
    text = b"ab,c\n" + b"".join(parts).rstrip(b"\r\n") + b"\n"
    if all_in_lines(text, 0, len(text)):
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
        assert [row for row, _ in split(text)] == lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_plain_and_quoted_lines_go_the_fast_way(end: bytes) -> None:
    rows = [b'1,"a ""b"", c","",x' + b"y" * k for k in range(70)] + [b'"2",3,"",""', b"4,5,,"]
    text = end.join(rows) + end
    starts = [0]
    for row in rows:
        starts.append(starts[-1] + len(row) + len(end))
    for start, stop in pairwise(starts):
        assert all_in_lines(text, start, stop)
        assert all_in_lines(text, start, len(text))
    for odd in (b'1,"a' + end + b'b"', b'of 6" or so', b'x,of 6",y"z'):
        assert not all_in_lines(text + odd + end, 0, len(text + odd + end))


def test_a_header_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a" * (BOUND + 1) + ",b\n1,2\n")
    with pytest.raises(DataError, match=r"table.csv: its first line.* shorten it"):
        passed(path, 40)


@pytest.mark.parametrize("left", [b"", HEADER])
def test_a_file_that_is_written_anew_is_no_shorter_table(tmp_path: Path, left: bytes) -> None:
    """An export that writes in place: what was not read yet would count as not there."""
    path = tmp_path / "rows.csv"
    path.write_bytes(HEADER + b"1,2\n" * 200_000)
    with closing(BoundedRows(path, 2, BOUND)) as file:
        assert bytes(file.read(32)) == HEADER + b"1,2\n" * 7
        path.write_bytes(left)
        # Some of the next are in memory already.
        with pytest.raises(DataError, match=r"rows.csv was written anew while it was read"):
            list(iter(lambda: bytes(file.read(1000)), b""))
