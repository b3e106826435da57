"""Scores of one customer vector with every product vector, and the best of them.

:class:`ExactIndex` reads float32 rows. :class:`Int8Index` reads a quarter of the bytes and knows
how far each of its scores may be off; all rows that may be among the best are then scored exactly,
so the list is the exact one (the filter-and-refine search of Seidl & Kriegel 1998).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from server.query.dots import float32_dots, int8_dots, worth_compiling

_LANES = 64


class Index(Protocol):
    """Product vectors that can be scored."""

    def scores(self, vector: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
        """Return (n,) float32 inner products with a (d,) vector, in ``found`` where that is given.

        The caller may write into it.
        """

    def error(self, vector: np.ndarray) -> float:
        """Return how far any score is off at most; 0: none is."""

    def errors(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return how far the score of each of some rows is off at most."""

    def exact(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return float32 inner products of some rows, from the vectors as they were given."""


@dataclass(frozen=True)
class ExactIndex:
    """(n, d) float32 vectors as they are, contiguous."""

    vectors: np.ndarray

    def __post_init__(self) -> None:
        if worth_compiling(len(self.vectors)):
            float32_dots(self.vectors.shape[1])  # Compiled here, not at the first request.

    def error(self, vector: np.ndarray) -> float:  # noqa: ARG002 - of any vector
        """Return 0."""
        return 0.0

    def errors(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Return zeros."""
        return np.zeros(len(rows), np.float32)

    def scores(self, vector: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
        """Return (n,) float32 inner products."""
        vector = np.ascontiguousarray(vector, np.float32)
        found = np.empty(len(self.vectors), np.float32) if found is None else found
        if worth_compiling(len(self.vectors)):
            float32_dots(self.vectors.shape[1])(self.vectors, vector, found)
        else:
            np.matmul(self.vectors, vector, out=found)
        return found

    def exact(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return inner products of some rows."""
        found: np.ndarray = self.vectors[rows] @ vector.astype(np.float32)
        return found


@dataclass(frozen=True)
class Int8Index:
    """Vectors in 8 bits, one scale a row, beside the exact ones.

    A query is taken in 16 bits, so nearly all of the error is the rows': at most half of 1/127 of
    a row's largest value in each dimension. For that a width of 64 takes a quarter more memory.

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

    def scores(self, vector: np.ndarray, found: np.ndarray | None = None) -> np.ndarray:
        """Return (n,) float32 approximate inner products."""
        found = np.empty(len(self.codes), np.float32) if found is None else found
        largest = float(np.abs(vector).max(initial=0.0))
        if largest == 0.0:
            found.fill(0.0)
            return found
        bound = self._bound
        query = np.zeros(self.codes.shape[1], np.int16)
        query[: len(vector)] = np.rint(vector * (bound / largest))
        dots = int8_dots(self.codes.shape[1])
        dots(self.codes, self.scales, query, np.float32(largest / bound), found)
        return found

    @property
    def _bound(self) -> int:
        """The largest value of a query: 127 x 32767 x 512 dimensions stay below 2^31."""
        width: int = self.codes.shape[1]
        return min(32767, (2**31 - 1) // (127 * width))

    def error(self, vector: np.ndarray) -> float:
        """Return the error of the row with the largest scale."""
        return self._error_in_scales(vector) * self._largest_scale

    def errors(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return each row's scale times what it is off in units of its scale."""
        found: np.ndarray = np.float32(self._error_in_scales(vector)) * self.scales[rows]
        return found

    def _error_in_scales(self, vector: np.ndarray) -> float:
        """Return half a code times ``|u|_1``, and codes of at most 127 times the query's error."""
        sizes = np.abs(vector)
        largest, total = float(sizes.max(initial=0.0)), float(sizes.sum(dtype=np.float64))
        return 0.5 * total + 127 * len(vector) * 0.5 * largest / self._bound

    @cached_property
    def _largest_scale(self) -> float:
        return float(self.scales.max(initial=0.0))

    def exact(self, rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return exact inner products of some rows."""
        found: np.ndarray = self.vectors[rows] @ vector.astype(np.float32)
        return found


def index_of(vectors: np.ndarray) -> Index:
    """Return the index that takes least time for so many (n, d) float32 vectors."""
    return Int8Index.of(vectors) if worth_compiling(len(vectors)) else ExactIndex(vectors)
