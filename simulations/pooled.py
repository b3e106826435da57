"""EASE over everybody's customers, where there are too many of them for its dual form."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from client.home.ease import inverse_of


@dataclass(frozen=True)
class ProductEase:
    """EASE (Steck 2019) among the most popular products; it says nothing of the others.

    Attributes
    ----------
    products
        (m,) sorted catalogue rows.
    weights
        (m, m) float32 ``B = I - P / diag(P)``.
    """

    products: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, histories: sparse.csr_matrix, ridge: float, largest: int) -> "ProductEase":
        """Fit on (U, n) histories, among the ``largest`` products with most customers."""
        counts = np.bincount(histories.indices, minlength=histories.shape[1])
        products = np.sort(np.argsort(-counts, kind="stable")[:largest])
        x = sparse.csc_matrix(histories)[:, products].tocsr()
        x.data = np.ones_like(x.data)
        gram = (x.T @ x).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += ridge
        inverse = inverse_of(gram)
        weights = (-inverse / np.diag(inverse)).astype(np.float32)
        np.fill_diagonal(weights, 0.0)
        return cls(products, weights)

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 scores of (B, n) histories."""
        seen = sparse.csr_matrix(history[:, self.products])
        seen.data = np.ones_like(seen.data)
        found = np.zeros(history.shape, np.float32)
        found[:, self.products] = seen @ self.weights
        return found
