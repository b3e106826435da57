"""From random words to normal values, fast and to the last tail: the table method.

The bell curve is covered with rectangles of equal width, each a whole number of 2^15 cells of one
mass (Marsaglia, MacLaren & Bray 1964, "A fast procedure for generating normal random variables").
The low 15 bits of a 64-bit word choose a cell, and so a rectangle, through a table; the other 49
the place in it. One value in seventy-five belongs to what rectangles leave out: the wedges under
the curve and the tails. Which ones is drawn by itself, as the gaps between them (geometric; Devroye
1986, chapter X.2). They are drawn by rejection from just that remainder, the tails by inversion, so
that the distribution is the normal one to float64's precision; no root, logarithm or sine is
computed for all the others.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.special import ndtr, ndtri

BITS = 15
CELLS = 1 << BITS
_WIDTH = 2.0**-6
# The upper 49 bits of a word, read as a mantissa under this exponent: offset + place · width.
_OFFSET = _WIDTH * 2.0 ** (BITS - 12)
EXPONENT = np.float64(_OFFSET).view(np.uint64)
#: Values that are drawn at a time, at most: they stay in the processor's cache.
MOST = 1 << 15
# Candidates for the remainder: 12 bits choose a bin, the next is the sign.
_BIN_BITS = 12
_BINS = 1 << _BIN_BITS
_SIGN = np.uint64(1 << _BIN_BITS)
_CANDIDATES = 1 << 12
_GAPS = 1 << 12

Words = Callable[[int], np.ndarray]


def _density(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    return found


class _Tables:
    """The rectangles under the curve, and an envelope of what they leave out.

    Attributes
    ----------
    left_out
        Mass of what the rectangles leave out: 1 less that of the 2^15 cells.
    lows
        (2^15,) left edge of each cell's rectangle, less the offset.
    tail_bin
        K, below.
    bins
        (2^12,) bin of the right half of the curve that a candidate falls into.
    edges, floors, scales
        (K + 2,) left edge of each bin, height of its rectangle, and the chance to accept a
        candidate for each unit of height left above that. Bin K is the tail; K + 1 takes nothing.
    tail
        Mass of the right tail.
    """

    def __init__(self) -> None:
        edges = np.arange(0.0, 8.0, _WIDTH)
        # The curve falls to the right: what fits below it is decided at the right edge.
        room = _density(edges + _WIDTH) * _WIDTH
        # The largest mass of a cell of which 2^14 fit under each half; less, for rounding.
        per_cell = room[:, None] / np.arange(1, CELLS // 64)
        cell = np.sort(per_cell, axis=None)[-CELLS // 2] * (1 - 1e-13)
        counts = np.floor(room / cell).astype(np.int64)
        self.left_out = 1 - CELLS * cell
        self.tail_bin = int((counts > 0).sum())
        edges, counts = edges[: self.tail_bin], counts[: self.tail_bin]
        lows = np.concatenate([np.repeat(edges, counts), np.repeat(-edges - _WIDTH, counts)])
        self.lows = lows - _OFFSET
        end = self.tail_bin * _WIDTH
        floors = counts * cell / _WIDTH
        self.tail = float(ndtr(-end))
        masses = np.append((_density(edges) - floors) * _WIDTH, self.tail)
        share = (_BINS - len(masses)) / masses.sum()
        # Rounded up: an envelope may be too high, never too low.
        cells = np.ceil(masses * share).astype(np.int64)
        cells = np.append(cells, _BINS - cells.sum())
        self.bins = np.repeat(np.arange(self.tail_bin + 2), cells)
        self.edges = np.append(edges, [end, 0.0])
        self.floors = np.append(floors, [0.0, 0.0])
        widths = np.append(np.full(self.tail_bin, _WIDTH), [self.tail, 0.0])
        self.scales = widths * share / np.maximum(cells, 1)


_tables = cache(_Tables)


class Normals:
    """Standard normal values from a source of random words; for one thread.

    Parameters
    ----------
    words
        ``n`` -> ``(n,)`` independent uniform uint64. They are overwritten here and need not
        outlive the next call.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._tables = _tables()
        self._rest = np.empty(0)
        # Places of the remainder's values, ascending; where the next value stands among them, and
        # how many come before it.
        self._marks, self._place, self._passed = np.full(1, -1), 0, 1

    @property
    def lows(self) -> np.ndarray:
        """Return (2^15,) the left edge of each cell's rectangle, less the offset."""
        return self._tables.lows

    def draw(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what the next ``n`` values are made of, at most ``MOST``.

        Returns
        -------
        tuple
            ``(n,)`` words, to be overwritten by the next call: the value of a word ``w`` is
            ``lows[w % CELLS]`` plus the float64 of ``w >> BITS | EXPONENT``. But at (k,) int64
            places, ascending, the values are the (k,) float64 given; both are the caller's own.
        """
        places = self._left_out(n)
        while len(self._rest) < len(places):
            self._rest = np.concatenate([self._rest, self._remainder()])
        values, self._rest = self._rest[: len(places)], self._rest[len(places) :]
        return self._words(n), places, values

    def fill(self, values: np.ndarray) -> None:
        """Fill ``values`` (n,) float64."""
        room = np.empty(min(len(values), MOST), np.uint64)
        for start in range(0, len(values), MOST):
            self._fill(values[start : start + MOST], room)

    def _fill(self, values: np.ndarray, room: np.ndarray) -> None:
        words, left_out, rest = self.draw(len(values))
        cells = np.bitwise_and(words, np.uint64(CELLS - 1), out=room[: len(values)])
        # "clip" only to write into ``out`` unbuffered: no cell is out of range.
        self.lows.take(cells.view(np.int64), out=values, mode="clip")
        np.right_shift(words, np.uint64(BITS), out=words)
        np.bitwise_or(words, EXPONENT, out=words)
        values += words.view(np.float64)
        values[left_out] = rest

    def _left_out(self, n: int) -> np.ndarray:
        """Return which of the next ``n`` values are the remainder's: each with its chance."""
        end = self._place + n
        while self._marks[-1] < end:
            gaps = np.log(_uniforms(self._words(_GAPS)))
            gaps /= np.log1p(-self._tables.left_out)
            marks = np.cumsum(gaps.astype(np.int64) + 1)
            marks += self._marks[-1]
            self._marks = np.concatenate([self._marks[self._passed :], marks])
            self._passed = 0
        last = int(self._marks.searchsorted(end))
        found: np.ndarray = self._marks[self._passed : last] - self._place
        self._place, self._passed = end, last
        return found

    def _remainder(self) -> np.ndarray:
        """Return some values of the curve less the rectangles, by rejection (von Neumann 1951)."""
        tables, words = self._tables, self._words(2 * _CANDIDATES)
        first, second = words[:_CANDIDATES], words[_CANDIDATES:]
        bins = np.take(tables.bins, (first & np.uint64(_BINS - 1)).view(np.int64))
        place = (first >> np.uint64(BITS)).view(np.int64) * 2.0 ** (BITS - 64)
        values = place * _WIDTH
        values += np.take(tables.edges, bins)
        height = _density(values)
        height -= np.take(tables.floors, bins)
        tail = np.flatnonzero(bins == tables.tail_bin)
        height[tail] = 1.0
        # Half a step up: the inverse at 0 is not finite.
        values[tail] = -ndtri((place[tail] + 2.0 ** (BITS - 65)) * tables.tail)
        np.bitwise_or(
            values.view(np.uint64),
            (first & _SIGN) << np.uint64(63 - _BIN_BITS),
            out=values.view(np.uint64),
        )
        height *= np.take(tables.scales, bins)
        accepted: np.ndarray = values.compress(_uniforms(second) <= height)
        return accepted


def _uniforms(words: np.ndarray) -> np.ndarray:
    """Return each word as a float64 from 2^-53 to 1; the words are overwritten."""
    whole = np.right_shift(words, np.uint64(11), out=words).view(np.int64)
    # numpy is slow at making float64 of unsigned numbers.
    found: np.ndarray = whole * 2.0**-53
    found += 2.0**-53
    return found
