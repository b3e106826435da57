"""Messages of the wire from and to what the service asks and answers, field by field.

Protobuf's own way over JSON takes as long as finding the answer does.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.message import Message

from common.queries.asking import Answer
from server.query.answering import RefusedError, Status
from server.query.answers import Model, Reasons, reasons_of
from server.query.requests import MAX_BATCH, MAX_HISTORY
from server.query.wire import fedtail_pb2 as wire


def fields_of(message: Message) -> dict[str, Any]:
    """Return what was set, by the names of the contract.

    Raises
    ------
    RefusedError
        If a list is longer than any may be: a million products would take seconds to be read.
    """
    return {field.name: _value(field.name, value) for field, value in message.ListFields()}


def _value(name: str, value: Any) -> Any:  # noqa: ANN401 - whatever a field may hold
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, Message):
        return fields_of(value)
    assert isinstance(value, Collection)
    most = MAX_BATCH if name == "requests" else MAX_HISTORY
    if len(value) > most:
        raise RefusedError(Status.INVALID, f"{name}: more than {most}")
    if isinstance(value, Mapping):
        return dict(value)
    return [fields_of(one) if isinstance(one, Message) else one for one in value]


def fill(reply: wire.RecommendResponse, model: Model, answer: Answer) -> wire.RecommendResponse:
    """Write an answer into a message, and return it."""
    reply.version = model.version
    reply.tail_share = answer.tail_share
    reply.tail_share_undialled = answer.tail_share_undialled
    reply.score_kept = answer.score_kept
    reply.unknown_items.extend(answer.unknown)
    reply.notes.extend(answer.notes)
    if model.adapted_at is not None:
        reply.adapted_at = model.adapted_at
    if answer.known_customer is not None:
        reply.known_customer = answer.known_customer
    add = reply.items.add
    listed = zip(answer.item_ids, answer.scores, answer.tail, strict=True)
    for place, (item_id, score, tail) in enumerate(listed):
        item = add(rank=place + 1, item_id=item_id, score=score, tail=tail)
        item.product.update(_texts(model.product(item_id)))
        if answer.reasons:
            _fill_reasons(item.reasons, reasons_of(item_id, answer.reasons[place]))
        if answer.own_item_ids:
            item.own_item_ids.extend(answer.own_item_ids[place])
        if answer.outside_catalogue:
            item.outside_catalogue = answer.outside_catalogue[place]
    return reply


def _fill_reasons(reply: wire.Reasons, found: Reasons) -> None:
    reply.item_id, reply.score, reply.words = found.item_id, found.score, found.words
    for part in found.parts:
        reply.parts.add(kind=part.kind, label=part.label, value=part.value)


def _texts(product: Mapping[str, Any]) -> dict[str, str]:
    """Return public columns as text: protobuf's maps hold one kind of value."""
    found = {}
    for name, value in product.items():
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, int):
            found[name] = str(int(value))
        elif isinstance(value, float):
            if math.isfinite(value):
                found[name] = repr(value)  # the fewest digits that are this number again
        elif value is not None:
            found[name] = str(value)
    return found
