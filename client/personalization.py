"""What a shop learns for itself after training, and never sends.

A shop holds its own records in clear. It mixes the global model's parts with what it learned alone
(its own item-item model and its own popularity). The weights are chosen on its validation weeks,
with models that have not seen those weeks. All parts are linear in a customer's history, and each
is brought to unit spread by one scale a shop, so a mixed score still comes apart exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import Field
from scipy import sparse

from common.metrics import evaluate
from common.model import GLOBAL_PARTS, GlobalModel
from common.protocol import Arrays, Frozen
from common.scoring import top_k

#: Parts that a shop learns alone.
OWN_PARTS = ("own_ease", "own_popularity")
_K = 20


class HomeSettings(Frozen):
    """How a shop adapts.

    Attributes
    ----------
    ease_lambda
        Ridge of the shop's own EASE.
    max_customers
        EASE solves a system of as many equations as it has customers: it takes those with the
        most products, at most so many.
    own_expectation
        Share of the shop's own popularity in the basket that its customers are expected to have.
    start
        Part -> weight that the search starts from; parts that are not named are not used.
    factors
        What the search multiplies one weight with, at each step.
    rounds
        How often the search goes through all weights.
    prior
        How much better (relative) the objective must get before a weight leaves the start: few
        customers make noisy objectives.
    reference
        What popularity alone reaches: the objective counts both metrics in units of it.
    """

    ease_lambda: float = Field(300.0, gt=0)
    max_customers: int = Field(3000, ge=1)
    own_expectation: float = Field(0.5, ge=0, le=1)
    start: dict[str, float]
    factors: tuple[float, ...] = (0.0, 0.5, 2.0)
    rounds: int = Field(1, ge=0)
    prior: float = Field(0.01, ge=0)
    reference: dict[str, float] = Field(
        default_factory=lambda: {"ndcg@20": 0.067, "tail_ndcg@20": 0.0048}
    )


@dataclass(frozen=True)
class Ease:
    """EASE (Steck 2019) of few customers, in its dual form.

    With ``K = λI + XXᵀ`` (U x U), the inverse of ``XᵀX + λI`` is ``P = (I - Xᵀ K⁻¹ X) / λ``, and a
    history ``x`` scores ``x - (x P) / diag(P)``: no product x product matrix is ever built.

    Attributes
    ----------
    customers
        (U, n) the histories it was fitted on.
    solved
        (U, n) float32 ``K⁻¹ X``.
    diagonal
        (n,) float32 ``λ diag(P)``.
    """

    customers: sparse.csr_matrix
    solved: np.ndarray
    diagonal: np.ndarray

    @classmethod
    def fit(cls, histories: sparse.csr_matrix, ridge: float, max_customers: int) -> "Ease":
        """Fit on (U, n) histories."""
        counts = np.diff(histories.indptr)
        chosen = np.sort(np.argsort(-counts, kind="stable")[:max_customers])
        x = sparse.csr_matrix(histories[chosen])
        x.data = np.ones_like(x.data)
        gram = (x @ x.T).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += ridge
        inverse = np.linalg.inv(gram) if len(gram) else gram
        solved = np.asarray((x.T @ inverse.astype(np.float32)).T, dtype=np.float32)
        explained = np.asarray(x.multiply(solved).sum(axis=0)).ravel()
        return cls(x, solved, (1.0 - explained).astype(np.float32))

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 scores of (B, n) histories."""
        seen = history.copy()
        seen.data = np.ones_like(seen.data)
        overlap = (seen @ self.customers.T).toarray().astype(np.float32)
        explained = overlap @ self.solved / self.diagonal
        dense = np.zeros(history.shape, np.float32)
        rows = np.repeat(np.arange(history.shape[0]), np.diff(seen.indptr))
        dense[rows, seen.indices] = 1.0
        result: np.ndarray = dense - (dense / self.diagonal - explained)
        return result


@dataclass(frozen=True)
class HomeModel:
    """A shop's own mixture: local state, never put into a record.

    Attributes
    ----------
    model
        The global model.
    own_ease, own_popularity
        What the shop learned alone; (1, n) float32, 1 for an average product.
    part_scales
        Part -> its spread over the shop's customers and all products.
    mixing_weights
        Part -> weight; parts without a weight are never computed.
    others
        Further parts by name, such as an analyst's pooled model.
    """

    model: GlobalModel
    own_ease: Ease
    own_popularity: np.ndarray
    expected_content: np.ndarray
    part_scales: Mapping[str, float]
    mixing_weights: Mapping[str, float]
    others: Mapping[str, Ease] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        model: GlobalModel,
        histories: sparse.csr_matrix,
        settings: HomeSettings,
        others: Mapping[str, Ease] | None = None,
    ) -> "HomeModel":
        """Fit everything but the weights on (U, n) histories; the weights are the start."""
        ease = Ease.fit(histories, settings.ease_lambda, settings.max_customers)
        binary = histories.copy()
        binary.data = np.ones_like(binary.data)
        counts = np.asarray(binary.sum(axis=0), dtype=np.float32).reshape(1, -1)
        popularity = counts * (counts.shape[1] / max(float(counts.sum()), 1.0))
        own = np.asarray(model.catalogue.content.T @ popularity.ravel()) / popularity.size
        share = settings.own_expectation if counts.sum() else 0.0
        expected = share * own + (1.0 - share) * model.expected_content
        basket = expected.astype(np.float32)
        home = cls(model, ease, popularity, basket, {}, settings.start, others or {})
        parts = home.parts(histories[: settings.max_customers], settings.start)
        scales = {name: float(part.std()) or 1.0 for name, part in parts.items() if part.size}
        return replace(home, part_scales=scales)

    def parts(
        self, history: sparse.csr_matrix, names: Sequence[str] | Mapping[str, float]
    ) -> Arrays:
        """Return the named parts of (B, n) histories: (B, n) float32, popularities (1, n)."""
        found: Arrays = {}
        if set(names).intersection(GLOBAL_PARTS):
            found.update(self.model.parts(history, expected=self.expected_content))
        if "own_ease" in names:
            found["own_ease"] = self.own_ease.scores(history)
        if "own_popularity" in names:
            found["own_popularity"] = self.own_popularity
        found.update({n: other.scores(history) for n, other in self.others.items() if n in names})
        return {name: found[name] for name in names}

    def scores(self, history: sparse.csr_matrix) -> np.ndarray:
        """Return (B, n) float32 mixed scores."""
        weights = {name: weight for name, weight in self.mixing_weights.items() if weight}
        return mix(self.parts(history, weights), weights, self.part_scales, history.shape)


def mix(
    parts: Arrays,
    weights: Mapping[str, float],
    scales: Mapping[str, float],
    shape: tuple[int, int],
) -> np.ndarray:
    """Return (B, n) float32 ``Σ weight / scale x part``."""
    total = np.zeros(shape, np.float32)
    for name, weight in weights.items():
        if weight:
            total += np.float32(weight / scales.get(name, 1.0)) * parts[name]
    return total


@dataclass(frozen=True)
class Candidates:
    """The products that could reach anyone's list while weights are tried.

    For each customer the best of every part, of all and of tail products: trying a mixture then
    costs the pool, not the catalogue.

    Attributes
    ----------
    rows
        (B, C) catalogue rows.
    parts
        Part -> (B, C) float32, ``-inf``-free.
    listed
        (B, C) bool: not bought, not a duplicate.
    tail
        (B, C) bool: a tail product.
    """

    rows: np.ndarray
    parts: Arrays
    listed: np.ndarray
    tail: np.ndarray

    @classmethod
    def of(
        cls, parts: Arrays, history: sparse.csr_matrix, tail: np.ndarray, depth: int = 150
    ) -> "Candidates":
        """Return the pool of (B, n) parts."""
        full = {name: np.broadcast_to(part, history.shape) for name, part in parts.items()}
        pools = [
            top_k(part, depth, exclude=history, allowed=allowed)[0]
            for part in full.values()
            for allowed in (None, tail)
        ]
        rows = np.sort(np.concatenate(pools, axis=1), axis=1)
        listed = rows >= 0
        listed[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        rows = np.maximum(rows, 0)
        taken = {name: np.take_along_axis(part, rows, axis=1) for name, part in full.items()}
        return cls(rows, taken, listed, tail[rows])

    def lists(
        self, weights: Mapping[str, float], scales: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, 20) rows of the best products, and of the best tail products."""
        scores = mix(self.parts, weights, scales, self.rows.shape)
        return self._best(scores, self.listed), self._best(scores, self.listed & self.tail)

    def _best(self, scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        places, _ = top_k(np.where(allowed, scores, -np.inf), _K)
        rows = np.take_along_axis(self.rows, np.maximum(places, 0), axis=1)
        best: np.ndarray = np.where(places >= 0, rows, -1)
        return best


def tune(
    home: HomeModel,
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
    settings: HomeSettings,
) -> dict[str, float]:
    """Return the mixing weights that serve the validation weeks best.

    Coordinate search from ``settings.start``: each weight in turn is multiplied with each factor
    and keeps what raises the objective, the mean of ndcg@20 and tail_ndcg@20, each over
    ``settings.reference``. A shop whose customers bought nothing new keeps the start.

    Parameters
    ----------
    home
        Fitted on records before the validation weeks.
    history, targets
        (U, n) histories, and what was first bought in the validation weeks.
    tail
        (n,) bool.
    """
    weights = dict(settings.start)
    asked = np.flatnonzero(np.diff(targets.indptr))
    if not len(asked):
        return weights
    history, targets = history[asked], targets[asked]
    pool = Candidates.of(home.parts(history, weights), history, tail)

    def objective(tried: Mapping[str, float]) -> float:
        sums = evaluate(*pool.lists(tried, home.part_scales), targets, tail)
        values = sums.summary()
        return float(
            np.nan_to_num(values["ndcg@20"]) / settings.reference["ndcg@20"]
            + np.nan_to_num(values["tail_ndcg@20"]) / settings.reference["tail_ndcg@20"]
        )

    best = objective(weights)
    for _ in range(settings.rounds):
        for name in settings.start:
            start = weights[name]
            for factor in settings.factors:
                tried = {**weights, name: start * factor}
                value = objective(tried)
                if value > best * (1.0 + settings.prior):
                    best, weights = value, tried
    return weights
