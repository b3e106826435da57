"""One shop at one moment: what its customers did before, and what they first did after."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from client.units import event_weights, unit_histories
from common.features import Catalogue
from common.schema import ShopEvents


@dataclass(frozen=True)
class ShopPeriod:
    """A shop at one moment.

    Attributes
    ----------
    history
        (U, n) weights of what each customer did before.
    targets
        (U, n) what those of them with a history first did after.
    """

    history: sparse.csr_matrix
    targets: sparse.csr_matrix

    @classmethod
    def of(
        cls,
        before: ShopEvents,
        after: ShopEvents,
        n_items: int,
        half_life_days: float,
        reference_time: int,
    ) -> "ShopPeriod":
        """Return it from the records before and after, of the same users."""
        known = histories(before, n_items, half_life_days, reference_time)
        later = after.matrix(n_items)
        new = sparse.csr_matrix(later - later.multiply(known > 0))
        new.eliminate_zeros()
        # A customer without a history is no customer yet: nothing can be asked for.
        seen = (np.diff(known.indptr) > 0).astype(np.float32)
        new = sparse.csr_matrix(sparse.diags_array(seen) @ new)
        new.eliminate_zeros()
        return cls(known, new)


def histories(
    events: ShopEvents, n_items: int, half_life_days: float, reference_time: int
) -> sparse.csr_matrix:
    """Return (U, n) float32 weights of what each customer did up to a moment."""
    weights = event_weights(events, half_life_days, reference_time)
    return unit_histories(events, "customer", n_items, weights).history


def customer_counts(history: sparse.csr_matrix) -> np.ndarray:
    """Return (n,) customers of each product."""
    return np.asarray((history > 0).sum(axis=0)).ravel()


def stocked(catalogue: Catalogue, item_ids: Iterable[str] | None) -> np.ndarray | None:
    """Return (n,) bool of what a shop may list: what it stocks and the catalogue still offers.

    None, everything, where neither says otherwise.
    """
    offered: np.ndarray = catalogue.offered
    if item_ids is None:
        return None if offered.all() else offered
    allowed: np.ndarray = np.zeros(catalogue.size, dtype=bool)
    rows = catalogue.rows(np.asarray(list(item_ids), dtype=object))
    allowed[rows[rows >= 0]] = True
    allowed &= offered
    return allowed
