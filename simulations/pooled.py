"""EASE over everybody's customers, where there are too many of them for its dual form."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from client.home.ease import inverse_of
from common.model import weighed

# Of the largest: eigenvalues below are what rounding leaves of 0.
_NO_ENERGY = 1e-10


def weighed_rows(histories: sparse.csr_matrix, power: float) -> np.ndarray:
    """Return (U, n) float32 rows in place of (U, n) histories, by their principal directions.

    What customers have in common counts as in a federation's pseudo-customers with this power;
    with .5 the rows' Gram matrix is that of the histories.
    """
    x = sparse.csr_matrix(histories)
    x.data = np.ones_like(x.data)
    energies, vectors = np.linalg.eigh((x @ x.T).toarray().astype(np.float64))
    some = energies > _NO_ENERGY * energies.max(initial=0.0)
    longer = np.sqrt(weighed(energies[some], power) / energies[some])
    rows = x.T @ (vectors[:, some] * longer).astype(np.float32)
    return np.ascontiguousarray(rows.T, dtype=np.float32)


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
    def fit(
        cls, histories: sparse.csr_matrix, ridge: float, largest: int, power: float = 0.5
    ) -> "ProductEase":
        """Fit on (U, n) histories, among the ``largest`` products with most customers.

        ``power`` as in :func:`weighed_rows`, of those products.
        """
        counts = np.bincount(histories.indices, minlength=histories.shape[1])
        products = np.sort(np.argsort(-counts, kind="stable")[:largest])
        x = sparse.csc_matrix(histories)[:, products].tocsr()
        x.data = np.ones_like(x.data)
        gram = (x.T @ x).toarray().astype(np.float64)
        if power != 0.5:
            energies, vectors = np.linalg.eigh(gram)
            gram = (vectors * weighed(energies, power)) @ vectors.T
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
