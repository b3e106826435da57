"""Scores of one customer vector with every product vector, and the best of them.

:class:`ExactIndex` reads float32 rows; :class:`Int8Index` reads a quarter of the bytes and is then
refined with the exact rows, so what it lists carries exact scores.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from server.query.dots import float32_dots, int8_dots, worth_compiling

#: Scores are searched in blocks of so many: the best of all are among the blocks with a large best.
_BLOCK = 512
_LANES = 64


class Index(Protocol):
    """Product vectors that can be scored."""

    @property
    def refine(self) -> int:
        """How many times the wanted number must be scored again exactly; 0: none."""

    def scores(self, vector: np.ndarray) -> np.ndarray:
        """Return (n,) float32 inner products with a (d,) vector; the caller may write into it."""

    def exact(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return float32 inner products of some rows, from the vectors as they were given."""


@dataclass(frozen=True)
class ExactIndex:
    """(n, d) float32 vectors as they are, contiguous."""

    vectors: np.ndarray
    refine: int = 0

    def __post_init__(self) -> None:
        if worth_compiling(len(self.vectors)):
            float32_dots(self.vectors.shape[1])  # Compiled here, not at the first request.

    def scores(self, vector: np.ndarray) -> np.ndarray:
        """Return (n,) float32 inner products."""
        vector = np.ascontiguousarray(vector, np.float32)
        if not worth_compiling(len(self.vectors)):
            return np.asarray(self.vectors @ vector)
        found = np.empty(len(self.vectors), np.float32)
        float32_dots(self.vectors.shape[1])(self.vectors, vector, found)
        return found

    def exact(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return inner products of some rows."""
        found: np.ndarray = self.vectors[rows] @ vector.astype(np.float32)
        return found


@dataclass(frozen=True)
class Int8Index:
    """Vectors in 8 bits, one scale a row, beside the exact ones.

    A query is taken in 16 bits, so nearly all of the error is the rows': at most half of 1/127 of
    a row's largest value in each dimension.

    Attributes
    ----------
    codes
        (n, d') int8, d' the next multiple of 64.
    scales
        (n,) float32: what a code of 1 stands for.
    vectors
        (n, d) float32, read only for the few rows that are refined.
    """

    codes: np.ndarray
    scales: np.ndarray
    vectors: np.ndarray
    refine: int = 5

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Int8Index":
        """Quantise (n, d) float32 vectors."""
        size, width = vectors.shape
        scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127)
        safe = np.where(scales > 0, scales, np.float32(1))
        codes = np.zeros((size, -(-width // _LANES) * _LANES), np.int8)
        codes[:, :width] = np.rint(vectors / safe[:, None])
        int8_dots(codes.shape[1])  # Compiled here, not at the first request.
        return cls(codes, scales.astype(np.float32), vectors)

    def scores(self, vector: np.ndarray) -> np.ndarray:
        """Return (n,) float32 approximate inner products."""
        found = np.empty(len(self.codes), np.float32)
        largest = float(np.abs(vector).max(initial=0.0))
        if largest == 0.0:
            found.fill(0.0)
            return found
        # 127 x 32767 x 512 dimensions stay below 2^31.
        bound = min(32767, (2**31 - 1) // (127 * self.codes.shape[1]))
        query = np.zeros(self.codes.shape[1], np.int16)
        query[: len(vector)] = np.rint(vector * (bound / largest))
        dots = int8_dots(self.codes.shape[1])
        dots(self.codes, self.scales, query, np.float32(largest / bound), found)
        return found

    def exact(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return exact inner products of some rows."""
        found: np.ndarray = self.vectors[rows] @ vector.astype(np.float32)
        return found


def best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the rows of the k largest of (n,) scores, best first; of equals, the earlier row.

    ``-inf`` is never among them, so fewer may come back.
    """
    k = min(k, scores.size)
    if k <= 0:
        return np.zeros(0, np.int64)
    whole = scores.size // _BLOCK * _BLOCK
    if whole // _BLOCK <= 2 * k:
        edge = np.partition(scores, scores.size - k)[scores.size - k]
        rows = np.flatnonzero(scores >= edge)
    else:
        # The k-th largest block maximum has at least k scores at or above it, and what is above
        # it lies in blocks whose own maximum is.
        blocks = scores[:whole].reshape(-1, _BLOCK)
        maxima = blocks.max(axis=1)
        edge = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
        high = np.flatnonzero(maxima >= edge)
        block, place = np.nonzero(blocks[high] >= edge)
        last = np.flatnonzero(scores[whole:] >= edge)
        rows = np.concatenate([high[block] * _BLOCK + place, whole + last])
    rows = rows[scores[rows] > -np.inf]
    found: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")[:k]]
    return found
