"""A shop's own low-rank model: what the federation learns from all shops, learned from one."""

import numpy as np
from scipy import sparse

from common.blocks import block_of
from common.features import Catalogue
from common.model import GlobalModel, initial_state
from common.protocol import ITEMS, POPULARITY, SPECTRUM, ModelPlan

_POPULARITY_EXPONENT = 0.3
_ROW_EXPONENT = 0.5


def own_low_rank(
    catalogue: Catalogue, histories: sparse.csr_matrix, dimension: int, groups: str = ""
) -> GlobalModel:
    """Return a model of (U, n) histories alone: local state, whatever its class is called.

    Its item vectors are the ``dimension`` leading right singular vectors of the shop's centred
    training rows, where subspace iteration over all shops' rows ends (Halko et al. 2011). With
    ``groups``, a content feature, rows are of its values, whose products count alike.
    """
    from scipy.sparse.linalg import LinearOperator, svds  # Only to fit: asking does without.

    plan = ModelPlan(
        dimension=dimension,
        popularity_exponent=_POPULARITY_EXPONENT,
        row_exponent=_ROW_EXPONENT,
        centred=True,
        groups=groups,
        group_weights="even" if groups else "popular",
        learned_items=len(catalogue.feature(groups).values) if groups else 0,
    )
    counts = np.bincount(histories.indices, minlength=histories.shape[1]).astype(np.float64)
    popularity = (counts / max(counts.sum(), 1.0)).astype(np.float32)
    block = block_of(plan, popularity, catalogue)
    binary = histories.copy()
    binary.data = np.ones_like(binary.data)
    rows = block.training_rows(binary, plan.row_exponent).astype(np.float64)
    sizes = rows @ block.gain.astype(np.float64)
    expected = (block.rates / block.gain).astype(np.float64)
    centred = LinearOperator(
        rows.shape,
        matvec=lambda v: rows @ v.ravel() - sizes * (expected @ v.ravel()),
        rmatvec=lambda u: rows.T @ u.ravel() - expected * (sizes @ u.ravel()),
        dtype=np.float64,
    )
    vectors = np.zeros((rows.shape[1], dimension), np.float32)
    energy = np.zeros(dimension, np.float32)
    count = min(dimension, min(rows.shape) - 1)
    if count > 0 and rows.nnz:
        start = np.ones(min(rows.shape))
        _, values, right = svds(centred, k=count, v0=start, which="LM")
        order = np.argsort(-values, kind="stable")
        vectors[:, :count], energy[:count] = right[order].T, values[order] ** 2
    state = initial_state(plan, histories.shape[1])
    state |= {POPULARITY: popularity, ITEMS: vectors, SPECTRUM: energy}
    return GlobalModel(plan, catalogue, state)
