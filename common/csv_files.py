"""CSV files as they come from other programs: their header, their shape and their encoding."""

import csv
import mmap
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from common.checks import Checker
from common.errors import DataError

# A value in quotation marks, where values begin: what is in it, the mark that ends it, and what
# stands between that and the next value, where nothing should.
_QUOTED = re.compile(rb'(?:\A(?:\xef\xbb\xbf)?|(?<=[,\r\n]))"((?:[^"]++|"")*+)("?)([^,\r\n]*+)')
_BLOCK = 1 << 20


def csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV file."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except csv.Error as error:
        raise DataError(f"{path.name} cannot be read: {error}") from error
    if not header:
        raise DataError(f"{path.name} is empty: its first line must name the columns")
    if len(header) == 1 and (mark := next((m for m in ";\t|" if m in header[0]), None)):
        raise DataError(f"{path.name} separates columns by {mark!r}: separate them by commas")
    return header


def check_shape(path: Path, header: list[str]) -> None:
    """Raise unless every row has as many values as there are columns, each of which has a name.

    Pandas would take the first column for row labels where every row has one value more, and so
    move all others by one; and it would name columns itself.
    """
    unnamed = [number for number, name in enumerate(header, start=1) if not name.strip()]
    if unnamed:
        raise DataError(
            f"{path.name}: column {unnamed[0]} has no name: name it, or leave it out (numbers of "
            "rows, as pandas writes them without index=False?)"
        )
    Checker(path.name).require(header, ())
    lines = number = 0
    with path.open(newline="", encoding="utf-8-sig") as file:
        for lines, row in enumerate(csv.reader(file), start=1):
            if lines == 1 or not row:
                continue
            number += 1
            if len(row) != len(header):
                raise malformed_row(path, number, len(row), len(header), ",".join(row))
    check_quotes(path, lines)


def check_quotes(path: Path, rows: int) -> None:
    """Raise if a value takes in the rows that follow, for its quotation mark is closed nowhere.

    Readers end such a value at the next mark of any other, or at the file's end, and say nothing:
    of the rows in between nothing would be left, whosever they are.

    Parameters
    ----------
    rows
        How many were read, the header among them. Where there are as many lines, no value goes over
        several of them, and there is nothing to look for.

    Raises
    ------
    DataError
        Naming the line.
    """
    with path.open("rb") as file:
        if _lines(iter(partial(file.read, _BLOCK), b"")) == rows:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            for found in _QUOTED.finditer(text):
                value, end, rest = found.groups()
                if not end or (rest and (b"\n" in value or b"\r" in value)):
                    until = found.start(1)
                    before = (text[k : min(k + _BLOCK, until)] for k in range(0, until, _BLOCK))
                    raise DataError(
                        f"{path.name} cannot be read: a quotation mark in line {_lines(before)} of "
                        "the file is not closed where its value ends, and would make the rows that "
                        "follow a part of it. What to do: close it, or double it if it is part of "
                        "the value"
                    )


def _lines(blocks: Iterable[bytes]) -> int:
    """Return how many lines a text has, ended in whatever way."""
    lines, last = 0, b"\n"
    for block in blocks:
        lines += block.count(b"\n")
        if returns := block.count(b"\r"):
            lines += returns - block.count(b"\r\n")
        lines -= last == b"\r" and block.startswith(b"\n")
        last = block[-1:]
    return lines + (last not in (b"\n", b"\r"))


def malformed_row(path: Path, row: int, found: int, expected: int, text: str) -> DataError:
    """Return the error of a row that has more or fewer values than there are columns."""
    return DataError(
        f"{path.name}: row {row} has {found} values where the header names {expected} columns: "
        f"{text[:80]!r}. What to do: correct it (is a comma in a value without quotes?)"
    )


def not_utf8(path: Path) -> DataError:
    """Return the error of a file in another encoding, with the first line that shows it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    break  # UTF-16: not a word of it can be read in this way
                at = max(error.start - 20, 0)
                words = line[at : at + 60].decode("cp1252", "replace").strip()
                return DataError(
                    f"{path.name} is not UTF-8: save it as UTF-8. Line {number} of the file, read "
                    f"as Windows-1252, says {words!r}"
                )
    return DataError(f"{path.name} is not UTF-8: save it as UTF-8")
