"""CSV files as they come from other programs: their header, rows, quotation marks and encoding."""

import csv
import itertools
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.csv as arrow_csv

from common.errors import DataError
from common.tables.checks import Checker
from common.tables.csv_rows import MAX_ROW_BYTES, BoundedRows, written_anew

#: Arrow reads up to 32 blocks ahead, so these are small, and several are checked together.
BLOCK_BYTES = 1 << 20
BLOCKS_TOGETHER = 8
#: What a cell holds that holds nothing. "NA" is not among them: it is a brand and a country.
NO_VALUE = ["", "NaN", "nan", "NULL", "null"]

# A value in quotation marks, where values begin: what is in it, the mark that ends it, and what
# stands between that and the next value, where nothing should.
_QUOTED = re.compile(rb'(?:\A(?:\xef\xbb\xbf)?|(?<=[,\r\n]))"((?:[^"]++|"")*+)("?)([^,\r\n]*+)')


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


def check_names(path: Path, header: list[str]) -> None:
    """Raise unless every column has a name, and one of its own."""
    unnamed = [number for number, name in enumerate(header, start=1) if not name.strip()]
    if unnamed:
        raise DataError(
            f"{path.name}: column {unnamed[0]} has no name: name it, or leave it out (numbers of "
            "rows, as pandas writes them without index=False?)"
        )
    Checker(path.name).require(header, ())


def csv_blocks(
    path: Path, columns: list[str], checker: Checker
) -> Iterator[tuple[arrow.Table, int, int]]:
    """Yield some columns of a CSV file block by block, as strings; and (done, total) of its bytes.

    A row is malformed that has more or fewer values than there are columns, or more than
    :data:`MAX_ROW_BYTES`: it is refused or set aside as any other bad row.

    Raises
    ------
    DataError
        If a row is malformed and bad rows are refused, a quotation mark is not closed, or the file
        was written anew meanwhile.
    pyarrow.ArrowInvalid
        If the file can't be read, for instance for bytes that are no UTF-8.
    """
    first: list[arrow_csv.InvalidRow] = []
    malformed = 0

    def on_malformed(row: arrow_csv.InvalidRow) -> str:
        nonlocal malformed
        malformed += 1
        if not first:
            first.append(row)
        return "skip" if checker.bad_rows == "set-aside" else "error"

    total, rows = path.stat().st_size, 1  # The header.
    with closing(BoundedRows(path, len(csv_header(path)))) as file:
        try:
            # One thread, so that a malformed row comes with its number.
            reader = arrow_csv.open_csv(
                file,
                arrow_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
                # Else what others' rows add up to decides whether a value over several lines lies
                # in one block, and the file can be read.
                arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_malformed),
                arrow_csv.ConvertOptions(
                    include_columns=columns,
                    column_types=dict.fromkeys(columns, arrow.string()),
                    null_values=NO_VALUE,
                    strings_can_be_null=True,
                ),
            )
            while batches := list(itertools.islice(reader, BLOCKS_TOGETHER)):
                block = arrow.Table.from_batches(batches)
                rows += len(block)
                yield block, file.taken, total
        except arrow.ArrowInvalid as error:
            if not first:
                raise
            check_quotes(path)  # An open one would be why, and the row not the one to correct.
            raise _malformed_row(path, first[0], file, checker) from error
    check_quotes(path, rows + malformed)
    for reason, count in (
        ("not as many values as columns", malformed - file.count),
        (f"longer than {MAX_ROW_BYTES} bytes", file.count),
    ):
        if count:
            checker.set_aside[f"{checker.table}: {reason}"] += count


def _malformed_row(
    path: Path, row: arrow_csv.InvalidRow, file: BoundedRows, checker: Checker
) -> DataError:
    """Return the error of a row that is too long, or has more or fewer values than columns."""
    aside = '; or set bad rows aside with bad_rows = "set-aside"' if checker.may_set_aside else ""
    if file.first is not None and row.text.strip() == file.stand_in:
        length, text = file.first
        fault = f"is {length:,} bytes long, and may be {MAX_ROW_BYTES:,}"
        advice = "shorten it, or leave it out"
    else:
        text = row.text
        columns = row.expected_columns
        fault = f"has {row.actual_columns} values where the header names {columns} columns"
        advice = "correct it (is a comma in a value without quotes?)"
    return DataError(
        f"{path.name}: row {row.number - 1} {fault}: {text[:80]!r}. What to do: {advice}{aside}"
    )


def check_quotes(path: Path, rows: int | None = None) -> None:
    """Raise if a value takes in the rows that follow, for its quotation mark is closed nowhere.

    Readers end such a value at the next mark of any other, or at the file's end, and say nothing:
    of the rows in between nothing would be left, whosever they are.

    Parameters
    ----------
    rows
        How many were read, the header among them. Where there are as many lines, no value goes over
        several of them, and only the last can have one that ends nowhere. None: not known.

    Raises
    ------
    DataError
        Naming the line, or if nothing is left of a file that was read.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise written_anew(path)
        lines = 0 if rows is None else _lines(iter(partial(file.read, BLOCK_BYTES), b""))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = _last_line(text) if lines and lines == rows else 0
            for found in _QUOTED.finditer(text, start):
                value, end, rest = found.groups()
                if not end or (rest and (b"\n" in value or b"\r" in value)):
                    until, step = found.start(1), BLOCK_BYTES
                    before = (text[k : min(k + step, until)] for k in range(0, until, step))
                    raise DataError(
                        f"{path.name} cannot be read: a quotation mark in line {_lines(before)} of "
                        "the file is not closed where its value ends, and would make the rows that "
                        "follow a part of it. What to do: close it, or double it if it is part of "
                        "the value"
                    )


def _last_line(text: mmap.mmap) -> int:
    """Return where the last line begins, reading no more of the file than that."""
    end = len(text)
    while end and text[end - 1 : end] in (b"\n", b"\r"):
        end -= 1
    start = text.rfind(b"\n", 0, end) + 1
    return max(start, text.rfind(b"\r", start, end) + 1)


def _lines(blocks: Iterable[bytes]) -> int:
    """Return how many lines a text has, ended in whatever way."""
    lines, last = 0, b"\n"
    for block in blocks:
        # Where there are many, NumPy counts them in an eighth of the time.
        lines += int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))
        if b"\r" in block:
            lines += block.count(b"\r") - block.count(b"\r\n")
        lines -= last == b"\r" and block.startswith(b"\n")
        last = block[-1:]
    return lines + (last not in (b"\n", b"\r"))


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
