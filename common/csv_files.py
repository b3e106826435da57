"""CSV files as they come from other programs: their header, their shape and their encoding."""

import csv
import itertools
from pathlib import Path

from common.checks import Checker
from common.errors import DataError


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
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = (row for row in itertools.islice(csv.reader(file), 1, None) if row)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise malformed_row(path, number, len(row), len(header), ",".join(row))


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
