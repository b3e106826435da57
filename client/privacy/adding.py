"""Noise into rows of a table: drawn, added in float64 and rounded once."""

from functools import partial
from typing import Protocol

import numpy as np
import torch

from client.privacy.compiling import FETCH, address, fetched_ahead, function
from client.privacy.moving import put_rows
from client.privacy.noise import NoiseSource, SystemNoise
from client.privacy.normals import BITS, CELLS, EXPONENT, MOST

# First the few values that are made otherwise: where each goes in the table, over its place, and
# what is there then, over itself. Then for each row: its place in the table, and its noise's size;
# for each value: a cell's low edge and the place above it, as in :mod:`client.privacy.normals`,
# times the size, plus what is there. Rows lie apart, so each is fetched some rows ahead. Last the
# few values, over what the loop has put there.
_LOOP = f"""
{FETCH}

define void @add_noise(ptr noalias %table, ptr noalias %rows, ptr noalias %scales, i64 %count,
                       i64 %width, ptr noalias %words, ptr noalias %lows, ptr noalias %places,
                       ptr noalias %values, i64 %few) {{
start:
  br label %next_few

next_few:
  %found = phi i64 [0, %start], [%found_next, %one_of_few]
  %more_few = icmp slt i64 %found, %few
  br i1 %more_few, label %one_of_few, label %next_row

one_of_few:
  %few_place_at = getelementptr i64, ptr %places, i64 %found
  %few_place = load i64, ptr %few_place_at
  %few_at = udiv i64 %few_place, %width
  %few_before = mul i64 %few_at, %width
  %few_column = sub i64 %few_place, %few_before
  %few_row_at = getelementptr i64, ptr %rows, i64 %few_at
  %few_row = load i64, ptr %few_row_at
  %few_first = mul i64 %few_row, %width
  %few_there = add i64 %few_first, %few_column
  store i64 %few_there, ptr %few_place_at
  %few_scale_at = getelementptr double, ptr %scales, i64 %few_at
  %few_scale = load double, ptr %few_scale_at
  %few_value_at = getelementptr double, ptr %values, i64 %found
  %few_normal = load double, ptr %few_value_at
  %few_noise = fmul double %few_normal, %few_scale
  %few_weight_at = getelementptr float, ptr %table, i64 %few_there
  %few_weight = load float, ptr %few_weight_at
  %few_exact = fpext float %few_weight to double
  %few_total = fadd double %few_noise, %few_exact
  store double %few_total, ptr %few_value_at
  %found_next = add i64 %found, 1
  br label %next_few

next_row:
  %at = phi i64 [0, %next_few], [%at_next, %row_done]
  %more_rows = icmp slt i64 %at, %count
  br i1 %more_rows, label %row, label %put_next

row:
  {fetched_ahead("%at", "%count", "%rows", ["%table"], "float", 128)}
  %row_at = getelementptr i64, ptr %rows, i64 %at
  %row_number = load i64, ptr %row_at
  %row_first = mul i64 %row_number, %width
  %weights = getelementptr float, ptr %table, i64 %row_first
  %scale_at = getelementptr double, ptr %scales, i64 %at
  %scale = load double, ptr %scale_at
  %word_first = mul i64 %at, %width
  %row_words = getelementptr i64, ptr %words, i64 %word_first
  br label %value

value:
  %column = phi i64 [0, %row], [%column_next, %value]
  %word_at = getelementptr i64, ptr %row_words, i64 %column
  %word = load i64, ptr %word_at
  %cell = and i64 %word, {CELLS - 1}
  %low_at = getelementptr double, ptr %lows, i64 %cell
  %low = load double, ptr %low_at
  %mantissa = lshr i64 %word, {BITS}
  %bits = or i64 %mantissa, {int(EXPONENT)}
  %above = bitcast i64 %bits to double
  %normal = fadd double %low, %above
  %noise = fmul double %normal, %scale
  %weight_at = getelementptr float, ptr %weights, i64 %column
  %weight = load float, ptr %weight_at
  %exact = fpext float %weight to double
  %total = fadd double %exact, %noise
  %rounded = fptrunc double %total to float
  store float %rounded, ptr %weight_at
  %column_next = add i64 %column, 1
  %more_values = icmp slt i64 %column_next, %width
  br i1 %more_values, label %value, label %row_done

row_done:
  %at_next = add i64 %at, 1
  br label %next_row

put_next:
  %put = phi i64 [0, %next_row], [%put_after, %put_one]
  %more_to_put = icmp slt i64 %put, %few
  br i1 %more_to_put, label %put_one, label %done

put_one:
  %put_value_at = getelementptr double, ptr %values, i64 %put
  %put_value = load double, ptr %put_value_at
  %put_rounded = fptrunc double %put_value to float
  %put_place_at = getelementptr i64, ptr %places, i64 %put
  %put_there = load i64, ptr %put_place_at
  %put_at = getelementptr float, ptr %table, i64 %put_there
  store float %put_rounded, ptr %put_at
  %put_after = add i64 %put, 1
  br label %put_next

done:
  ret void
}}
"""


class Adder(Protocol):
    """Adds noise to a few rows of a table at a time.

    Attributes
    ----------
    rows
        How many at most.
    """

    rows: int

    def add(self, table: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """Add N(0, scales²) to some rows of a contiguous (N, D) float32 table.

        Parameters
        ----------
        rows
            (R,) int64, ascending, each once.
        scales
            (R,) float64.
        """

    def close(self) -> None:
        """Give back the room that it took."""


def adder(source: NoiseSource, width: int) -> Adder:
    """Return what adds ``source``'s noise to rows of ``width`` values."""
    if isinstance(source, SystemNoise) and width <= MOST and _loop() is not None:
        return CompiledAdder(source, width)
    return NumpyAdder(source, width)


class NumpyAdder:
    """See :class:`Adder`; for any source."""

    def __init__(self, source: NoiseSource, width: int) -> None:
        self.rows = max(1, MOST // max(width, 1))
        self._source = source
        self._noise = np.empty((self.rows, width))
        self._present = np.empty((self.rows, width), np.float32)

    def add(self, table: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """See :class:`Adder`."""
        noise, present = self._noise[: len(rows)], self._present[: len(rows)]
        # "clip" only to write into ``out`` unbuffered.
        table.take(rows, axis=0, out=present, mode="clip")
        self._source.fill(noise)
        # torch broadcasts along rows twice as fast as numpy.
        torch.from_numpy(noise).mul_(torch.from_numpy(scales).unsqueeze(1))
        noise += present
        present[...] = noise
        put_rows(table, rows, present)

    def close(self) -> None:
        """See :class:`Adder`."""
        self._noise, self._present = np.empty((0, 0)), np.empty((0, 0), np.float32)


class CompiledAdder:
    """See :class:`Adder`; what :class:`NumpyAdder` makes of the same words, to the last bit."""

    def __init__(self, source: SystemNoise, width: int) -> None:
        self.rows = max(1, MOST // max(width, 1))
        self._source, self._normals = source, source.normals
        self._width = width
        loop = _loop()
        assert loop is not None
        self._loop, self._lows = loop, address(self._normals.lows, np.float64)

    def add(self, table: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """See :class:`Adder`."""
        count, width = len(rows), self._width
        if not count or not width:
            return
        # The loop checks nothing.
        if not (
            count == len(scales) <= self.rows
            and table.shape[1] == width
            and table.flags.writeable
            and 0 <= rows[0] <= rows[-1] < len(table)
        ):
            raise IndexError("noise for rows that are not there")
        starts = (address(table, np.float32), address(rows, np.int64))
        sizes = address(scales, np.float64)
        words, places, values = self._normals.draw(count * width)
        few = (address(places, np.int64), address(values, np.float64), len(places))
        self._loop(*starts, sizes, count, width, address(words, np.uint64), self._lows, *few)

    def close(self) -> None:
        """See :class:`Adder`."""
        self._source.rest()


_loop = partial(function, _LOOP, "add_noise", "pppiippppi")
