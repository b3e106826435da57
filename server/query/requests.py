"""What may be asked, checked once for gRPC and REST alike.

A request carries the history; nothing of it is kept. Every string and list has a largest size, so
a hostile request costs no more than reading it.
"""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    model_validator,
)

from common.queries.asking import Query
from common.queries.filters import Filters

MAX_HISTORY = 10_000
MAX_K = 1_000
MAX_BATCH = 100
MAX_BATCH_HISTORY = 100_000
#: Products whose scores are taken apart for one call: each costs about as much as a list.
MAX_REASONS = 1_000
#: Those products times the products of the history: each of these pairs is a part of a reason.
MAX_REASON_PARTS = 200_000

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ItemId = Annotated[Text, Field(description="The product's number in the catalogue.")]
UserId = Annotated[
    Text,
    Field(
        description="A customer of the shop, whose history the shop's own service reads from the "
        "shop's data. Refused everywhere else."
    ),
]


#: As the document says: no text for a number, no number for a yes or no.
Number = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]


#: No body has as many fields; a million unknown ones would each be an error to report.
_MAX_FIELDS = 64


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_FIELDS:
        raise ValueError(f"has more than {_MAX_FIELDS} fields")
    return value


# The first wrong product ends the check: a million errors take ten seconds to collect.
_Fast = FailFast()
Attributes = Annotated[dict[Text, Text], BeforeValidator(_few)]


class Body(BaseModel):
    """A message of the service; what it does not name is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        return _few(value)


class HistoryProduct(Body):
    """One product that the customer dealt with."""

    item_id: ItemId
    weight: Number = Field(1.0, gt=0, le=1000, description="How much it says; a purchase is 1.")


class FilterBody(Body):
    """Which products may be listed."""

    category: Text | None = None
    brand: Text | None = None
    price_from: Number | None = Field(None, ge=0)
    price_to: Number | None = Field(None, ge=0)
    merchant_id: Text | None = Field(None, description="Only what this shop stocks.")
    exclude: Annotated[tuple[ItemId, ...], _Fast] = Field((), max_length=MAX_HISTORY)
    minimum_score: Number | None = None

    @model_validator(mode="after")
    def _band_is_one(self) -> "FilterBody":
        low, high = self.price_from, self.price_to
        if low is not None and high is not None and low > high:
            raise ValueError("price_from is above price_to")
        return self

    def filters(self) -> Filters:
        """Return them as the core takes them."""
        return Filters(**{**self.model_dump(), "exclude": frozenset(self.exclude)})


class RecommendRequest(Body):
    """Whom to recommend to: a history, a basket, attributes, any of them or none."""

    history: Annotated[tuple[HistoryProduct, ...], _Fast] = Field((), max_length=MAX_HISTORY)
    attributes: Attributes = Field(
        default_factory=dict,
        max_length=32,
        description="What is known of the customer, such as age or gender.",
    )
    k: Whole = Field(20, ge=1, le=MAX_K)
    tail_dial: Number = Field(
        0.0, ge=0, le=1, description="0: by score alone. 1: what is rarely shown comes first."
    )
    filters: FilterBody = FilterBody()
    reasons: Flag = Field(False, description="Say of each product what its score is the sum of.")
    user_id: UserId | None = None

    @model_validator(mode="after")
    def _parts_in_all(self) -> "RecommendRequest":
        _check_parts(self)
        return self

    @property
    def reason_parts(self) -> int:
        """How many parts its reasons have at most, those of the history alone."""
        return self.k * len(self.history) if self.reasons else 0

    def query(self) -> Query:
        """Return it as the core takes it; a product named twice counts with both weights."""
        history: dict[str, float] = {}
        for product in self.history:
            history[product.item_id] = history.get(product.item_id, 0.0) + product.weight
        return Query(
            history,
            self.attributes,
            self.k,
            self.tail_dial,
            self.filters.filters(),
            self.user_id,
            self.reasons,
        )


def _check_parts(*requests: RecommendRequest) -> None:
    if sum(request.reason_parts for request in requests) > MAX_REASON_PARTS:
        raise ValueError(
            "reasons are asked for so many products of so long a history that they have more than "
            f"{MAX_REASON_PARTS} parts: ask for a smaller k, or explain single products"
        )


class BatchRequest(Body):
    """Several customers at once."""

    requests: Annotated[tuple[RecommendRequest, ...], _Fast] = Field(
        min_length=1, max_length=MAX_BATCH
    )

    @model_validator(mode="after")
    def _all_in_all(self) -> "BatchRequest":
        if sum(len(request.history) for request in self.requests) > MAX_BATCH_HISTORY:
            raise ValueError(f"the histories hold more than {MAX_BATCH_HISTORY} products in all")
        if sum(request.k for request in self.requests if request.reasons) > MAX_REASONS:
            raise ValueError(f"reasons are asked for more than {MAX_REASONS} products in all")
        _check_parts(*self.requests)
        return self


class SimilarRequest(Body):
    """What goes with one product."""

    item_id: ItemId
    k: Whole = Field(20, ge=1, le=MAX_K)
    filters: FilterBody = FilterBody()


class ExplainRequest(Body):
    """Why a product has the score that it has."""

    item_id: ItemId
    history: Annotated[tuple[HistoryProduct, ...], _Fast] = Field((), max_length=MAX_HISTORY)
    attributes: Attributes = Field(default_factory=dict, max_length=32)
    user_id: UserId | None = None


NO_FIELD = "there is no such field; /openapi.json names those that there are"
_OBJECT = ("model_attributes_type", "model_type", "dict_type")
#: Kind of error -> our words, where pydantic's speak of Python.
_PLAIN = {
    **dict.fromkeys(_OBJECT, "should be an object, with its fields by their names"),
    "tuple_type": "should be a list",
    "too_long": "has more than {max_length} entries",
    "too_short": "needs {min_length} at least",
    "extra_forbidden": NO_FIELD,
}


def invalid_words(errors: Any) -> str:  # noqa: ANN401 - pydantic's list of details
    """Return which fields are wrong and why, without the values that were sent."""
    found = []
    for error in list(errors)[:5]:
        place = ".".join(str(part) for part in error["loc"] if part != "body")
        words = error["msg"].removeprefix("Value error, ")
        if error["type"] in _PLAIN:
            words = _PLAIN[error["type"]].format(**error.get("ctx", {}))
        if not place and error["type"] in _OBJECT:
            words = "send one JSON object, with the header Content-Type: application/json"
        if error["type"] == "json_invalid" and error["loc"]:  # FastAPI's; pydantic's says where.
            place, words = "", f"is no JSON from character {error['loc'][-1] + 1} on"
        # An unknown field's name is the caller's own text, too.
        found.append(f"{place[:80] or 'request'}: {words[:200]}")
    return "; ".join(found)
