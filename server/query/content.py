"""The parts of all products' scores that are not learned: content, popularity.

Of the content code only what shares a place with the history is read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import sparse

from server.query.dots import worth_compiling


@dataclass(frozen=True)
class ContentIndex:
    """Which products have what at each place of the content code.

    Attributes
    ----------
    content
        (n, W) float32 ``C``, the catalogue's own.
    by_place
        (W, n) float32 ``a C`` turned over: as large as ``C`` once more.
    """

    content: sparse.csr_matrix
    by_place: sparse.csr_matrix

    @classmethod
    def of(cls, content: sparse.csr_matrix, scale: float) -> "ContentIndex":
        """Turn the (n, W) content code over; ``scale`` is the model's ``a``."""
        by_place = sparse.csr_matrix(content.T.tocsr() * np.float32(scale))
        if worth_compiling(content.shape[0]):
            _adding(), _base()  # Compiled here, not at the first request.
        return cls(content, by_place)

    def add(self, scores: np.ndarray, history: sparse.csr_matrix) -> None:
        """Add ``a <x C, c_i>`` of a (1, n) history ``x`` to (n,) float32 scores."""
        if worth_compiling(len(scores)):
            self._add_compiled(scores, history)
            return
        profile = sparse.csr_matrix(history @ self.content)
        scores += self.by_place[profile.indices].T @ profile.data

    def _add_compiled(self, scores: np.ndarray, history: sparse.csr_matrix) -> None:
        own, turned = self.content, self.by_place
        profile = np.zeros(own.shape[1], np.float32)
        touched = np.empty(int(np.diff(own.indptr)[history.indices].sum()), np.int32)
        matrices = (own.indptr, own.indices, own.data, turned.indptr, turned.indices, turned.data)
        _adding()(history.indices, history.data, *matrices, profile, touched, scores)


def add_base(
    learned: np.ndarray,
    popularity: np.ndarray,
    expected: np.ndarray,
    count: float,
    scores: np.ndarray,
) -> None:
    """Write ``learned + popularity - count expected``, each (n,) float32, into ``scores``."""
    if worth_compiling(len(scores)):
        _base()(learned, popularity, expected, np.float32(count), scores)
        return
    np.multiply(expected, -np.float32(count), out=scores)
    scores += popularity
    scores += learned


@cache
def _base() -> Callable[..., None]:
    import numba  # Slow: small catalogues do without.

    arrays = "float32[::1], float32[::1], float32[::1], float32, float32[::1]"

    @numba.njit(f"void({arrays})", nogil=True)
    def base(
        learned: np.ndarray,
        popularity: np.ndarray,
        expected: np.ndarray,
        count: float,
        scores: np.ndarray,
    ) -> None:
        for row in range(len(scores)):
            scores[row] = learned[row] + (popularity[row] - count * expected[row])

    loop: Callable[..., None] = base
    return loop


@cache
def _adding() -> Callable[..., None]:
    """Return the loop: a history's rows and weights, two matrices, and room for the profile."""
    import numba  # Slow: small catalogues do without.

    matrix = "int32[::1], int32[::1], float32[::1]"
    arrays = "float32[::1], int32[::1], float32[::1]"

    @numba.njit(f"void(int32[::1], float32[::1], {matrix}, {matrix}, {arrays})", nogil=True)
    def add(
        rows: np.ndarray,
        weights: np.ndarray,
        own_ends: np.ndarray,
        own_places: np.ndarray,
        own_values: np.ndarray,
        ends: np.ndarray,
        products: np.ndarray,
        values: np.ndarray,
        profile: np.ndarray,
        touched: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        count = 0
        for at in range(len(rows)):
            for entry in range(own_ends[rows[at]], own_ends[rows[at] + 1]):
                place = own_places[entry]
                if profile[place] == 0:
                    touched[count] = place
                    count += 1
                profile[place] += weights[at] * own_values[entry]
        for at in range(count):
            place = touched[at]
            weight = profile[place]
            # A place whose sum was 0 in between stands there twice.
            profile[place] = 0
            for entry in range(ends[place], ends[place + 1]):
                scores[products[entry]] += weight * values[entry]

    loop: Callable[..., None] = add
    return loop
