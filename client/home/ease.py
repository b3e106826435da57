"""EASE of a shop's own customers, alone and with what the federation knows of all others.

EASE (Steck 2019) scores a history ``x`` by ``x - x P / diag(P)`` with ``P = (XᵀX + λI)⁻¹``. A shop
has fewer customers than products, so everything here is in the dual form: with ``K = λI + XXᵀ``
(U x U), ``Q = λP = I - Xᵀ K⁻¹ X``, and no product x product matrix is ever built.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

# Customers whose row of K⁻¹X is in memory at a time, while diag(Q) is summed.
_BLOCK = 512


class Scores(Protocol):
    """A part of a mixture that is linear in the history."""

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 scores of (B, n) histories."""


@dataclass(frozen=True)
class Ease:
    """EASE of few customers.

    Rows ``E`` with ``EᵀE`` near the pooled ``XᵀX`` stand for the other shops' customers: they join
    ``X`` as so many pseudo-customers. Their part is an update of rank d (Woodbury):
    ``Q' = Q - Lᵀ C L`` with ``L = E Q`` and ``C = (λI + E Qᵀ Eᵀ)⁻¹``.

    Attributes
    ----------
    customers
        (U, n) the histories it was fitted on.
    inverse
        (U, U) float32 ``K⁻¹``.
    diagonal
        (n,) float32 diagonal of ``Q'``.
    ridge
        ``λ``.
    lifted, core
        (d, n) float32 ``L`` and (d, d) float32 ``C``; d may be 0.
    """

    customers: sparse.csr_matrix
    inverse: np.ndarray
    diagonal: np.ndarray
    ridge: float
    lifted: np.ndarray
    core: np.ndarray

    @classmethod
    def fit(
        cls,
        histories: sparse.csr_matrix,
        ridge: float,
        max_customers: int,
        prior: np.ndarray | None = None,
    ) -> "Ease":
        """Fit on (U, n) histories and (d, n) pseudo-customers."""
        counts = np.diff(histories.indptr)
        chosen = np.sort(np.argsort(-counts, kind="stable")[:max_customers])
        x = sparse.csr_matrix(histories[chosen])
        x.data = np.ones_like(x.data)
        gram = (x @ x.T).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += ridge
        inverse = inverse_of(gram).astype(np.float32)
        explained = np.zeros(x.shape[1])
        for start in range(0, x.shape[0], _BLOCK):
            rows = slice(start, start + _BLOCK)
            solved = (x.T @ np.ascontiguousarray(inverse[:, rows])).T
            explained += np.asarray(x[rows].multiply(solved).sum(axis=0)).ravel()
        none = np.zeros((0, x.shape[1]), np.float32)
        diagonal = (1.0 - explained).astype(np.float32)
        alone = cls(x, inverse, diagonal, ridge, none, np.zeros((0, 0), np.float32))
        return alone if prior is None else alone.with_prior(prior)

    def with_prior(self, prior: np.ndarray) -> "Ease":
        """Return it with (d, n) float32 pseudo-customers beside its customers."""
        assert not len(self.core), "one prior is enough: join both before"
        lifted = prior - self._among_customers(np.asarray(self.customers @ prior.T).T)
        core = lifted.astype(np.float64) @ prior.T
        core = (core + core.T) / 2
        core[np.diag_indices_from(core)] += self.ridge
        core = inverse_of(core)
        less = np.einsum("dn,dn->n", lifted, core.astype(np.float32) @ lifted)
        return Ease(
            self.customers,
            self.inverse,
            (self.diagonal - less).astype(np.float32),
            self.ridge,
            lifted.astype(np.float32),
            core.astype(np.float32),
        )

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 scores of (B, n) histories."""
        seen = history.copy()
        seen.data = np.ones_like(seen.data)
        explained = self._among_customers((seen @ self.customers.T).toarray())
        if len(self.core):
            explained = explained + np.asarray(seen @ self.lifted.T) @ self.core @ self.lifted
        dense = np.zeros(history.shape, np.float32)
        rows = np.repeat(np.arange(history.shape[0]), np.diff(seen.indptr))
        dense[rows, seen.indices] = 1.0
        result: np.ndarray = dense - (dense - explained) / self.diagonal
        return result

    def contributions(self, history: sparse.csr_matrix, item: int) -> np.ndarray:
        """Return (H,) float64 what each product of a (1, n) history adds to a product's score."""
        seen = history.indices
        column = self.customers[:, [item]]
        explained = np.asarray(self.customers[:, seen].T @ (self.inverse @ column.toarray()))[:, 0]
        if len(self.core):
            explained = explained + self.lifted[:, seen].T @ (self.core @ self.lifted[:, item])
        alone = (seen == item).astype(np.float64)
        added: np.ndarray = alone - (alone - explained) / self.diagonal[item]
        return added

    def _among_customers(self, overlap: np.ndarray) -> np.ndarray:
        """Return (B, n) ``A K⁻¹ X`` of (B, U) ``A``."""
        weights = overlap.astype(np.float32) @ self.inverse
        return np.asarray(self.customers.T @ weights.T, dtype=np.float32).T


def inverse_of(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of a symmetric positive definite float64 matrix, by Cholesky."""
    if not len(matrix):
        return matrix
    from scipy.linalg import lapack  # Only to fit: asking does without.

    factor, failed = lapack.dpotrf(matrix, lower=1)
    assert not failed, "a ridge makes every Gram matrix positive definite"
    inverse, failed = lapack.dpotri(factor, lower=1)
    assert not failed
    result: np.ndarray = np.tril(inverse) + np.tril(inverse, -1).T
    return result
