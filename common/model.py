"""The embedding model: global state, what each part of a score is, and what stays at home.

For a history ``x`` over products (``(n,)``, weights of what a customer did), with ``k = Σ x_j`` and
the released popularity rates ``p``::

    score_i = a ⟨c_u, c_i⟩ + g_i ⟨u, v_i⟩ + b_i
    c_u = Σ_j x_j c_j - k Σ_j p_j c_j            content, minus the expected basket's
    u   = S f(Σ_j x_j v_j / g_j - k Σ_j p_j v_j / g_j + Σ_a E_a)
    v_i = E_id[i] + Σ_f E_f[f(i)]
    b_i = p_i n                                  popularity: 1 is an average product

Where nothing was released of a product (``p_i = 0``: it was added since, or nobody has bought it),
``b_i`` is what products of the same content have in the mean.

``g_i ∝ (p_i n + ε)^β``, of geometric mean 1, is a product's gain: a popular product says less of a
taste and is wanted more. ``S`` is the spectrum (one energy a dimension, relative to the largest),
``f`` the tower. With the linear tower every part is linear in ``x``, so a score comes apart
exactly. The learned block sees the ``learned_items`` most popular products (0: all); sums and ``p``
are then over those.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from common.array_checks import check_arrays
from common.blocks import Block, LearnedBlock, block_of, learned_count
from common.errors import ArtifactError, ProtocolError
from common.features import CROSS, Catalogue, content_columns, hashed_rows
from common.popularity import of_like
from common.protocol import (
    ITEMS,
    POPULARITY,
    SPECTRUM,
    Arrays,
    ModelPlan,
    TrainingPlan,
)
from common.rng import derive

FEATURES = "feature_embedding"
CUSTOMERS = "customer_embedding"
_TOWER = (
    "tower.0.weight",
    "tower.0.bias",
    "tower.1.weight",
    "tower.1.bias",
    "tower.2.weight",
    "tower.2.bias",
)

#: Parts of a score that come from the global model.
GLOBAL_PARTS = ("content", "learned", "popularity")

#: A shop's own state. It is fitted at home from records in clear and never put on the wire.
LOCAL_NAMES = frozenset(
    (
        *("own_popularity", "own_ease", "shared_ease", "own_learned", "expected_content", "kin"),
        *("shared_learned", "shares"),
        *("mixing_weights", "part_scales", "segments", "outside", "best_sellers", "best"),
    )
)


def state_spec(model: ModelPlan, catalogue_size: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the global state: all that travels from the server to the shops."""
    return {
        POPULARITY: (catalogue_size,),
        SPECTRUM: (model.dimension,),
        **trained_spec(model, catalogue_size),
    }


def trained_spec(model: ModelPlan, catalogue_size: int) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the arrays that shops train: all that travels back."""
    d, hidden = model.dimension, model.hidden
    spec: dict[str, tuple[int, ...]] = {ITEMS: (learned_count(model, catalogue_size), d)}
    if model.feature_rows:
        spec[FEATURES] = (model.feature_rows, d)
    if model.customer_rows:
        spec[CUSTOMERS] = (model.customer_rows, d)
    if model.tower == "mlp":
        shapes = [(hidden, d), (hidden,), (hidden, hidden), (hidden,), (d, hidden), (d,)]
        spec.update(zip(_TOWER, shapes, strict=True))
    return spec


def trained_names(plan: TrainingPlan) -> tuple[str, ...]:
    """Return the names of :func:`trained_spec`: what shops send a delta of."""
    return tuple(trained_spec(plan.model, 1))


def initial_state(model: ModelPlan, catalogue_size: int) -> Arrays:
    """Return the state before the first exchange: public, from the plan's seed alone.

    Item rows are orthonormal columns; the tower starts as He et al. (2015) propose.
    """
    rng = derive(model.seed, purpose="initial-state")
    state: Arrays = {
        POPULARITY: np.zeros(catalogue_size, np.float32),
        SPECTRUM: np.ones(model.dimension, np.float32),
    }
    for name, shape in trained_spec(model, catalogue_size).items():
        draw = rng.standard_normal(shape).astype(np.float32)
        if name == ITEMS:
            state[name] = np.linalg.qr(draw)[0] if shape[0] >= shape[1] else draw / shape[1] ** 0.5
        elif name.endswith("bias"):
            state[name] = np.zeros(shape, np.float32)
        elif name.startswith("tower"):
            state[name] = draw * np.float32((2.0 / shape[1]) ** 0.5)
        else:
            state[name] = draw * np.float32(0.01)
    return state


@dataclass(frozen=True)
class GlobalModel:
    """The global model on one catalogue, ready to score.

    Raises
    ------
    ProtocolError
        If the state does not fit the plan and catalogue.
    """

    plan: ModelPlan
    catalogue: Catalogue
    state: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        check_arrays(self.state, state_spec(self.plan, self.catalogue.size), max_norm=0.0)

    @cached_property
    def block(self) -> Block:
        """The learned block's view of the products."""
        return block_of(self.plan, self.state[POPULARITY], self.catalogue)

    def around(self, block: Block) -> "GlobalModel":
        """Return the same model with another view of the products, and so other lifted vectors."""
        found = copy(self)
        for name in ("block", "lifted_vectors"):  # Where cached_property would put them.
            vars(found).pop(name, None)
        vars(found).update(block=block)
        return found

    @cached_property
    def item_vectors(self) -> np.ndarray:
        """(L, d) float32 ``v_i``."""
        vectors = np.asarray(self.state[ITEMS])
        if self.plan.feature_rows:
            vectors = (
                vectors
                + feature_weights(self.catalogue, self.plan, self.block.rows)
                @ (self.state[FEATURES])
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    @cached_property
    def lifted_vectors(self) -> np.ndarray:
        """(n, d) float32 ``g_i v_i`` of every product; 0 outside the learned block."""
        return self.block.lift(self.item_vectors, self.catalogue.size)

    @cached_property
    def in_block(self) -> np.ndarray:
        """(n,) bool: products that the learned block says something of."""
        ones = np.ones((len(self.item_vectors), 1), np.float32)
        reached: np.ndarray = self.block.lift(ones, self.catalogue.size)[:, 0] != 0
        return reached

    @cached_property
    def spectrum(self) -> np.ndarray:
        """(d,) float32 scale of each dimension of ``u``: ``learned_scale`` for the strongest."""
        energy = np.asarray(self.state[SPECTRUM], dtype=np.float32)
        return np.float32(self.plan.learned_scale) * energy / max(float(energy.max()), 1e-12)

    @cached_property
    def popularity_bias(self) -> np.ndarray:
        """(n,) float32 ``b``: 1 for a product of average popularity."""
        return (self.state[POPULARITY] * self.catalogue.size).astype(np.float32)

    @cached_property
    def popularity_of_like(self) -> np.ndarray:
        """(n,) float32 what a product without any released popularity is taken to have; else 0."""
        known = self.state[POPULARITY] > 0
        if known.all() or not known.any():
            return np.zeros(self.catalogue.size, np.float32)
        like = of_like(self.popularity_bias, known, self.catalogue.features)
        return np.where(known, 0.0, like).astype(np.float32)

    @cached_property
    def popularity_part(self) -> np.ndarray:
        """(n,) float32 the part of every score: released, or that of the product's like."""
        part: np.ndarray = self.popularity_bias + self.popularity_of_like
        return part

    @cached_property
    def expected_content(self) -> np.ndarray:
        """(W,) float32 content of the expected basket of one product."""
        rates = self.state[POPULARITY]
        return np.asarray(self.catalogue.content.T @ rates, dtype=np.float32)

    @cached_property
    def expected_learned(self) -> np.ndarray:
        """(d,) float32 ``Σ_j p_j v_j / g_j``; 0 where the plan does not centre."""
        if not self.plan.centred:
            return np.zeros(self.plan.dimension, np.float32)
        vector: np.ndarray = (self.block.rates / self.block.gain) @ self.item_vectors
        return vector

    def customer_vectors(
        self, history: sparse.csr_matrix, attributes: sparse.csr_matrix | None = None
    ) -> np.ndarray:
        """Return (B, d) float32 ``u`` of (B, n) histories and (B, customer_rows) attributes."""
        scaled = self.block.project(history)
        counts = np.asarray(scaled @ self.block.gain)
        pooled = scaled @ self.item_vectors - np.outer(counts, self.expected_learned)
        if attributes is not None and self.plan.customer_rows:
            pooled = pooled + attributes @ self.state[CUSTOMERS]
        return np.asarray(self._tower(pooled) * self.spectrum, dtype=np.float32)

    def pseudo_customers(self, history: sparse.csr_matrix, power: float = 0.5) -> np.ndarray:
        """Return (d, n) float32 rows ``E`` that stand for all shops' customers.

        ``EᵀE`` is the learned estimate of ``Σ x xᵀ`` over all units, its energies weighed by
        ``power`` (:func:`weighed`). Units trained with scaled rows; how much longer whole
        histories are is read off ``history`` (B, n), a shop's own.
        """
        whole = self.block.project(history)
        trained = self.block.training_rows(history, self.plan.row_exponent)
        energy = float(trained.multiply(trained).sum())
        ratio = float(whole.multiply(whole).sum()) / energy if energy else 0.0
        scale = np.sqrt(weighed(self.state[SPECTRUM], power) * ratio)
        lifted = self.lifted_vectors
        if self.plan.popular_share < 1.0:
            # What units left away along the released popularity, put back.
            assert isinstance(self.block, LearnedBlock)
            popular, left = self.block.popular, self.plan.popular_share
            along = np.outer(popular, popular @ self.item_vectors) * np.float32(1.0 / left - 1.0)
            lifted = self.block.lift(self.item_vectors + along, self.catalogue.size)
        return np.ascontiguousarray((lifted * scale).T, dtype=np.float32)

    def content_profiles(
        self, history: sparse.csr_matrix, expected: np.ndarray | None = None
    ) -> np.ndarray:
        """Return (B, W) float32 ``c_u``; ``expected`` (W,) replaces the released expectation."""
        counts = np.asarray(history.sum(axis=1)).ravel()
        profile = (history @ self.catalogue.content).toarray()
        basket = self.expected_content if expected is None else expected
        return np.asarray(profile - np.outer(counts, basket), dtype=np.float32)

    def content_part(
        self, history: sparse.csr_matrix, expected: np.ndarray | None = None
    ) -> np.ndarray:
        """Return (B, n) float32 ``⟨c_u, c_i⟩``; see :meth:`content_profiles`."""
        profiles = self.content_profiles(history, expected)
        content = np.asarray(self.catalogue.content @ profiles.T).T
        return np.ascontiguousarray(content, dtype=np.float32)

    def learned_part(
        self, history: sparse.csr_matrix, attributes: sparse.csr_matrix | None = None
    ) -> np.ndarray:
        """Return (B, n) float32 ``g_i ⟨u, v_i⟩``; 0 outside the learned block."""
        learned: np.ndarray = self.customer_vectors(history, attributes) @ self.lifted_vectors.T
        return learned

    def parts(
        self, history: sparse.csr_matrix, attributes: sparse.csr_matrix | None = None
    ) -> Arrays:
        """Return the parts of all scores: each (B, n) float32, ``popularity`` (1, n)."""
        return {
            "content": self.content_part(history),
            "learned": self.learned_part(history, attributes),
            "popularity": self.popularity_part[None, :],
        }

    def scores(
        self, history: sparse.csr_matrix, attributes: sparse.csr_matrix | None = None
    ) -> np.ndarray:
        """Return (B, n) float32 scores of the global model alone."""
        parts = self.parts(history, attributes)
        total: np.ndarray = np.float32(self.plan.content_scale) * parts["content"]
        total += parts["learned"]
        total += parts["popularity"]
        return total

    def _tower(self, pooled: np.ndarray) -> np.ndarray:
        if self.plan.tower == "linear":
            return pooled
        hidden = pooled
        for layer in range(3):
            weight, bias = (self.state[f"tower.{layer}.{kind}"] for kind in ("weight", "bias"))
            hidden = hidden @ weight.T + bias
            if layer < 2:
                hidden = np.maximum(hidden, 0.0)
        return hidden


def weighed(energies: np.ndarray, power: float) -> np.ndarray:
    """Return (d,) energies as long as ``power`` makes their directions; the strongest stays.

    A direction is ``√s`` long at .5, the energy ``s`` as it is; at another power ``(s / max s)``
    to that power takes the place of ``√(s / max s)``. Above .5 weaker directions count less.
    """
    energies = np.maximum(energies, 0.0)
    if power == 0.5:
        return energies
    top = max(float(energies.max(initial=0.0)), 1e-12)
    longer: np.ndarray = top * (energies / top) ** (2.0 * power)
    return longer


def check_features(model: ModelPlan, catalogue: Catalogue) -> None:
    """Refuse a model that a catalogue has no features for: before anyone pays for a part of it.

    Raises
    ------
    ProtocolError
        If the two hash into different numbers of rows, or a column of the groups is missing.
    """
    if model.feature_rows not in {0, catalogue.spec.hash_rows}:
        raise ProtocolError(
            f"the plan has {model.feature_rows} feature rows, the catalogue hashes into "
            f"{catalogue.spec.hash_rows}"
        )
    if missing := missing_columns(model, catalogue):
        raise ProtocolError(
            "the plan learns groups of products by columns that the catalogue lacks: "
            f"{', '.join(map(repr, missing))}"
        )


def missing_columns(model: ModelPlan, catalogue: Catalogue) -> list[str]:
    """Return the columns that a model learns groups of and a catalogue does not describe by."""
    named = model.groups.split(CROSS) if model.groups else []
    known = content_columns(catalogue.products)
    return [column for column in named if column not in known]


def feature_weights(catalogue: Catalogue, model: ModelPlan, rows: np.ndarray) -> sparse.csr_matrix:
    """Return (L, feature_rows) float32: how much each feature row is in each product's vector.

    Raises
    ------
    ProtocolError
        If the plan and the catalogue hash into different numbers of rows.
    """
    check_features(model, catalogue)
    return catalogue.feature_ids[rows]


def attribute_matrix(
    attributes: Mapping[str, np.ndarray], customers: int, rows: int
) -> sparse.csr_matrix:
    """Return (U, rows) float32: the hashed rows of each customer's known attributes."""
    total = sparse.csr_matrix((customers, rows), dtype=np.float32)
    for name, values in sorted(attributes.items()):
        known = np.flatnonzero(values != "")
        places = hashed_rows(name, values[known], rows)
        ones = np.ones(len(known), np.float32)
        total = total + sparse.csr_matrix((ones, (known, places)), shape=(customers, rows))
    return total.tocsr()


def check_may_travel(names: Mapping[str, object]) -> None:
    """Refuse to put local state into a record.

    Raises
    ------
    ArtifactError
        If any name is declared local.
    """
    local = sorted(LOCAL_NAMES.intersection(names))
    if local:
        raise ArtifactError(f"{', '.join(local)} is a shop's own state and never leaves it")
