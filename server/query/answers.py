"""What is answered, the same over gRPC and REST."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from common.explanation import Explanation
from common.model import GlobalModel
from common.queries.asking import Answer, Query
from common.queries.filters import Filters, Table
from common.queries.words import Words
from server.query.requests import Body, ExplainRequest, RecommendRequest, SimilarRequest

#: Parts of a reason that are named one by one; the rest is one part, so they still add up.
_NAMED_PARTS = 8
_UNKNOWN = "Of the history: not in the catalogue."


class Model(Protocol):
    """What answers: a version of the registry, or a shop's own model."""

    @property
    def version(self) -> int:
        """Its number."""

    @property
    def adapted_at(self) -> str | None:
        """When a shop fitted it to itself; None where it is used as it came."""

    @property
    def model(self) -> GlobalModel:
        """The global model behind it, on its catalogue."""

    @property
    def table(self) -> Table:
        """What filters ask of the products."""

    @property
    def columns(self) -> Mapping[str, Sequence[Any]]:
        """Column -> (n,) Python values of the products, None where unknown."""

    @property
    def words(self) -> Words:
        """What products are found by."""

    @property
    def tail(self) -> np.ndarray:
        """(n,) bool."""

    def recommend(self, query: Query) -> Answer:
        """Return the best products for one customer."""

    def similar(self, item_id: str, k: int, filters: Filters | None = None) -> Answer:
        """Return what a customer with this product and nothing else is recommended."""

    def explain(
        self,
        item_id: str,
        history: Mapping[str, float],
        attributes: Mapping[str, str],
        user_id: str | None = None,
    ) -> Explanation:
        """Take one score apart."""

    def product(self, item_id: str) -> Mapping[str, Any]:
        """Return the public columns of a product of an answer."""

    def own_numbers(self, item_ids: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """Return a shop's own numbers of each product; none where they are the catalogue's."""


class ReasonPart(Body):
    """One addend of a score."""

    kind: str
    label: str
    value: float


class Reasons(Body):
    """A score, what it is the sum of, and the gravest in words."""

    item_id: str
    score: float
    parts: tuple[ReasonPart, ...]
    words: str


class Explained(Reasons):
    """What was asked of one product."""

    unknown_items: tuple[str, ...] = Field((), description=_UNKNOWN)


class Listed(Body):
    """One product of a list."""

    rank: int
    item_id: str
    score: float
    tail: bool = Field(description="Not among the fifth of products that are bought most.")
    product: dict[str, str | int | float | None] = Field(description="Its public columns.")
    reasons: Reasons | None = None
    own_item_ids: tuple[str, ...] = Field(
        (), description="The shop's own numbers of it, where a shop's differ from the catalogue's."
    )
    outside_catalogue: bool = Field(
        False, description="At a shop: a product of its own, which the catalogue does not hold."
    )


class RecommendResponse(Body):
    """A ranked list, the model that made it, and what the tail dial did."""

    version: int
    items: tuple[Listed, ...]
    tail_share: float = Field(description="Share of tail products in this list.")
    tail_share_undialled: float = Field(description="The same, by score alone.")
    score_kept: float = Field(description="What is left of the list's score with the dial.")
    unknown_items: tuple[str, ...] = Field(description=_UNKNOWN)
    adapted_at: str | None = Field(
        None, description="At a shop: when it fitted the model to itself."
    )
    known_customer: bool | None = Field(
        None, description="Whether the shop has records of the user_id that was sent."
    )
    notes: tuple[str, ...] = Field((), description="What you should know of this answer.")


class BatchResponse(Body):
    """One list for each request, in their order, all by one version."""

    version: int
    responses: tuple[RecommendResponse, ...]


class ModelInfo(Body):
    """A version of the registry; at a shop, a model that came home."""

    version: int
    name: str = Field(description="Of the run that made it.")
    served: bool
    published_at: str
    private: bool
    epsilon: float | None
    delta: float | None
    unit: str | None
    trust: str | None
    server_round: int = Field(description="The last round that trained it.")
    pinned: bool = Field(description="Served because it was chosen, not for being the newest.")
    catalogue_fingerprint: str
    forced: tuple[str, ...] = Field(description="Why it could not be published without force.")


class ModelList(Body):
    """All versions, the newest first."""

    models: tuple[ModelInfo, ...]


class Problem(Body):
    """Why a request was not answered."""

    error: str


def recommend(model: Model, request: RecommendRequest) -> RecommendResponse:
    """Answer one request from one model.

    Raises
    ------
    InputError
        If it asks for what there is not.
    """
    return _response(model, model.recommend(request.query()))


def similar(model: Model, request: SimilarRequest) -> RecommendResponse:
    """Return what goes with one product; raises as :func:`recommend`."""
    answer = model.similar(request.item_id, request.k, request.filters.filters())
    return _response(model, answer)


def explain(model: Model, request: ExplainRequest) -> Explained:
    """Return what one score is the sum of; raises as :func:`recommend`."""
    history = RecommendRequest(history=request.history).query().history
    found = model.explain(request.item_id, history, request.attributes, request.user_id)
    reasons = reasons_of(request.item_id, found)
    return Explained(**dict(reasons), unknown_items=found.unknown)


def reasons_of(item_id: str, found: Explanation) -> Reasons:
    """Return the largest parts by name and the rest as one; they add up to the score."""
    labelled: dict[tuple[str, str], list[float]] = {}
    for part in found.parts:
        kind = part.kind.split("-")[0]
        labelled.setdefault((kind, part.label), []).append(part.value)
    sums = {key: math.fsum(values) for key, values in labelled.items()}
    ordered = sorted(sums.items(), key=lambda entry: -abs(entry[1]))
    named, rest = ordered[:_NAMED_PARTS], ordered[_NAMED_PARTS:]
    parts = [ReasonPart(kind=k, label=label, value=v) for (k, label), v in named]
    if rest:
        left = math.fsum(value for _, value in rest)
        label = "1 smaller part" if len(rest) == 1 else f"{len(rest)} smaller parts"
        parts.append(ReasonPart(kind="rest", label=label, value=left))
    return Reasons(
        item_id=item_id, score=found.score, parts=tuple(parts), words=_words(parts, found.score)
    )


def _words(parts: Sequence[ReasonPart], score: float) -> str:
    phrases = {
        "history": "because of {label}",
        "neighbours": "bought with {label}",
        "popularity": "how popular it is {label}",
        "attribute": "{label}",
        "rest": "{label}",
    }
    said = [
        f"{phrases.get(part.kind, '{label}').format(label=part.label)} ({part.value:+.3g})"
        for part in parts[:3]
    ]
    return f"{score:.3g}: {', '.join(said)}" if said else f"{score:.3g}"


def _response(model: Model, answer: Answer) -> RecommendResponse:
    none = [None] * len(answer.item_ids)
    pairs = zip(answer.item_ids, answer.reasons, strict=True)
    reasons = [reasons_of(item, found) for item, found in pairs] if answer.reasons else none
    items = tuple(
        Listed(
            rank=rank,
            item_id=item,
            score=score,
            tail=tail,
            product=public_columns(model.product(item)),
            reasons=reason,
            own_item_ids=own,
            outside_catalogue=outside,
        )
        for rank, (item, score, tail, reason, own, outside) in enumerate(
            zip(
                answer.item_ids,
                answer.scores,
                answer.tail,
                reasons,
                answer.own_item_ids or [()] * len(answer.item_ids),
                answer.outside_catalogue or [False] * len(answer.item_ids),
                strict=True,
            ),
            start=1,
        )
    )
    return RecommendResponse(
        version=model.version,
        items=items,
        tail_share=answer.tail_share,
        tail_share_undialled=answer.tail_share_undialled,
        score_kept=answer.score_kept,
        unknown_items=answer.unknown,
        adapted_at=model.adapted_at,
        known_customer=answer.known_customer,
        notes=answer.notes,
    )


def public_columns(values: Mapping[str, Any]) -> dict[str, str | int | float | None]:
    """Return a product's columns as JSON values."""
    found: dict[str, str | int | float | None] = {}
    for name, value in values.items():
        if isinstance(value, int):
            found[name] = int(value)
        elif isinstance(value, float):
            found[name] = value if math.isfinite(value) else None
        else:
            found[name] = None if value is None else str(value)
    return found
