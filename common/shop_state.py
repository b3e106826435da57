"""What a shop's private step reads of a round's released state, and how little of it must travel.

A step reads rows of products that its units hold, and of all others three things alone: the
expected basket, the Gram matrix, and what a product's gain is relative to. So where a stock table
is published, a shop is sent a slice: its own rows, and what was worked out from all rows. Which
rows follows from the table, the plan and ``learned_bits``; no row number travels. The popularity is
not among them: a product's gain, or its weight in its group, is all that a step takes from it.
What a step computes from a slice is what it computes from whole arrays, to the bit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from common.array_checks import check_arrays
from common.blocks import (
    Block,
    GroupBlock,
    LearnedBlock,
    block_of,
    group_places,
    learned_count,
    learned_of,
    taken_off,
)
from common.errors import ConfigError, ProtocolError
from common.features import Catalogue
from common.model import FEATURES, feature_weights, state_spec, trained_spec
from common.protocol import (
    EXPECTED,
    GAIN,
    GRAM,
    ITEMS,
    LEARNED,
    OFFSET,
    POPULAR,
    POPULARITY,
    RATES,
    WEIGHTS,
    Arrays,
    ModelPlan,
    TrainingPlan,
)
from common.stocked_rows import ByRow, Shapes, sent_rows, sent_shapes, stocked_among


@dataclass(frozen=True)
class ShopState:
    """A round's released state as one shop's private step reads it.

    Of L learned rows a shop has k: all of them, or those of products that it stocks.

    Attributes
    ----------
    arrays
        Name -> start value of every trained array; of the learned rows (k, d).
    block
        From histories to training rows (U, k).
    along
        (k,) float32, see :func:`common.blocks.taken_off`.
    rates
        (k,) float32 popularity rates that negatives are drawn by; zeros where a slice has none.
    expected
        (d,) float32 what is taken off a unit's vector for each of ``along``.
    gram
        (d, d) float32 ``VᵀV`` over all L rows.
    learned
        Of a slice: what each of the L rows is of; see :func:`common.blocks.learned_of`.
    by_row, products
        Of a slice: name -> (r, ...) what was sent of arrays whose rows are products', and the
        catalogue row of each.
    """

    arrays: Arrays
    block: Block
    along: np.ndarray
    rates: np.ndarray
    expected: np.ndarray
    gram: np.ndarray
    learned: np.ndarray | None = None
    by_row: Arrays = field(default_factory=dict)
    products: np.ndarray | None = None

    @classmethod
    def of(
        cls, plan: TrainingPlan, state: Mapping[str, np.ndarray], catalogue: Catalogue
    ) -> "ShopState":
        """Return the whole of a released state."""
        model = plan.model
        block = block_of(model, state[POPULARITY], catalogue)
        along, weights = taken_off(block, model)
        vectors = np.asarray(state[ITEMS])
        if model.feature_rows:
            vectors = vectors + feature_weights(catalogue, model, block.rows) @ state[FEATURES]
        return cls(
            arrays={name: state[name] for name in trained_spec(model, catalogue.size)},
            block=block,
            along=along,
            rates=block.rates,
            expected=np.asarray(weights @ vectors, dtype=np.float32),
            gram=np.asarray(vectors.T @ vectors, dtype=np.float32),
        )


class Slices:
    """What each shop is sent of a round's released state, where a stock table is published."""

    def __init__(
        self, plan: TrainingPlan, state: Mapping[str, np.ndarray], catalogue: Catalogue
    ) -> None:
        whole = ShopState.of(plan, state, catalogue)
        block = whole.block
        values = {**whole.arrays, GRAM: whole.gram, EXPECTED: whole.expected}
        values |= {GAIN: block.gain, RATES: whole.rates}
        if isinstance(block, GroupBlock):
            values |= {WEIGHTS: block.weights.data, OFFSET: block.offset}
        elif plan.model.popular_share < 1.0:
            values[POPULAR] = whole.along
        #: What each learned row is of; see :func:`common.blocks.learned_of`.
        self.learned = learned_of(plan.model, state[POPULARITY], catalogue)
        self._spec = _Spec(plan, catalogue, self.learned)
        self._whole = {name: np.asarray(values[name]) for name in self._spec.shapes}
        #: What all shops are sent alike.
        self.shared: Arrays = {n: a for n, a in self._whole.items() if n not in self._spec.rows}
        if _chosen(plan.model, catalogue):
            chosen = np.zeros(_choices(plan.model, catalogue), dtype=bool)
            chosen[self.learned] = True
            self.shared[LEARNED] = np.packbits(chosen)
        #: What each has its own rows of, and (R,) the catalogue row of each of these rows.
        self.by_row: Arrays = {name: self._whole[name] for name in self._spec.rows}
        self.products = self._spec.products

    def nbytes(self, stocked: np.ndarray | None) -> int:
        """Return how many bytes a slice has."""
        shapes = sent_shapes(self._spec.shapes, sent_rows(self._spec.by_row, stocked))
        return sum(4 * math.prod(shape) for shape in shapes.values())

    def of(self, stocked: np.ndarray | None) -> Arrays:
        """Return what a shop is sent that stocks these catalogue rows; None: all."""
        rows = sent_rows(self._spec.by_row, stocked)
        own = {name: whole[rows[name]] if rows else whole for name, whole in self.by_row.items()}
        return {**self.shared, **own}


def read_slice(
    plan: TrainingPlan, sent: Arrays, catalogue: Catalogue, stocked: np.ndarray | None
) -> ShopState:
    """Return what a shop was sent of a round's state, checked; of a whole state, what is its own.

    Parameters
    ----------
    sent
        A slice, or all of the state.
    stocked
        Catalogue rows that the shop stocks, as published; None: it is not named and has all.

    Raises
    ------
    ProtocolError
        If it is neither what :meth:`Slices.of` returns for that shop, plan and catalogue, nor a
        whole state of them.
    """
    model = plan.model
    if POPULARITY in sent:
        check_arrays(sent, state_spec(model, catalogue.size), max_norm=0.0)
        own = Slices(plan, sent, catalogue).of(stocked)
        return replace(read_slice(plan, own, catalogue, stocked), by_row={}, products=None)
    learned = _read_learned(model, sent, catalogue)
    spec = _Spec(plan, catalogue, learned)
    rows = sent_rows(spec.by_row, stocked)
    arrays = {name: array for name, array in sent.items() if name != LEARNED}
    check_arrays(arrays, sent_shapes(spec.shapes, rows), max_norm=0.0)
    products = spec.products
    if stocked is not None:
        products = products[stocked_among(products, stocked)]
    if model.groups:
        block: Block = _group_block(model, arrays, catalogue, learned, products)
    else:
        gain = arrays[GAIN]
        block = LearnedBlock(products, gain, arrays.get(RATES, np.zeros_like(gain)))
    return ShopState(
        arrays={name: arrays[name] for name in trained_spec(model, catalogue.size)},
        block=block,
        along=arrays.get(POPULAR, block.gain),
        rates=block.rates,
        expected=arrays[EXPECTED],
        gram=arrays[GRAM],
        learned=learned,
        by_row={name: arrays[name] for name in spec.rows},
        products=products,
    )


class _Spec:
    """Which arrays make a slice, by plan.

    Attributes
    ----------
    shapes
        Name -> shape of the whole array.
    rows
        Names of those whose rows are products'.
    products
        (R,) the catalogue row of each row of these.
    """

    def __init__(self, plan: TrainingPlan, catalogue: Catalogue, learned: np.ndarray) -> None:
        model = plan.model
        d, count = model.dimension, learned_count(model, catalogue.size)
        shapes: dict[str, tuple[int, ...]] = dict(trained_spec(model, catalogue.size))
        shapes |= {GRAM: (d, d), EXPECTED: (d,)}
        drawn = plan.loss == "softmax"
        if not model.groups:
            self.products, self.rows = learned, [ITEMS, GAIN]
            shapes[GAIN] = (count,)
            if model.popular_share < 1.0:
                shapes[POPULAR] = (count,)
                self.rows.append(POPULAR)
            if drawn:
                shapes[RATES] = (count,)
                self.rows.append(RATES)
        elif model.group_weights == "even":
            self.products, self.rows = np.zeros(0, np.int64), []
            shapes[GAIN] = (count,)
            if drawn:
                shapes[RATES] = (count,)
        else:
            places = _places(model, catalogue, learned)
            self.products, self.rows = np.flatnonzero(places >= 0), [WEIGHTS]
            shapes[WEIGHTS] = self.products.shape
            if model.centred:
                shapes[OFFSET] = (count,)
        self.shapes: Shapes = shapes

    @property
    def by_row(self) -> ByRow:
        """Name -> (R,) catalogue row of each row, of arrays whose rows are products'."""
        return dict.fromkeys(self.rows, self.products)


def _group_block(
    model: ModelPlan,
    arrays: Arrays,
    catalogue: Catalogue,
    learned: np.ndarray,
    products: np.ndarray,
) -> GroupBlock:
    """Return the part of a block of groups that a shop's own histories read."""
    places, count = _places(model, catalogue, learned), model.learned_items
    zeros, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
    gain, offset = arrays.get(GAIN, ones), arrays.get(OFFSET, zeros)
    if model.group_weights == "even":
        products = np.flatnonzero(places >= 0)
        values = (1.0 / gain[places[products]]).astype(np.float32)
    else:
        values = arrays[WEIGHTS]
    entries = (values, (products, places[products]))
    weights = sparse.csr_matrix(entries, shape=(catalogue.size, count))
    # Nothing is lifted in a step: products are scored at home, with the whole model.
    return GroupBlock(weights, offset, gain, arrays.get(RATES, zeros), weights)


def _places(model: ModelPlan, catalogue: Catalogue, learned: np.ndarray) -> np.ndarray:
    return group_places(catalogue.feature(model.groups), catalogue.size, learned)


def _choices(model: ModelPlan, catalogue: Catalogue) -> int:
    """Return of how many products, or groups, the learned ones were chosen."""
    return len(catalogue.feature(model.groups).values) if model.groups else catalogue.size


def _chosen(model: ModelPlan, catalogue: Catalogue) -> bool:
    """Return whether not all products, or groups, are learned, so that it must be said which."""
    return learned_count(model, catalogue.size) < _choices(model, catalogue)


def _read_learned(model: ModelPlan, sent: Arrays, catalogue: Catalogue) -> np.ndarray:
    """Return what each learned row is of, ascending, as a slice says."""
    try:
        choices = _choices(model, catalogue)
    except ConfigError as error:
        raise ProtocolError(f"the plan does not fit the catalogue: {error}") from error
    if not _chosen(model, catalogue):
        return np.arange(choices)
    bits = sent.get(LEARNED)
    if bits is None or bits.dtype != np.uint8 or bits.shape != (-(-choices // 8),):
        raise ProtocolError(f"array {LEARNED!r} is not one bit for each of {choices}")
    learned = np.flatnonzero(np.unpackbits(bits, count=choices))
    if len(learned) != learned_count(model, catalogue.size):
        raise ProtocolError(f"array {LEARNED!r} names {len(learned)} rows")
    return learned
