"""Questions whose right answers are known for every model that may be served, however asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from common.features import Catalogue
from server.query import answers
from server.query.answers import Reasons, RecommendResponse
from server.query.client import Client
from server.query.core import ServedModel
from server.query.requests import (
    ExplainRequest,
    FilterBody,
    HistoryProduct,
    RecommendRequest,
    SimilarRequest,
)
from simulations.bench.asking import GrpcClient
from simulations.bench.serving_models import histories

KINDS = ("recommend", "batch", "similar", "explain")
_BATCH = 4
#: Of one and the same model, computed again: other models' scores differ in the first digit.
_TOLERANCE = 1e-5

#: Products in their order, and figures, of one list or of one score taken apart.
Part = tuple[tuple[str, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Given:
    """An answer in brief.

    Attributes
    ----------
    versions
        All that it names; none where the answer names none.
    """

    versions: frozenset[int]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, answers: Sequence[RecommendResponse], version: int | None = None) -> Self:
        """Return lists in brief."""
        versions = {answer.version for answer in answers} | ({version} if version else set())
        return cls(frozenset(versions), tuple(_list(answer) for answer in answers))

    @classmethod
    def of_reasons(cls, found: Reasons) -> Self:
        """Return a score taken apart in brief."""
        names = (found.item_id, *(part.label for part in found.parts))
        figures = (found.score, *(part.value for part in found.parts))
        return cls(frozenset(), ((names, figures),))

    def is_as(self, other: "Given") -> bool:
        """Return whether both are the same model's answer."""
        return len(self.parts) == len(other.parts) and all(
            mine[0] == theirs[0]
            and np.allclose(mine[1], theirs[1], rtol=_TOLERANCE, atol=_TOLERANCE)
            for mine, theirs in zip(self.parts, other.parts, strict=True)
        )


def _list(answer: RecommendResponse) -> Part:
    figures = (answer.tail_share, answer.score_kept, *(item.score for item in answer.items))
    return tuple(item.item_id for item in answer.items), figures


class Questions:
    """``count`` questions of each kind, and what each of several models answers.

    Parameters
    ----------
    models
        Name -> model.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        models: Mapping[str, ServedModel],
        count: int,
        draw: np.random.Generator,
    ) -> None:
        self.count = count
        categories = catalogue.products["category"].to_numpy()
        self._asked: list[RecommendRequest] = []
        for number, history in enumerate(histories(catalogue, count, draw)):
            row = int(draw.integers(catalogue.size))
            self._asked.append(
                RecommendRequest(
                    history=tuple(HistoryProduct(item_id=i, weight=w) for i, w in history.items()),
                    k=10 + number,
                    tail_dial=(0.0, 0.3)[number % 2],
                    filters=FilterBody(category=str(categories[row]) if number % 3 == 0 else None),
                    reasons=number % 4 == 0,
                )
            )
        self._items = [str(i) for i in draw.choice(catalogue.item_ids, count, replace=False)]
        self._right = {
            name: {(kind, n): self._from(kind, n, model) for kind in KINDS for n in range(count)}
            for name, model in models.items()
        }

    def right(self, model: str, kind: str, number: int) -> Given:
        """Return what a model answers to a question."""
        return self._right[model][kind, number]

    def any_right(self, kind: str, number: int, given: Given) -> bool:
        """Return whether any one of the models answers so."""
        return any(given.is_as(right[kind, number]) for right in self._right.values())

    def over_rest(self, client: Client, kind: str, number: int) -> Given:
        """Ask over REST, with the client library."""
        one, item = self._asked[number], self._items[number]
        weights = {product.item_id: product.weight for product in one.history}
        if kind == "recommend":
            answer = client.recommend(
                weights,
                k=one.k,
                tail_dial=one.tail_dial,
                filters=one.filters,
                reasons=one.reasons,
            )
            return Given.of([answer])
        if kind == "batch":
            found = client.recommend_batch(self._batch(number))
            return Given.of(found.responses, found.version)
        if kind == "similar":
            return Given.of([client.similar(item, k=one.k)])
        return Given.of_reasons(client.explain(item, weights))

    def over_grpc(self, client: GrpcClient, kind: str, number: int) -> Given:
        """Ask over gRPC."""
        if kind == "recommend":
            return Given.of([client.recommend(self._asked[number])])
        if kind == "batch":
            found = client.batch(self._batch(number))
            return Given.of(found.responses, found.version)
        if kind == "similar":
            return Given.of([client.similar(self._similar(number))])
        return Given.of_reasons(client.explain(self._explained(number)))

    def _from(self, kind: str, number: int, model: ServedModel) -> Given:
        ways: dict[str, Callable[[], Any]] = {
            "recommend": lambda: [answers.recommend(model, self._asked[number])],
            "batch": lambda: [answers.recommend(model, one) for one in self._batch(number)],
            "similar": lambda: [answers.similar(model, self._similar(number))],
        }
        if kind == "explain":
            return Given.of_reasons(answers.explain(model, self._explained(number)))
        return Given.of(ways[kind]())

    def _batch(self, number: int) -> list[RecommendRequest]:
        return [self._asked[(number + step) % self.count] for step in range(_BATCH)]

    def _similar(self, number: int) -> SimilarRequest:
        return SimilarRequest(item_id=self._items[number], k=self._asked[number].k)

    def _explained(self, number: int) -> ExplainRequest:
        return ExplainRequest(item_id=self._items[number], history=self._asked[number].history)
