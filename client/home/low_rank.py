"""A shop's own low-rank model: what the federation learns from all shops, learned from one.

Beside the shop's rows may stand those of the federation: its directions, each as long as the
energy that it says all customers have along it. The two are then one fit, in which each counts by
how much it tells, and not two sets of scores that are mixed.
"""

import numpy as np
from scipy import sparse

from common.blocks import Block, GroupBlock, block_of
from common.features import Catalogue
from common.model import GlobalModel, initial_state
from common.protocol import ITEMS, POPULARITY, SPECTRUM, ModelPlan

_ROW_EXPONENT = 0.5
# Of the mean group's: no group has less popularity where directions are brought to the shop's.
_MASS_FLOOR = 0.05


def own_low_rank(
    catalogue: Catalogue,
    histories: sparse.csr_matrix,
    dimension: int,
    groups: str = "",
    prior: GlobalModel | None = None,
    strength: float = 1.0,
    popularity_exponent: float = 0.3,
    power: float = 0.5,
) -> GlobalModel:
    """Return a model of (U, n) histories: local state, whatever its class is called.

    Its item vectors are the ``dimension`` leading right singular vectors of the shop's centred
    training rows, where subspace iteration over all shops' rows ends (Halko et al. 2011). With
    ``groups``, a content feature, rows are of its values, whose products count alike.

    With a ``prior``, what the federation learned of all shops' customers, its pseudo-customers
    are rows too: ``strength`` times as much energy as the shop's own rows have along them, and
    ``power`` as in :meth:`common.model.GlobalModel.pseudo_customers`.
    """
    from scipy.sparse.linalg import LinearOperator, svds  # Only to fit: asking does without.

    plan = ModelPlan(
        dimension=dimension,
        popularity_exponent=popularity_exponent,
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
    own = rows.shape[0]
    beside = np.zeros((0, rows.shape[1]))
    if prior is not None and strength and rows.nnz:
        beside = _directions(prior, block, histories, popularity, power)
        lengths = np.linalg.norm(beside, axis=1, keepdims=True)
        units = beside / np.maximum(lengths, 1e-12)
        along = rows @ units.T - np.outer(sizes, units @ expected)
        scale = strength * float(np.square(along).sum())
        beside *= (scale / max(float(np.square(lengths).sum()), 1e-12)) ** 0.5
    centred = LinearOperator(
        (own + len(beside), rows.shape[1]),
        matvec=lambda v: np.concatenate(
            [rows @ v.ravel() - sizes * (expected @ v.ravel()), beside @ v.ravel()]
        ),
        rmatvec=lambda u: (
            rows.T @ u.ravel()[:own]
            - expected * (sizes @ u.ravel()[:own])
            + beside.T @ u.ravel()[own:]
        ),
        dtype=np.float64,
    )
    vectors = np.zeros((rows.shape[1], dimension), np.float32)
    energy = np.zeros(dimension, np.float32)
    count = min(dimension, min(centred.shape) - 1)
    if count > 0 and rows.nnz:
        start = np.ones(min(centred.shape))
        _, values, right = svds(centred, k=count, v0=start, which="LM")
        order = np.argsort(-values, kind="stable")
        vectors[:, :count], energy[:count] = right[order].T, values[order] ** 2
    state = initial_state(plan, histories.shape[1])
    state |= {POPULARITY: popularity, ITEMS: vectors, SPECTRUM: energy}
    return GlobalModel(plan, catalogue, state)


def _directions(
    prior: GlobalModel,
    block: Block,
    histories: sparse.csr_matrix,
    popularity: np.ndarray,
    power: float,
) -> np.ndarray:
    """Return (d, L) float64 the federation's pseudo-customers as rows of a shop's own block.

    Of groups: a direction tells who buys more of a group than its mass would have it, so what it
    says is brought from the group's released mass to that of the shop, (n,) ``popularity``.
    """
    lifted = sparse.csr_matrix(prior.pseudo_customers(histories, power))
    found = np.asarray(block.project(lifted).toarray(), dtype=np.float64)
    if not isinstance(block, GroupBlock):
        return found
    both = sparse.csr_matrix(np.stack([popularity, prior.state[POPULARITY]]))
    mass = np.asarray(block.project(both).toarray(), dtype=np.float64) * block.gain
    mass /= np.maximum(mass.mean(axis=1, keepdims=True), 1e-12)
    here, there = np.maximum(mass, _MASS_FLOOR)
    brought: np.ndarray = found * (here / there)
    return brought
