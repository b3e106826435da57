"""Products of a kind: public content in which a value says the more, the fewer products have it.

The content part gives each value of a product the same say. But to have bought one of three
products of a maker says much of the other two, and to have bought one of a thousand cheeses little
of any other: as in text, a term counts by how rare it is (Spärck Jones 1972, "A Statistical
Interpretation of Term Specificity and its Application in Retrieval").
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

_PROFILE_BYTES = 2**27


@dataclass(frozen=True)
class Kin:
    """What products share with a history, rare values first; linear in the history.

    A product of a history adds, to every product, ``1 / m`` for each value that both of them and
    ``m`` products in all have; less what an expected basket of one product adds.

    Attributes
    ----------
    codes
        (n, V) float32 :attr:`common.features.Catalogue.kin`.
    expected
        (V,) float32 codes of the expected basket.
    """

    codes: sparse.csr_matrix
    expected: np.ndarray

    @classmethod
    def of(cls, codes: sparse.csr_matrix, basket: np.ndarray) -> "Kin":
        """Return it for an expected basket (n,) of one product."""
        return cls(codes, np.asarray(codes.T @ basket, dtype=np.float32))

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 scores of (B, n) histories."""
        found = np.empty((history.shape[0], self.codes.shape[0]), np.float32)
        # Words of titles can make V far larger than n.
        size = max(1, _PROFILE_BYTES // (4 * max(1, self.codes.shape[1])))
        for start in range(0, history.shape[0], size):
            block = history[start : start + size]
            counts = np.asarray(block.sum(axis=1)).ravel()
            profiles = (block @ self.codes).toarray() - np.outer(counts, self.expected)
            found[start : start + size] = (self.codes @ profiles.T.astype(np.float32)).T
        return found

    def contributions(self, history: sparse.csr_matrix, item: int) -> np.ndarray:
        """Return (H,) float64 what each product of a (1, n) history adds to a product's score."""
        own = self.codes[[item]]
        shared = (self.codes[history.indices] @ own.T).toarray().ravel()
        weights = history.data.astype(np.float64)
        added: np.ndarray = weights * (shared - float((own @ self.expected)[0]))
        return added
