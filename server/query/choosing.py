"""The best of all scores: by the largest of each block, then exactly what comes near the best."""

from collections.abc import Callable
from functools import cache

import numpy as np

from server.query.dots import worth_compiling
from server.query.index import Index

#: Scores are searched in blocks of so many: the best of all are among the blocks with a large best.
_BLOCK = 512


def search(
    index: Index, vector: np.ndarray, scores: np.ndarray, learned: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the k best of all, best first, and their exact scores.

    Parameters
    ----------
    scores
        (n,) float32: ``learned`` and whatever belongs to a score besides; ``-inf``: not to be
        found.
    learned
        (n,) float32 as the index gave it for ``vector``.
    """
    maxima = _maxima(scores)
    rows = best_rows(scores, k, maxima)
    found, off = scores[rows], index.error(vector)
    if not off or not len(rows):
        return rows, found
    found += index.exact(rows, vector) - learned[rows]
    if len(rows) == k:
        # The k-th best of all is at least as good as the worst of these k.
        least = _below(found.min())
        rows = _rows_from(scores, least - off, maxima)
        rows = rows[scores[rows] + index.errors(rows, vector) >= least]
        found = scores[rows] + index.exact(rows, vector) - learned[rows]
    order = np.argsort(-found, kind="stable")[:k]
    return rows[order], found[order]


def _below(score: float) -> float:
    """Return a score so far below that what float32 rounds off does not matter."""
    return float(score) - 1e-5 * (abs(float(score)) + 1.0)


def best_rows(scores: np.ndarray, k: int, maxima: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of the k largest of (n,) scores, best first; of equals, the earlier row.

    ``-inf`` is never among them, so fewer may come back. ``maxima`` are those of blocks, if known.
    """
    k = min(k, scores.size)
    if k <= 0:
        return np.zeros(0, np.int64)
    # The k-th largest block maximum has at least k scores at or above it.
    maxima = _maxima(scores) if maxima is None else maxima
    if len(maxima) > 2 * k:
        edge = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
    else:
        edge = np.partition(scores, scores.size - k)[scores.size - k]
    rows = _rows_from(scores, edge, maxima)
    found: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")[:k]]
    return found


def _maxima(scores: np.ndarray) -> np.ndarray:
    """Return the largest score of each whole block."""
    whole = scores.size // _BLOCK * _BLOCK
    maxima: np.ndarray = scores[:whole].reshape(-1, _BLOCK).max(axis=1)
    return maxima


def _rows_from(scores: np.ndarray, least: float, maxima: np.ndarray) -> np.ndarray:
    """Return the rows, ascending, whose score is at least ``least``, and not ``-inf``."""
    if worth_compiling(scores.size):
        found: np.ndarray = _compiled_rows_from()(scores, np.float32(least), maxima)
        return found
    high = np.flatnonzero(maxima >= least)
    whole = scores.size // _BLOCK * _BLOCK
    block, place = np.nonzero(scores[:whole].reshape(-1, _BLOCK)[high] >= least)
    last = whole + np.flatnonzero(scores[whole:] >= least)
    rows: np.ndarray = np.concatenate([high[block] * _BLOCK + place, last])
    listed: np.ndarray = rows[scores[rows] > -np.inf]
    return listed


@cache
def _compiled_rows_from() -> Callable[..., np.ndarray]:
    """Return the loop of :func:`_rows_from`: ten calls of numpy cost more than what they find."""
    import numba  # Slow: small catalogues do without.

    none = np.float32(-np.inf)

    @numba.njit("int64[::1](float32[::1], float32, float32[::1])", nogil=True)
    def rows_from(scores: np.ndarray, least: float, maxima: np.ndarray) -> np.ndarray:
        rows = np.empty(_BLOCK * (1 + (maxima >= least).sum()), np.int64)
        count, row = 0, 0
        while row < len(scores):
            block = row // _BLOCK
            if block < len(maxima) and maxima[block] < least:
                row = (block + 1) * _BLOCK
                continue
            if scores[row] >= least and scores[row] > none:
                rows[count] = row
                count += 1
            row += 1
        return rows[:count]

    loop: Callable[..., np.ndarray] = rows_from
    return loop
