"""The learned block's view of the products: which have rows, and how histories become rows.

Everything here follows from the plan, the released popularity and the public catalogue.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from common.features import Catalogue, Feature
from common.protocol import ModelPlan

_GAIN_FLOOR = 0.05


def learned_count(model: ModelPlan, catalogue_size: int) -> int:
    """Return the number of learned rows: products, or groups of products."""
    if model.groups:
        return model.learned_items
    return min(model.learned_items or catalogue_size, catalogue_size)


def learned_rows(popularity: np.ndarray, count: int) -> np.ndarray:
    """Return (count,) catalogue rows of the most popular products; of equals, the earlier row."""
    best: np.ndarray = np.argsort(-popularity, kind="stable")[:count]
    best.sort()
    return best


def gains(popularity: np.ndarray, exponent: float) -> np.ndarray:
    """Return (n,) float32 gains ``g``, with a geometric mean of 1."""
    ratio = popularity * (len(popularity) / max(float(popularity.sum()), 1e-12))
    log_gain = exponent * np.log(ratio + _GAIN_FLOOR)
    gain: np.ndarray = np.exp(log_gain - log_gain.mean()).astype(np.float32)
    return gain


class _Projection(ABC):
    """What both kinds of learned block do with the rows that they project to."""

    @abstractmethod
    def project(self, history: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return (B, L) rows of (B, n) histories."""

    def training_rows(self, history: sparse.csr_matrix, exponent: float) -> sparse.csr_matrix:
        """Return (B, L) float32 training rows ``y / |y|^e`` of projected histories ``y``.

        Places ascend in each, so what is drawn for them follows from the row alone.
        """
        rows = self.project(history)
        norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        scale = np.zeros_like(norms)
        scale[norms > 0] = norms[norms > 0] ** -exponent
        scaled = sparse.csr_matrix(sparse.diags_array(scale.astype(np.float32)) @ rows)
        scaled.sort_indices()
        return scaled


@dataclass(frozen=True)
class LearnedBlock(_Projection):
    """The learned block's view of the products: its rows, gains and rates.

    Attributes
    ----------
    rows
        (L,) catalogue rows, ascending.
    gain
        (L,) float32 ``g``.
    rates
        (L,) float32 popularity rates among these products, summing to 1 (or all 0).
    """

    rows: np.ndarray
    gain: np.ndarray
    rates: np.ndarray

    @classmethod
    def of(cls, model: ModelPlan, popularity: np.ndarray) -> "LearnedBlock":
        """Return the block that a plan and a released popularity fix."""
        rows = learned_rows(popularity, learned_count(model, len(popularity)))
        kept = popularity[rows].astype(np.float32)
        rates = kept / max(float(kept.sum()), 1e-12)
        return cls(rows, gains(kept, model.popularity_exponent), rates.astype(np.float32))

    def project(self, history: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return (B, L) float32 ``x_j / g_j`` of (B, n) histories."""
        # Taking columns of a sparse matrix costs a pass over all L, however short the history.
        place = np.searchsorted(self.rows, history.indices).astype(history.indices.dtype)
        kept = place < len(self.rows)
        kept[kept] = self.rows[place[kept]] == history.indices[kept]
        place = place[kept]
        values = history.data[kept].astype(np.float32) * self._inverse_gain[place]
        ends = np.append(0, np.cumsum(kept))[history.indptr].astype(history.indptr.dtype)
        shape = (history.shape[0], len(self.rows))
        return sparse.csr_matrix((values, place, ends), shape=shape)

    @cached_property
    def _inverse_gain(self) -> np.ndarray:
        inverse: np.ndarray = (1.0 / self.gain).astype(np.float32)
        return inverse

    @cached_property
    def popular(self) -> np.ndarray:
        """(L,) float32 the direction, of norm 1, of the popularity rates among training rows."""
        direction = self.rates * self._inverse_gain
        norm = float(np.linalg.norm(direction))
        popular: np.ndarray = (direction / (norm or 1.0)).astype(np.float32)
        return popular

    def lift(self, vectors: np.ndarray, catalogue_size: int) -> np.ndarray:
        """Return (n, d) float32 ``g_i v_i``; 0 for a product without a row."""
        lifted = np.zeros((catalogue_size, vectors.shape[1]), np.float32)
        lifted[self.rows] = vectors * self.gain[:, None]
        return lifted


@dataclass(frozen=True)
class GroupBlock(_Projection):
    """A learned block whose rows are groups of products, the values of one content feature.

    A history is ``x W`` (L groups), and a product's vector the ``i``-th row of ``G`` times the
    groups' vectors. By ``group_weights`` of the plan:

    - ``popular``: ``W_i = G_i`` is a product's released popularity over the norm of its group's.
      The expected basket is taken off each history here.
    - ``even``: a group is to a history what a product is to :class:`LearnedBlock`, with the
      popularity of all its products; ``G_i`` is its gain times a product's share in it. What is
      not bought stays 0, so histories are as short as they were.

    Attributes
    ----------
    weights
        (n, L) float32 ``W``, one entry a product; none where its group is not among the L.
    offset
        (L,) float32 ``Σ_i p_i W_i``; 0 where the plan does not centre, or weights are even.
    gain, rates
        (L,) float32 of the groups, as :class:`LearnedBlock` has them of products, where weights
        are even; else ones and zeros: popularity is in the weights, the expected basket is off.
    lifting
        (n, L) float32 ``G``.
    """

    weights: sparse.csr_matrix
    offset: np.ndarray
    gain: np.ndarray
    rates: np.ndarray
    lifting: sparse.csr_matrix

    @classmethod
    def of(cls, model: ModelPlan, popularity: np.ndarray, catalogue: Catalogue) -> "GroupBlock":
        """Return the block that a plan, a released popularity and the catalogue fix."""
        feature, weight = catalogue.feature(model.groups), _group_weights(popularity)
        size, count = len(popularity), model.learned_items
        place = group_places(feature, size, _learned_groups(feature, weight, count))
        if model.group_weights == "even":
            return cls._even(model, popularity, place)
        inside = np.flatnonzero(place >= 0)
        own = place[inside]
        norms = np.sqrt(np.bincount(own, weight[inside] ** 2, count))
        values = (weight[inside] / norms[own]).astype(np.float32)
        weights = sparse.csr_matrix((values, (inside, own)), shape=(size, count))
        rates = popularity / max(float(popularity.sum()), 1e-12)
        offset = np.asarray(weights.T @ rates) * float(model.centred)
        ones = np.ones(model.learned_items, np.float32)
        return cls(weights, offset.astype(np.float32), ones, np.zeros_like(ones), weights)

    @classmethod
    def _even(cls, model: ModelPlan, popularity: np.ndarray, place: np.ndarray) -> "GroupBlock":
        """Return the block of even weights from each product's place (n,) among the L, or -1."""
        count = model.learned_items
        inside = np.flatnonzero(place >= 0)
        own, weight = place[inside], _group_weights(popularity)[inside]
        mass = np.bincount(own, weight, count).astype(np.float32)
        gain = gains(mass, model.popularity_exponent)
        rates = mass / max(float(mass.sum()), 1e-12)
        shape, shares = (len(popularity), count), weight / mass[own]

        def entries(values: np.ndarray) -> sparse.csr_matrix:
            return sparse.csr_matrix((values.astype(np.float32), (inside, own)), shape=shape)

        offset = np.zeros(count, np.float32)
        return cls(entries(1.0 / gain[own]), offset, gain, rates, entries(shares * gain[own]))

    def with_shares(self, popularity: np.ndarray) -> "GroupBlock":
        """Return a block of even weights whose products' shares follow another (n,) popularity."""
        known, weight = self.lifting.tocoo(), _group_weights(popularity)
        mass = np.bincount(known.col, weight[known.row], self.lifting.shape[1])
        values = weight[known.row] / mass[known.col] * self.gain[known.col]
        entries = (values.astype(np.float32), (known.row, known.col))
        return replace(self, lifting=sparse.csr_matrix(entries, shape=self.lifting.shape))

    def with_weights(self, weights: np.ndarray) -> "GroupBlock":
        """Return a block of even weights whose products have (n,) weights of their group's taste.

        A group's vector over its mass is the mean taste of who buys of it; a product's is that
        times its weight, whatever the weights of its group add up to.
        """
        known = self.lifting.tocoo()
        mass = np.maximum(self.rates * len(self.rates), _GAIN_FLOOR)
        values = weights[known.row] * (self.gain / mass)[known.col]
        entries = (values.astype(np.float32), (known.row, known.col))
        return replace(self, lifting=sparse.csr_matrix(entries, shape=self.lifting.shape))

    @property
    def rows(self) -> np.ndarray:
        """(L,) numbers of the groups."""
        return np.arange(self.weights.shape[1])

    def project(self, history: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return (B, L) float32 ``x W - k offset`` of (B, n) histories."""
        rows = sparse.csr_matrix(history.astype(np.float32) @ self.weights)
        if not self.offset.any():
            return rows
        counts = np.asarray(history.sum(axis=1)).ravel()
        return sparse.csr_matrix(rows.toarray() - np.outer(counts, self.offset))

    def lift(self, vectors: np.ndarray, catalogue_size: int) -> np.ndarray:
        """Return (n, d) float32 ``G v``; 0 for a product without a group."""
        assert self.lifting.shape[0] == catalogue_size
        return np.asarray(self.lifting @ vectors, dtype=np.float32)


def _group_weights(popularity: np.ndarray) -> np.ndarray:
    """Return (n,) how much each product says in its group, before the group's norm."""
    weights: np.ndarray = popularity / max(float(popularity.mean()), 1e-12) + _GAIN_FLOOR
    return weights


def _learned_groups(feature: Feature, weight: np.ndarray, count: int) -> np.ndarray:
    """Return the codes, ascending, of the ``count`` values of ``feature`` that weigh most."""
    group = np.full(len(weight), -1)
    group[feature.rows] = feature.codes
    inside = np.flatnonzero(group >= 0)
    mass = np.bincount(group[inside], weight[inside], len(feature.values))
    kept: np.ndarray = np.sort(np.argsort(-mass, kind="stable")[:count])
    return kept


def group_places(feature: Feature, size: int, kept: np.ndarray) -> np.ndarray:
    """Return (n,) which of the groups ``kept``, codes of ``feature``, a product is in; else -1."""
    place = np.full(len(feature.values), -1)
    place[kept] = np.arange(len(kept))
    places = np.full(size, -1)
    places[feature.rows] = place[feature.codes]
    return places


def learned_of(model: ModelPlan, popularity: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """Return (L,) what each learned row is of, ascending: a catalogue row, or a group's code.

    There may be fewer groups than the plan has rows for.
    """
    if not model.groups:
        return learned_rows(popularity, learned_count(model, catalogue.size))
    feature = catalogue.feature(model.groups)
    return _learned_groups(feature, _group_weights(popularity), model.learned_items)


def learned_names(model: ModelPlan, popularity: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """Return (L,) what each learned row is of: a product's id, or a group's value.

    There may be fewer names than rows where there are fewer groups than the plan has rows for.
    """
    learned = learned_of(model, popularity, catalogue)
    known = catalogue.feature(model.groups).values if model.groups else catalogue.item_ids
    names: np.ndarray = np.asarray(known, dtype=object)[learned]
    return names


Block = LearnedBlock | GroupBlock


def taken_off(block: Block, model: ModelPlan) -> tuple[np.ndarray, np.ndarray]:
    """Return what a unit's vector loses: (L,) ``a`` and (L,) ``e`` of ``u = Vᵀx - ⟨a, x⟩ Vᵀe``.

    The expected basket, or most of what the unit has along the released popularity; else nothing.
    """
    if model.popular_share < 1.0:
        assert isinstance(block, LearnedBlock)
        return block.popular, block.popular * np.float32(1.0 - model.popular_share)
    return block.gain, block.rates / block.gain * float(model.centred)


def block_of(model: ModelPlan, popularity: np.ndarray, catalogue: Catalogue) -> Block:
    """Return the learned block of a plan on a released popularity."""
    if model.groups:
        return GroupBlock.of(model, popularity, catalogue)
    return LearnedBlock.of(model, popularity)


def with_unsold(
    block: Block, model: ModelPlan, popularity: np.ndarray, catalogue: Catalogue
) -> Block:
    """Return a block for more products, each as one that nobody has bought.

    Parameters
    ----------
    popularity
        (n,) released, of the products that the block is of.
    catalogue
        These n products, and further ones behind them; values of features keep their codes.

    Returns
    -------
    LearnedBlock or GroupBlock
        Where the plan has a table of features, each further product has a row; where its rows are
        groups, a product has a part in its group. Otherwise nothing is learned of any.
    """
    if isinstance(block, GroupBlock):
        return _more_in_groups(block, model, popularity, catalogue)
    if not model.feature_rows:
        return block
    # A gain is relative to the mean of all: any row tells what one of no popularity has.
    ratio = float(block.rates[0]) * len(block.rates) + _GAIN_FLOOR
    gain = float(block.gain[0]) * (_GAIN_FLOOR / ratio) ** model.popularity_exponent
    more = np.arange(len(popularity), catalogue.size)
    return LearnedBlock(
        np.concatenate([block.rows, more.astype(block.rows.dtype)]),
        np.concatenate([block.gain, np.full(len(more), gain, np.float32)]),
        np.concatenate([block.rates, np.zeros(len(more), np.float32)]),
    )


def _more_in_groups(
    block: GroupBlock, model: ModelPlan, popularity: np.ndarray, catalogue: Catalogue
) -> GroupBlock:
    """Return the block with all products of a catalogue; see :func:`with_unsold`."""
    feature, size = catalogue.feature(model.groups), catalogue.size
    group = np.full(size, -1)
    group[feature.rows] = feature.codes
    known = block.weights.tocoo()
    place = np.full(len(feature.values), -1)
    place[group[known.row]] = known.col
    more = np.arange(len(popularity), size)
    more = more[group[more] >= 0]
    more = more[place[group[more]] >= 0]
    inside = place[group[more]]
    norms = np.ones(block.weights.shape[1])
    norms[known.col] = _group_weights(popularity)[known.row] / block.lifting.tocoo().data
    lifted = _GAIN_FLOOR / norms[inside]
    values = 1.0 / block.gain[inside] if model.group_weights == "even" else lifted

    def longer(matrix: sparse.csr_matrix, entries: np.ndarray) -> sparse.csr_matrix:
        shape = (size - len(popularity), matrix.shape[1])
        places = (more - len(popularity), inside)
        below = sparse.csr_matrix((entries.astype(np.float32), places), shape=shape)
        return sparse.csr_matrix(sparse.vstack([matrix, below]))

    weights = longer(block.weights, values)
    return replace(block, weights=weights, lifting=longer(block.lifting, lifted))
