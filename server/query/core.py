"""One published model, ready to answer: recommend, similar products, explain. No web types here.

The score is the global model's own (:mod:`common.model`), brought into a form that one request
pays little for. With ``x`` the history, ``k = Σ x_j``, ``e`` the expected content::

    a ⟨c_u, c_i⟩ = a ⟨x C, c_i⟩ - k a ⟨e, c_i⟩

``⟨e, c_i⟩`` is the same for everybody and kept; ``x C`` has few places, and only products that
share one of them are visited. The learned part is one pass over the products' vectors.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from common.artifact import ModelArtifact
from common.errors import ArtifactError, InputError
from common.explanation import Explanation, explain
from common.features import Catalogue
from common.metrics import tail_mask
from common.model import GlobalModel, attribute_matrix
from common.protocol import TrainingPlan
from common.queries.asking import Answer, Query, Ranking, TakenApart, public_columns
from common.queries.filters import Filters, Table, in_float32
from common.queries.reasons import learned_history, sides_of
from common.queries.words import Words
from server.query.choosing import search
from server.query.content import ContentIndex, add_base
from server.query.index import ExactIndex, Index

#: With the tail dial the list is chosen among so many times k candidates.
_DIAL_CANDIDATES = 10
_NO_ATTRIBUTES = "this model has learned nothing of customers' attributes: they do not count"


class _Room(threading.local):
    """Two arrays of (n,) float32 for each thread that answers.

    New ones for each request would come from the system as pages to be cleared, and go back: that
    takes longer than what is computed in them.
    """

    def __init__(self, size: int) -> None:
        self.learned, self.scores = np.empty((2, size), np.float32)


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
    #: No shop's own.
    adapted_at: None = None

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
        plan = plan_of(version, artifact)
        model = GlobalModel(plan.model, catalogue, artifact.arrays)
        vectors = np.ascontiguousarray(model.lifted_vectors, np.float32)
        made = cls(version, model, artifact, make_index(vectors), stock or {})
        names = ("content", "expected", "exposure", "tail", "table", "columns", "words", "rows_of")
        for name in (*names, "_room"):
            getattr(made, name)
        # What an answer reads for the first time is computed now, not while somebody waits.
        made.recommend(Query({str(item): 1.0 for item in catalogue.item_ids[:1]}, k=1))
        return made

    @cached_property
    def content(self) -> ContentIndex:
        """What has which content."""
        return ContentIndex.of(self.model.catalogue.content, self.model.plan.content_scale)

    @cached_property
    def expected(self) -> np.ndarray:
        """(n,) float32 ``a ⟨e, c_i⟩``."""
        by_place = self.content.by_place
        return np.asarray(by_place.T @ self.model.expected_content, dtype=np.float32)

    @cached_property
    def exposure(self) -> np.ndarray:
        """(n,) how often a product is shown where popularity decides: the released rates."""
        exposure: np.ndarray = np.maximum(self.model.popularity_bias, 0.0)
        return exposure

    @cached_property
    def tail(self) -> np.ndarray:
        """(n,) bool: all but the fifth of the products with the largest released popularity."""
        return tail_mask(self.model.popularity_bias)

    @cached_property
    def table(self) -> Table:
        """What filters ask of the products."""
        return Table.of(self.model.catalogue.products, self.stock)

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Column -> (n,) Python values of the products, None where unknown."""
        return public_columns(self.model.catalogue.products)

    @cached_property
    def words(self) -> Words:
        """What products are found by."""
        model = self.model
        return Words.of(model.catalogue, self.columns, model.popularity_bias)

    @cached_property
    def rows_of(self) -> dict[str, int]:
        """item_id -> catalogue row."""
        return {str(item): row for row, item in enumerate(self.model.catalogue.item_ids)}

    @cached_property
    def _room(self) -> "_Room":
        return _Room(self.model.catalogue.size)

    def recommend(self, query: Query) -> Answer:
        """Return the best products for one customer.

        Raises
        ------
        InputError
            If a filter or the dial asks for what there is not, or a customer is named.
        """
        _refuse_customer(query.user_id)
        history, unknown = self._history(query.history)
        scores, learned, vector = self._scores(history, query.attributes)
        scores[history.indices] = -np.inf
        self._hide(scores, query.filters, vector)
        if query.tail_dial:
            rows, found = self._for_dial(scores, learned, vector, query.k * _DIAL_CANDIDATES)
        else:
            rows, found = search(self.index, vector, scores, learned, query.k)
        rows, found = _at_least(rows, found, query.filters)
        ranking = Ranking.of(rows, found, query, self.exposure, self.tail)
        untold = query.attributes and not self.model.plan.customer_rows
        notes = (_NO_ATTRIBUTES,) if untold else ()
        answer = ranking.answer(self.model.catalogue.item_ids, unknown, notes=notes)
        if not query.reasons:
            return answer

        vectors = learned_history(self.model, history.indices)

        def explained(row: int) -> Explanation:
            return explain(*sides_of(self.model, history, row, query.attributes, vectors))

        return replace(answer, reasons=TakenApart(ranking.rows, explained))

    def similar(self, item_id: str, k: int, filters: Filters | None = None) -> Answer:
        """Return what has most in common with one product.

        The score is that of a customer with this product and nothing else, without what every
        customer's has: popularity, and the expected basket's content. They would list the same
        products for any.

        Raises
        ------
        InputError
            If the catalogue does not hold it.
        """
        self._row(item_id)
        query = Query({item_id: 1.0}, k=k, filters=filters or Filters())
        history, unknown = self._history(query.history)
        scores, learned, vector = self._scores(history, {}, own=True)
        scores[history.indices] = -np.inf
        self._hide(scores, query.filters, vector)
        rows, found = search(self.index, vector, scores, learned, k)
        rows, found = _at_least(rows, found, query.filters)
        ranking = Ranking.of(rows, found, query, self.exposure, self.tail)
        return ranking.answer(self.model.catalogue.item_ids, unknown)

    def explain(
        self,
        item_id: str,
        history: Mapping[str, float],
        attributes: Mapping[str, str],
        user_id: str | None = None,
    ) -> Explanation:
        """Take one score apart; the parts add up to it.

        Raises
        ------
        InputError
            If the catalogue does not hold the product, the model's tower is not linear, or a
            customer is named.
        """
        _refuse_customer(user_id)
        row = self._row(item_id)
        known, unknown = self._history(history)
        return replace(explain(*sides_of(self.model, known, row, attributes)), unknown=unknown)

    def product(self, item_id: str) -> dict[str, Any]:
        """Return the public columns of a product, as Python values; None where unknown."""
        row = self._row(item_id)
        return {name: values[row] for name, values in self.columns.items()}

    def own_numbers(self, item_ids: Sequence[str]) -> list[tuple[str, ...]]:
        """Return none of any: they are the catalogue's."""
        return [()] * len(item_ids)

    def _hide(self, scores: np.ndarray, filters: Filters, vector: np.ndarray) -> None:
        """Hide what may not be listed; of a least score, what is sure to be below it."""
        if filters.minimum_score is not None:
            off = self.index.error(vector)
            filters = replace(filters, minimum_score=filters.minimum_score - off)
        self.table.hide(scores, filters, self.rows_of)

    def _for_dial(
        self, scores: np.ndarray, learned: np.ndarray, vector: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best of all products and the best of the tail together, as :func:`search`.

        Where popularity decides, the best hold none of the tail: no dial could bring it up.
        """
        rows, found = search(self.index, vector, scores, learned, wanted)
        of_tail = np.where(self.tail, scores, -np.inf)
        more, scored = search(self.index, vector, of_tail, learned, wanted)
        new = ~np.isin(more, rows)
        rows, found = np.append(rows, more[new]), np.append(found, scored[new])
        order = np.argsort(-found, kind="stable")
        return rows[order], found[order]

    def _row(self, item_id: str) -> int:
        if (row := self.rows_of.get(item_id)) is None:
            raise InputError(f"no product of the catalogue is called {item_id!r}")
        return row

    def _history(self, history: Mapping[str, float]) -> tuple[sparse.csr_matrix, tuple[str, ...]]:
        """Return (1, n) weights, and the products that the catalogue does not hold."""
        known = {self.rows_of[item]: w for item, w in history.items() if item in self.rows_of}
        rows = np.array(sorted(known), dtype=np.int32)
        weights = np.array([known[row] for row in rows.tolist()], dtype=np.float32)
        shape = (1, self.model.catalogue.size)
        matrix = sparse.csr_matrix((weights, rows, np.array([0, len(rows)], np.int32)), shape=shape)
        return matrix, tuple(item for item in history if item not in self.rows_of)

    def _scores(
        self, history: sparse.csr_matrix, attributes: Mapping[str, str], *, own: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (n,) scores, the learned part of them as the index gave it, and (d,) ``u``.

        What is returned stands in this thread's room: its next call writes over it.

        Parameters
        ----------
        own
            Without popularity, and without what the expected basket's content takes off.
        """
        model = self.model
        rows = model.plan.customer_rows
        columns = {name: np.array([value], dtype=object) for name, value in attributes.items()}
        known = attribute_matrix(columns, 1, rows) if rows and columns else None
        vector = model.customer_vectors(history, known)[0]
        room = self._room
        learned = self.index.scores(vector, room.learned)
        if own:
            np.copyto(room.scores, learned)
        else:
            count = float(history.data.sum())
            add_base(learned, model.popularity_part, self.expected, count, room.scores)
        if history.nnz:
            self.content.add(room.scores, history)
        return room.scores, learned, vector


def _at_least(
    rows: np.ndarray, found: np.ndarray, filters: Filters
) -> tuple[np.ndarray, np.ndarray]:
    """Return those rows, and their exact scores, that have the least score asked for."""
    if filters.minimum_score is None:
        return rows, found
    kept = found >= in_float32(filters.minimum_score)
    return rows[kept], found[kept]


def _refuse_customer(user_id: str | None) -> None:
    if user_id is not None:
        raise InputError(
            "user_id: this service knows no customers. Send what they did as history, or ask at "
            "the shop, which knows its own: python -m client serve"
        )


def plan_of(version: int, artifact: ModelArtifact) -> TrainingPlan:
    """Return the plan that a version was trained by.

    Raises
    ------
    ArtifactError
        If its manifest names none.
    """
    try:
        return TrainingPlan.model_validate(artifact.manifest.config["plan"])
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"version {version} does not name the plan it was trained by"
        ) from error
