"""One published model, ready to answer: recommend, similar products, explain. No web types here.

The score is the global model's own (:mod:`common.model`), brought into a form that one request
pays little for. With ``x`` the history, ``k = Σ x_j``, ``e`` the expected content::

    a ⟨c_u, c_i⟩ = a ⟨x C, c_i⟩ - k a ⟨e, c_i⟩

``⟨e, c_i⟩`` is the same for everybody and kept; ``x C`` has few places, and only products that
share one of them are visited. The learned part is one pass over the products' vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from common.artifact import ModelArtifact
from common.errors import ArtifactError, InputError
from common.explanation import Explanation, explain
from common.features import Catalogue
from common.model import GlobalModel, attribute_matrix
from common.protocol import TrainingPlan
from common.reasons import sides_of
from common.scoring import re_rank
from server.query.filters import Filters, Table
from server.query.index import ExactIndex, Index, best_rows

#: With the tail dial the list is chosen among so many times k candidates.
_DIAL_CANDIDATES = 10
#: Share of the products, most popular first, that is not tail.
_HEAD = 0.2


@dataclass(frozen=True)
class Query:
    """Whom to recommend to, and what.

    Attributes
    ----------
    history
        item_id -> weight of what the customer did; products that the catalogue does not hold are
        told back and do not count.
    attributes
        Name -> value of what is known of the customer.
    k
        Length of the list.
    tail_dial
        0: by score alone; 1: what is rarely shown first.
    """

    history: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    k: int = 20
    tail_dial: float = 0.0
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True)
class Answer:
    """A ranked list and what stands behind it.

    Attributes
    ----------
    item_ids, scores
        (m,) best first, m at most k.
    tail_share, tail_share_undialled
        Share of tail products in this list, and in the list by score alone.
    score_kept
        Sum of the scores above the lowest candidate's, relative to the list by score alone: what
        the dial cost.
    unknown
        Products of the history that the catalogue does not hold.
    """

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    tail: tuple[bool, ...]
    tail_share: float
    tail_share_undialled: float
    score_kept: float
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class ServedModel:
    """A version of the registry with all that its answers need.

    Attributes
    ----------
    version
        The registry's number.
    stock
        merchant_id -> catalogue rows, where the federation publishes them.
    """

    version: int
    model: GlobalModel
    artifact: ModelArtifact
    index: Index
    stock: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls,
        version: int,
        artifact: ModelArtifact,
        catalogue: Catalogue,
        *,
        make_index: Callable[[np.ndarray], Index] = ExactIndex,
        stock: Mapping[str, np.ndarray] | None = None,
    ) -> "ServedModel":
        """Make a model ready to answer; everything that a request needs is computed here.

        Raises
        ------
        ArtifactError
            If the model belongs to another catalogue, or names no plan.
        """
        manifest = artifact.manifest
        if manifest.catalogue_fingerprint != catalogue.fingerprint:
            raise ArtifactError(
                f"version {version} belongs to catalogue {manifest.catalogue_fingerprint[:12]}..., "
                f"not to {catalogue.fingerprint[:12]}...: serve it with the catalogue it was "
                "trained on"
            )
        plan = _plan(version, artifact)
        model = GlobalModel(plan.model, catalogue, artifact.arrays)
        vectors = np.ascontiguousarray(model.lifted_vectors, np.float32)
        made = cls(version, model, artifact, make_index(vectors), stock or {})
        for name in ("by_place", "expected", "exposure", "tail", "table", "columns", "rows_of"):
            getattr(made, name)
        return made

    @cached_property
    def by_place(self) -> sparse.csr_matrix:
        """(W, n) float32 ``a C``: which products have what at each place of the content code."""
        scale = np.float32(self.model.plan.content_scale)
        return sparse.csr_matrix(self.model.catalogue.content.T.tocsr() * scale)

    @cached_property
    def expected(self) -> np.ndarray:
        """(n,) float32 ``a ⟨e, c_i⟩``."""
        return np.asarray(self.by_place.T @ self.model.expected_content, dtype=np.float32)

    @cached_property
    def exposure(self) -> np.ndarray:
        """(n,) how often a product is shown where popularity decides: the released rates."""
        exposure: np.ndarray = np.maximum(self.model.popularity_bias, 0.0)
        return exposure

    @cached_property
    def tail(self) -> np.ndarray:
        """(n,) bool: all but the fifth of the products with the largest released popularity."""
        order = np.argsort(-self.model.popularity_bias, kind="stable")
        tail: np.ndarray = np.ones(len(order), bool)
        tail[order[: round(_HEAD * len(order))]] = False
        return tail

    @cached_property
    def table(self) -> Table:
        """What filters ask of the products."""
        return Table.of(self.model.catalogue.products, self.stock)

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Column -> (n,) Python values of the products, None where unknown."""
        products = self.model.catalogue.products
        return {
            str(name): products[name].astype(object).where(products[name].notna(), None).tolist()
            for name in products.columns
            if name != "item_id"
        }

    @cached_property
    def rows_of(self) -> dict[str, int]:
        """item_id -> catalogue row."""
        return {str(item): row for row, item in enumerate(self.model.catalogue.item_ids)}

    def recommend(self, query: Query) -> Answer:
        """Return the best products for one customer.

        Raises
        ------
        InputError
            If a filter or the dial asks for what there is not.
        """
        history, unknown = self._history(query.history)
        scores, learned, vector = self._scores(history, query.attributes)
        scores[history.indices] = -np.inf
        self.table.hide(scores, query.filters, self.rows_of)
        wanted = query.k * (_DIAL_CANDIDATES if query.tail_dial else 1)
        rows = best_rows(scores, max(wanted * self.index.refine, wanted))
        if self.index.refine:
            scores[rows] += self.index.exact(rows, vector) - learned[rows]
            rows = rows[best_rows(scores[rows], wanted)]
        return self._answer(rows, scores[rows], query, unknown)

    def similar(self, item_id: str, k: int, filters: Filters | None = None) -> Answer:
        """Return what a customer with this product and nothing else is recommended.

        Raises
        ------
        InputError
            If the catalogue does not hold it.
        """
        self._row(item_id)
        return self.recommend(Query({item_id: 1.0}, k=k, filters=filters or Filters()))

    def explain(
        self, item_id: str, history: Mapping[str, float], attributes: Mapping[str, str]
    ) -> Explanation:
        """Take one score apart; the parts add up to it.

        Raises
        ------
        InputError
            If the catalogue does not hold the product, or the model's tower is not linear.
        """
        row = self._row(item_id)
        return explain(*sides_of(self.model, self._history(history)[0], row, attributes))

    def product(self, item_id: str) -> dict[str, Any]:
        """Return the public columns of a product, as Python values; None where unknown."""
        row = self._row(item_id)
        return {name: values[row] for name, values in self.columns.items()}

    def _row(self, item_id: str) -> int:
        if (row := self.rows_of.get(item_id)) is None:
            raise InputError(f"no product of the catalogue is called {item_id!r}")
        return row

    def _history(self, history: Mapping[str, float]) -> tuple[sparse.csr_matrix, tuple[str, ...]]:
        """Return (1, n) weights, and the products that the catalogue does not hold."""
        known = {self.rows_of[item]: w for item, w in history.items() if item in self.rows_of}
        rows = np.array(sorted(known), dtype=np.int64)
        weights = np.array([known[row] for row in rows], dtype=np.float32)
        shape = (1, self.model.catalogue.size)
        matrix = sparse.csr_matrix((weights, (np.zeros_like(rows), rows)), shape=shape)
        return matrix, tuple(item for item in history if item not in self.rows_of)

    def _scores(
        self, history: sparse.csr_matrix, attributes: Mapping[str, str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (n,) scores, the learned part of them as the index gave it, and (d,) ``u``."""
        model = self.model
        rows = model.plan.customer_rows
        columns = {name: np.array([value], dtype=object) for name, value in attributes.items()}
        known = attribute_matrix(columns, 1, rows) if rows and columns else None
        vector = model.customer_vectors(history, known)[0]
        learned = self.index.scores(vector)
        scores = learned + model.popularity_bias
        if history.nnz:
            scores -= np.float32(history.sum()) * self.expected
            content = (history @ model.catalogue.content) @ self.by_place
            scores[content.indices] += content.data
        return scores, learned, vector

    def _answer(
        self, rows: np.ndarray, scores: np.ndarray, query: Query, unknown: tuple[str, ...]
    ) -> Answer:
        chosen, kept = rows[: query.k], scores[: query.k]
        plain_tail, plain_sum = self.tail[chosen], float(scores[: query.k].sum(dtype=np.float64))
        floor = float(scores[-1]) * len(chosen) if len(scores) else 0.0
        if query.tail_dial:
            dialled = re_rank(
                rows[None, :], scores[None, :], query.k, query.tail_dial, self.exposure
            )
            chosen, kept = dialled[0][0], dialled[1][0]
        above = plain_sum - floor
        lost = (plain_sum - float(kept.sum(dtype=np.float64))) / above if above > 0 else 0.0
        tail = self.tail[chosen]
        return Answer(
            item_ids=tuple(str(item) for item in self.model.catalogue.item_ids[chosen]),
            scores=tuple(float(score) for score in kept),
            tail=tuple(bool(flag) for flag in tail),
            tail_share=float(tail.mean()) if len(tail) else 0.0,
            tail_share_undialled=float(plain_tail.mean()) if len(plain_tail) else 0.0,
            score_kept=1.0 - lost,
            unknown=unknown,
        )


def _plan(version: int, artifact: ModelArtifact) -> TrainingPlan:
    try:
        return TrainingPlan.model_validate(artifact.manifest.config["plan"])
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"version {version} does not name the plan it was trained by"
        ) from error
