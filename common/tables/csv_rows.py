"""The rows of a CSV file that are not too long: whether one is read follows from that row alone.

Arrow reads in blocks and gives up at a row that lies in three of them. For one that is longer than
a block, others' rows, which decide where it begins, would decide whether the file can be read.
"""

import mmap
import os
import re
from pathlib import Path

import numpy as np

from common.errors import DataError

#: How long a row may be, without its line end. A public constant, far below a block of Arrow's.
MAX_ROW_BYTES = 1 << 18

_BOM = b"\xef\xbb\xbf"
# As Arrow reads it: a mark that begins a value quotes it, and any other is a character.
_VALUES = rb'(?:"(?:[^"]++|"")*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+|,)*+'
_ROWS = re.compile(rb"(?:" + _VALUES + rb"(?:\r\n?|\n))*+")
_ROW = re.compile(_VALUES + rb"(\r\n?|\n|\Z)")
_WORD = np.dtype("<u8")


class BoundedRows:
    """A CSV file as Arrow reads one, with a malformed row in place of each that is too long.

    Every read ends where a row does, so that no row lies in two blocks.

    Attributes
    ----------
    stand_in
        The row that stands for one that is too long: it has a value more than there are columns.
    first
        Of the first such row: its bytes, and how it begins; None where there is none.
    count
        How many there are so far.
    taken
        How many bytes of the file have been read.
    """

    def __init__(self, path: Path, columns: int, max_row: int = MAX_ROW_BYTES) -> None:
        self.stand_in = "\0too long" + "," * columns
        self.first: tuple[int, str] | None = None
        self.count = self.taken = 0
        self._path, self._max = path, max_row
        self._file = path.open("rb")

    @property
    def closed(self) -> bool:
        """Whether nothing can be read any more."""
        return self._file.closed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, size: int) -> bytes | memoryview:
        """Return whole rows, of ``size`` bytes together at most; none at the end of the file.

        Raises
        ------
        DataError
            If the header is too long, or the file has become shorter than what was read of it.
        """
        assert size > self._max + len("\r\n"), "no room for a row"
        self._file.seek(self.taken)
        block = self._file.read(size)
        if not block and os.fstat(self._file.fileno()).st_size < self.taken:
            raise written_anew(self._path)
        last = len(block) < size
        start = first = len(_BOM) if not self.taken and block.startswith(_BOM) else 0
        while start < len(block):
            stop = min(start + self._max + 1, len(block))
            # Whether a line feed follows is not known yet.
            cut = stop == len(block) and not last and block.endswith(b"\r")
            if (end := _end_of_rows(block, start, stop - cut)) > start:
                start = end
            elif last and len(block) - start <= self._max:
                if not self.taken and start == first:
                    # Arrow takes the names of columns without a line end for an empty file.
                    self.taken = len(block)
                    return block + b"\n"
                start = len(block)
            elif last or len(block) - start > self._max + 1:
                if not self.taken and start == first:
                    raise DataError(
                        f"{self._path.name}: its first line, which names the columns, is longer "
                        f"than {self._max:,} bytes: shorten it"
                    )
                return block[:start] + self._pass_over(self.taken + start)
            else:
                break
        self.taken += start
        return memoryview(block)[:start]

    def _pass_over(self, start: int) -> bytes:
        """Go on behind a row that is too long; return the line that stands for it."""
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            found = _ROW.match(text, start)
            # A value that is closed nowhere takes in all that follows: check_quotes says so.
            end, self.taken = (found.start(1), found.end()) if found else (len(text), len(text))
            if self.first is None:
                self.first = end - start, text[start : start + 80].decode("utf-8", "replace")
        self.count += 1
        return self.stand_in.encode() + b"\n"


def written_anew(path: Path) -> DataError:
    """Return the error of a file that was emptied under the reader: the rest would be missing."""
    return DataError(
        f"{path.name} was written anew while it was read. What to do: read it again once it is "
        "whole; better, let exports write another file and rename it to this one"
    )


def _end_of_rows(block: bytes, start: int, stop: int) -> int:
    """Return where the last row ends that lies between two places, its line end included.

    At ``start`` begins a row. If none ends before ``stop``, that is ``start``.
    """
    end = 1 + max(block.rfind(b"\n", start, stop), block.rfind(b"\r", start, stop))
    if not end:
        return start
    if block.find(b'"', start, end) >= 0 and not all_in_lines(block, start, end):
        found = _ROWS.match(block, start, stop)
        assert found is not None, "no rows match, too"
        end = found.end()
    if end > start and block[end - 1 : end + 1] == b"\r\n":
        end += 1
    return end


def all_in_lines(block: bytes, start: int, end: int) -> bool:
    """Return whether every line is a row: fast, for in most files they all are.

    Bit by bit: what lies behind an odd number of marks is in a value, if each of these marks begins
    one or is doubled. False where that is not so: :data:`_ROWS` then tells rows apart.
    """
    text = np.frombuffer(block, np.uint8, end - start, start)
    one = _WORD.type(1)
    marks, ends = _bits(text == ord('"')), _bits(text == ord("\n"))
    if block.find(b"\r", start, end) >= 0:
        ends |= _bits(text == ord("\r"))
    inside = marks.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        inside ^= inside << _WORD.type(shift)
    odd = np.bitwise_xor.accumulate(inside >> _WORD.type(63))
    inside[1:] ^= _WORD.type(0) - odd[:-1]
    before = marks | ends | _bits(text == ord(","))
    begins = before << one
    begins[0] |= one
    begins[1:] |= before[:-1] >> _WORD.type(63)
    return not (inside & (ends | marks & ~begins)).any()


def _bits(mask: np.ndarray) -> np.ndarray:
    """Return (ceil(n / 64),) words of the bits of (n,) bool, the first the lowest."""
    words = np.zeros(-(-len(mask) // 64), _WORD)
    packed = np.packbits(mask, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words
