"""Rows of norm 1 in whole steps, for the popularity histogram of a secure sum; without torch."""

import numpy as np
from scipy import sparse

# Rounding in float64 must not carry a row of norm 1 across the bound.
_MARGIN = 1 - 1e-12


def whole_rows(rows: sparse.csr_matrix, steps: int) -> np.ndarray:
    """Return (n,) int64: the sum of (U, n) rows of norm 1 at most, each in whole steps."""
    found = sparse.csr_matrix(rows, dtype=np.float64)
    whole = np.trunc(found.data * (steps * _MARGIN)).astype(np.int64)
    squares = np.add.reduceat(np.append(whole**2, 0), found.indptr[:-1])
    squares[np.diff(found.indptr) == 0] = 0
    whole[np.repeat(squares > steps**2, np.diff(found.indptr))] = 0
    # Not by bincount, whose weights are float64.
    total = np.zeros(found.shape[1], np.int64)
    np.add.at(total, found.indices, whole)
    return total
