"""One round of local training: arrays in, arrays out, no Flower types.

It reads the released global state, public constants of the plan and one unit's own records at a
time; what one unit adds does not depend on any other unit's records.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from client.privacy.noise import NoiseSource
from client.privacy.step import ExactDPStep, Tensors, UnitBatch
from client.privacy.whole import WholeOptimizer, WholeStep
from client.units import Units, round_units, uniforms, unit_digests
from common.features import Catalogue
from common.grid import delta_step, on_grid
from common.losses import LOSSES, UnitVectors
from common.model import (
    CUSTOMERS,
    FEATURES,
    attribute_matrix,
    feature_weights,
    trained_names,
    trained_spec,
)
from common.protocol import ITEMS, Arrays, TrainingPlan
from common.schema import ShopEvents
from common.shop_state import ShopState

# Arrays that a unit reads by rows; it has a copy of all others.
TABLES = frozenset((ITEMS, FEATURES, CUSTOMERS))
# Floats of rows and copies held at a time: a physical batch, smaller than the logical one.
_BATCH_FLOATS = 16_000_000


def train_round(
    plan: TrainingPlan,
    server_round: int,
    state: Arrays | ShopState,
    events: ShopEvents,
    catalogue: Catalogue,
    noise: NoiseSource,
    sampling: np.random.Generator,
    stocked: np.ndarray | None = None,
) -> Arrays:
    """Return the private delta of one round's local steps.

    Parameters
    ----------
    server_round
        From 1. Up to ``plan.tuning_round`` only records before ``plan.validation_from`` count:
        what a shop tunes its own mixture on then is new to the model. Records before
        ``plan.train_from`` never do; a unit that has no others is a unit with an empty history.
    state
        The released global state, or what was sent of it: then learned products have the rows in
        it alone. Others' are no parameters of the shop's: they are not read, not among a unit's
        negatives, in no norm, and have no noise.
    sampling
        Draws a unit's own targets and negatives. No privacy rests on it: whatever it draws, one
        unit more changes no other unit's.
    stocked
        Catalogue rows that the shop stocks by the published table; None: all. Records of other
        products count in nothing.

    Returns
    -------
    dict
        Delta float32 of every trained array, of learned products the rows that the shop has
        alone: gradient steps ``-η/N (Σ clip(g_u) + noise)``, on the plan's grid. What a loss needs
        of the whole catalogue, the Gram matrix and the expected basket, is that of the released
        state in every local step: a public constant of the round, so that a step costs in the rows
        that its units read. With one local step there is no difference.
    """
    known = _known(plan, state, catalogue)
    forward, rows = _prepared(plan, server_round, known, events, catalogue, stocked)
    names, start = trained_names(plan), known.arrays
    step = ExactDPStep(
        {name: torch.tensor(start[name]) for name in names},
        tables=TABLES.intersection(names),
        max_grad_norm=plan.clipping_norm(server_round) if plan.private else math.inf,
        noise_multiplier=plan.noise_multiplier if plan.private else 0.0,
        batch_normalizer=plan.batch_normalizer,
        learning_rate=plan.learning_rate,
        sample_rate=plan.sample_rate,
        noise=noise if plan.private else None,
        momentum=plan.local_momentum,
        apart=True,
    )
    for _ in range(plan.local_steps):
        key = int(sampling.integers(2**63))
        sampled = np.flatnonzero(noise.poisson_sample(rows.shape[0], plan.sample_rate))
        for members in _physical_batches(
            rows, sampled, forward.floats_per_product, forward.floats_per_unit
        ):
            step.accumulate(forward.losses, forward.batch(rows, members, key))
        step.step()
    moved, grid = step.moved(), delta_step(plan, server_round)
    return {name: on_grid(moved[name].numpy(), grid) for name in names}


def whole_gradients(
    plan: TrainingPlan,
    server_round: int,
    state: Arrays | ShopState,
    events: ShopEvents,
    catalogue: Catalogue,
    sampling: np.random.Generator,
    stocked: np.ndarray | None = None,
) -> Arrays:
    """Return int64 sums of a round's clipped gradients in whole steps, before their noise.

    As :func:`train_round` of one step over all units, for a secure sum: the clipping norm is
    ``plan.noise_steps`` steps.
    """
    known = _known(plan, state, catalogue)
    forward, rows = _prepared(plan, server_round, known, events, catalogue, stocked)
    names = trained_names(plan)
    step = WholeStep(
        {name: torch.tensor(known.arrays[name]) for name in names},
        tables=TABLES.intersection(names),
        max_grad_norm=plan.clipping_norm(server_round),
        noise_multiplier=0.0,
        batch_normalizer=plan.batch_normalizer,
        learning_rate=plan.learning_rate,
    )
    assert isinstance(step.optimizer, WholeOptimizer)
    step.optimizer.steps = plan.noise_steps
    key = int(sampling.integers(2**63))
    for members in _physical_batches(
        rows, np.arange(rows.shape[0]), forward.floats_per_product, forward.floats_per_unit
    ):
        step.accumulate(forward.losses, forward.batch(rows, members, key))
    return {name: step.whole(name) for name in names}


def _known(plan: TrainingPlan, state: Arrays | ShopState, catalogue: Catalogue) -> ShopState:
    return state if isinstance(state, ShopState) else ShopState.of(plan, state, catalogue)


def _prepared(
    plan: TrainingPlan,
    server_round: int,
    known: ShopState,
    events: ShopEvents,
    catalogue: Catalogue,
    stocked: np.ndarray | None,
) -> tuple["_Forward", sparse.csr_matrix]:
    """Return the model's formula at the released state, and the units' rows."""
    units = round_units(plan, server_round, events, catalogue.size, stocked)
    rows = known.block.training_rows(units.history, plan.model.row_exponent)
    return _Forward(plan, catalogue, known, units, events), rows


class _Forward:
    """From units' rows to their losses: the model's formula on gathered rows."""

    def __init__(
        self,
        plan: TrainingPlan,
        catalogue: Catalogue,
        known: ShopState,
        units: Units,
        events: ShopEvents,
    ) -> None:
        self._plan, self._loss = plan, LOSSES[plan.loss]
        self._people: sparse.csr_matrix | None = None
        if plan.model.customer_rows and plan.unit == "customer":
            count = len(events.user_ids)
            self._people = attribute_matrix(events.attributes, count, plan.model.customer_rows)
        self._digests = np.zeros(0, np.uint64)
        if plan.target_share < 1.0 or plan.loss == "softmax":
            self._digests = unit_digests(units, events.user_ids)
        self._along = torch.tensor(known.along)
        self._edges = np.cumsum(known.rates, dtype=np.float64)
        self._features: tuple[np.ndarray, np.ndarray] | None = None
        width = 1
        if plan.model.feature_rows:
            table = feature_weights(catalogue, plan.model, known.block.rows)
            self._features = _padded(table, np.arange(table.shape[0]))
            width += self._features[0].shape[1]
        self.floats_per_product = width * plan.model.dimension
        # Each unit has copies of its own of all dense parameters, and so of their gradients.
        self.floats_per_unit = sum(
            math.prod(shape)
            for name, shape in trained_spec(plan.model, catalogue.size).items()
            if name not in TABLES
        )
        if plan.loss == "softmax":
            self.floats_per_unit += plan.negatives * self.floats_per_product
        self._expected = torch.tensor(known.expected)
        self._gram = torch.tensor(known.gram)

    def batch(self, rows: sparse.csr_matrix, members: np.ndarray, key: int) -> UnitBatch:
        """Return the units ``members`` of (U, L) ``rows``, each with its own targets."""
        products, weights = _padded(rows, members)
        history = target = weights
        share = self._plan.target_share
        if share < 1.0:
            chosen = uniforms(key, self._digests[members], products.shape[1]) < share
            history, target = np.where(chosen, 0.0, weights), np.where(chosen, weights, 0.0)
        if self._plan.loss == "softmax":
            drawing = ~key & (2**63 - 1)
            draws = uniforms(drawing, self._digests[members], self._plan.negatives)
            last = len(self._edges) - 1
            negatives = np.searchsorted(self._edges, draws * self._edges[-1]).clip(max=last)
            products = np.concatenate([products, negatives], axis=1)
        ids = {ITEMS: torch.tensor(products)}
        data = {
            "history": torch.tensor(history, dtype=torch.float32),
            "target": torch.tensor(target, dtype=torch.float32),
        }
        if self._features is not None:
            found, shares = self._features
            inside = (products >= 0)[:, :, None]
            feature_ids = np.where(inside, found[products], -1)
            ids[FEATURES] = torch.tensor(feature_ids.reshape(len(members), -1))
            data["features"] = torch.tensor(np.where(inside, shares[products], 0.0))
        if self._people is not None:
            attributes, known = _padded(self._people, members)
            ids[CUSTOMERS] = torch.tensor(attributes)
            data["attributes"] = torch.tensor(known)
        return UnitBatch(len(members), ids, data)

    def losses(self, rows: Tensors, dense: Tensors, batch: UnitBatch) -> Tensor:
        """Return (B,) losses of a batch of units."""
        data = batch.data
        vectors = rows[ITEMS]
        if self._features is not None:
            count, places, width = data["features"].shape
            features = rows[FEATURES].view(count, places, width, -1)
            vectors = vectors + (features * data["features"].unsqueeze(3)).sum(dim=2)
        length = data["history"].shape[1]
        along = self._along[batch.ids[ITEMS][:, :length].clamp(min=0)]
        own = vectors[:, :length]
        customer = self._pool(own, data["history"], along)
        if CUSTOMERS in rows:
            customer = customer + (rows[CUSTOMERS] * data["attributes"].unsqueeze(2)).sum(dim=1)
        customer = _tower(customer, dense)
        unit = UnitVectors(
            customer=customer,
            target=self._pool(own, data["target"], along),
            targets=own,
            target_mask=(data["target"] > 0).to(own.dtype),
            negatives=vectors[:, length:],
            gram=self._gram,
        )
        return self._loss(unit)

    def _pool(self, vectors: Tensor, weights: Tensor, along: Tensor) -> Tensor:
        count = (weights * along).sum(dim=1, keepdim=True)
        return (vectors * weights.unsqueeze(2)).sum(dim=1) - count * self._expected


def _tower(pooled: Tensor, dense: Tensors) -> Tensor:
    """Apply each unit's own copy of the tower's layers; without layers, nothing."""
    hidden = pooled
    layers = len([name for name in dense if name.endswith("weight")])
    for layer in range(layers):
        weight, bias = dense[f"tower.{layer}.weight"], dense[f"tower.{layer}.bias"]
        # Not bmm: how BLAS sums a unit's row depends on the size of the batch.
        hidden = (weight * hidden.unsqueeze(1)).sum(dim=2) + bias
        if layer < layers - 1:
            hidden = hidden.relu()
    return hidden


def _padded(matrix: sparse.csr_matrix, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (B, W) columns, -1 for padding, and values of the rows ``members``.

    W is the longest row's length, up to a power of two.
    """
    starts, lengths = matrix.indptr[members], np.diff(matrix.indptr)[members]
    width = _width(int(lengths.max(initial=1)))
    places = np.arange(width)
    inside = places < lengths[:, None]
    index = np.where(inside, starts[:, None] + places, 0)
    if not matrix.nnz:
        return np.full(inside.shape, -1), np.zeros(inside.shape, np.float32)
    columns = np.where(inside, matrix.indices[index], -1).astype(np.int64)
    return columns, np.where(inside, matrix.data[index], 0.0).astype(np.float32)


def _width(length: int) -> int:
    return 1 << max(length - 1, 0).bit_length()


def _physical_batches(
    rows: sparse.csr_matrix, sampled: np.ndarray, floats_per_product: int, floats_per_unit: int
) -> Iterator[np.ndarray]:
    """Yield units whose padded length is the same: their own count, up to a power of two.

    A unit's padding depends on the unit alone, and so does the rounding of its gradient.
    """
    lengths = np.diff(rows.indptr)[sampled]
    widths = np.array([_width(int(length)) for length in lengths], dtype=np.int64)
    for width in np.unique(widths[lengths > 0]):
        members = sampled[(widths == width) & (lengths > 0)]
        count = max(1, _BATCH_FLOATS // (int(width) * floats_per_product + floats_per_unit))
        for start in range(0, len(members), count):
            yield members[start : start + count]
