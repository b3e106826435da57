"""What may leave a shop, as an explicit list; anything else is an AssertionError.

A request that Flower's node sends is taken apart to its last field, and put together again from
what is allowed: whatever is not accounted for makes the two differ.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from flwr.app import ConfigRecord, MetricRecord
from flwr.app import Message as FlowerMessage
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, recorddict_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)
from google.protobuf.message import Message

from common.evaluation import EVALUATION, EVALUATION_NAMES
from common.grid import delta_step, grid_step, popularity_step
from common.model import trained_spec
from common.protocol import (
    EVALUATE,
    HEADER,
    POPULARITY,
    PUBLIC_WEIGHT,
    RELEASE,
    TRAIN,
    UPDATE,
    WEIGHT,
    ReplyHeader,
    TrainingPlan,
)

FLEET = "/v1/fleet/"
_SHA = re.compile(r"[0-9a-f]{64}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KINDS = re.compile(r"(query\.(join|home|evaluate)|train\.(release|update))")
#: numpy's header of an array: what its shape and type need, filled up to 128 bytes.
ARRAY_HEADER = 128
#: Flower numbers nodes, runs and tasks at random; the size of a number follows from its value.
NUMBERS = frozenset(
    {"node_id", "run_id", "src_node_id", "dst_node_id", "src_task_id", "dst_task_id"}
)
_CODES = frozenset(value for name, value in vars(ErrorCode).items() if name.isupper())

Check = Callable[[object], bool]
M = TypeVar("M", bound=Message)


def _is(kind: type, pattern: re.Pattern[str] | None = None) -> Check:
    return lambda v: isinstance(v, kind) and (pattern is None or bool(pattern.fullmatch(str(v))))


_ANY_NUMBER, _TIME, _OBJECT = _is(int), _is(float), _is(str, _SHA)
_BEAT: Check = lambda v: v == HEARTBEAT_DEFAULT_INTERVAL  # noqa: E731
#: Of a message: who, to whom, in which run and round, in answer to what, and when.
METADATA: Mapping[str, Check] = {
    **dict.fromkeys(("run_id", "src_node_id", "dst_node_id"), _ANY_NUMBER),
    **dict.fromkeys(("src_task_id", "dst_task_id"), _ANY_NUMBER),
    **dict.fromkeys(("message_id", "reply_to_message_id"), _OBJECT),
    "group_id": _is(str, re.compile(r"\d{1,6}")),
    "message_type": _is(str, _KINDS),
    **dict.fromkeys(("ttl", "created_at"), _TIME),
}
ERROR: Mapping[str, Check] = {"code": lambda v: v in _CODES}
#: The one field beside times that is as long as the shop's work took.
RUNTIME = "clientapp_runtime_list"


def _under(prefix: str, fields: Mapping[str, Check]) -> dict[str, Check]:
    return {f"{prefix}.{name}": check for name, check in fields.items()}


_NODE = {"node.node_id": _ANY_NUMBER}
_RUN = {"run_id": _ANY_NUMBER}
#: Path -> its request, and each field that it may have. The tree of object ids is checked apart.
REQUESTS: Mapping[str, tuple[type[Message], Mapping[str, Check]]] = {
    "activate-node": (
        fleet_pb2.ActivateNodeRequest,
        {"public_key": _is(bytes), "heartbeat_interval": _BEAT},
    ),
    "deactivate-node": (fleet_pb2.DeactivateNodeRequest, {"node_id": _ANY_NUMBER}),
    "send-node-heartbeat": (
        heartbeat_pb2.SendNodeHeartbeatRequest,
        {**_NODE, "heartbeat_interval": _BEAT},
    ),
    "pull-messages": (fleet_pb2.PullMessagesRequest, _NODE),
    "get-run": (run_pb2.GetRunRequest, {**_NODE, **_RUN}),
    "get-fab": (fab_pb2.GetFabRequest, {**_NODE, **_RUN, "hash_str": _OBJECT}),
    "pull-object": (message_pb2.PullObjectRequest, {**_NODE, **_RUN, "object_id": _OBJECT}),
    "confirm-message-received": (
        message_pb2.ConfirmMessageReceivedRequest,
        {**_NODE, **_RUN, "message_object_id": _OBJECT},
    ),
    "push-messages": (
        fleet_pb2.PushMessagesRequest,
        {
            **_NODE,
            **_under("messages_list.metadata", METADATA),
            **_under("messages_list.error", ERROR),
            RUNTIME: lambda v: isinstance(v, float) and v >= 0,
        },
    ),
    "push-object": (
        message_pb2.PushObjectRequest,
        {
            **_NODE,
            **_RUN,
            "object_id": _OBJECT,
            "object_content": _is(bytes),
            "session_id": _is(str, _UUID),
        },
    ),
}


@dataclass
class Reply:
    """What one answer of a shop held."""

    kind: str
    server_round: int
    header: ReplyHeader | None = None
    error: int | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Account:
    """Accounts for objects: each must be a planned record, and hold nothing beside it.

    Parameters
    ----------
    plan, items
        What the run asked for: the plan, and how many products the catalogue has.
    known
        Objects that the other side holds already, and need not be sent again.
    """

    def __init__(self, plan: TrainingPlan, items: int, known: Mapping[str, bytes] = {}) -> None:
        self._plan, self._items = plan, items
        self._known = known

    def reply(self, objects: Mapping[str, bytes], message_id: str) -> Reply:
        """Return the reply that a message's objects are, each of them accounted for."""
        everything = {**self._known, **objects}
        for object_id, content in everything.items():
            assert hashlib.sha256(content).hexdigest() == object_id
        used: set[str] = set()

        def take(object_id: str, kind: str) -> tuple[bytes, list[str]]:
            content = everything[object_id]
            used.add(object_id)
            named, children, length = get_object_head_values_from_object_content(content)
            assert named == kind, f"{named} where {kind} is planned"
            head = f"{kind} {','.join(children)} {length}".encode() + b"\0"
            body = content[len(head) :]
            assert content == head + body
            assert len(body) == length, "more than the head tells of"
            return body, children

        body, children = take(message_id, "Message")
        message = _parsed(message_pb2.Message, body)
        _check_fields(message, {**_under("metadata", METADATA), **_under("error", ERROR)})
        metadata = message.metadata
        reply = Reply(metadata.message_type, int(metadata.group_id))
        if message.HasField("error"):
            assert not children
            reply.error = message.error.code
        else:
            (records_id,) = children
            body, children = take(records_id, "RecordDict")
            records = _names(body, children)
            assert set(records) <= {HEADER, WEIGHT, UPDATE}, f"unplanned records: {set(records)}"
            reply.header = _header(take(records[HEADER], "ConfigRecord")[0])
            weight = take(records[WEIGHT], "MetricRecord")[0]
            expected = MetricRecord({WEIGHT: PUBLIC_WEIGHT}).deflate()
            assert weight == get_object_body(expected, MetricRecord), "not the public weight"
            if UPDATE in records:
                assert reply.header.status == "ok"
                body, children = take(records[UPDATE], "ArrayRecord")
                arrays = _names(body, children)
                for name, array_id in arrays.items():
                    described = take(array_id, "Array")
                    chunks = [take(chunk, "ArrayChunk")[0] for chunk in described[1]]
                    reply.arrays[name] = self._array(reply, name, described[0], chunks)
                assert set(arrays) == set(self._planned(reply)), f"arrays: {set(arrays)}"
        assert set(objects) <= used, "objects that belong to no planned record"
        return reply

    def _planned(self, reply: Reply) -> Mapping[str, tuple[tuple[int, ...], float]]:
        """Return name -> shape and grid of the arrays that answer this exchange."""
        exchange = reply.kind.partition(".")[2]
        if exchange == RELEASE:
            return {POPULARITY: ((self._items,), popularity_step(self._plan))}
        if exchange == TRAIN:
            step = delta_step(self._plan, reply.server_round)
            spec = trained_spec(self._plan.model, self._items)
            return {name: (shape, step) for name, shape in spec.items()}
        if exchange == EVALUATE and reply.header is not None:
            return {
                EVALUATION: ((len(EVALUATION_NAMES),), grid_step(reply.header.noise_multiplier))
            }
        return {}

    def _array(self, reply: Reply, name: str, body: bytes, chunks: list[bytes]) -> np.ndarray:
        planned = self._planned(reply)
        assert name in planned, f"array {name!r} is not planned in {reply.kind}"
        shape, step = planned[name]
        description = {
            "dtype": "float32",
            "shape": shape,
            "stype": "numpy.ndarray",
            "arraychunk_ids": list(range(len(chunks))),
        }
        assert body == json.dumps(description).encode(), f"array {name!r}: {body!r}"
        data = b"".join(chunks)
        assert len(data) == ARRAY_HEADER + 4 * int(np.prod(shape)), f"{name!r}: {len(data)} bytes"
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        again = io.BytesIO()
        np.save(again, array, allow_pickle=False)
        assert again.getvalue() == data, f"array {name!r} is more than its numbers"
        steps = array.astype(np.float64) / step
        assert (steps == np.rint(steps)).all(), f"array {name!r} is not on the plan's grid"
        return array


def request(path: str, body: bytes) -> Message:
    """Return a request of which every field is allowed, and every byte a field."""
    assert path.startswith(FLEET), f"a request to {path}"
    name = path.removeprefix(FLEET)
    assert name in REQUESTS, f"a request to {path}"
    kind, fields = REQUESTS[name]
    found = _parsed(kind, body)
    trees = []
    if isinstance(found, fleet_pb2.PushMessagesRequest):
        assert len(found.messages_list) == len(found.message_object_trees) == 1
        assert len(found.clientapp_runtime_list) == 1
        trees = list(found.message_object_trees)
        bare = kind.FromString(body)
        assert isinstance(bare, fleet_pb2.PushMessagesRequest)
        del bare.message_object_trees[:]
        _check_fields(bare, fields)
    else:
        _check_fields(found, fields)
    while trees:
        tree = trees.pop()
        assert _OBJECT(tree.object_id), "a tree of more than ids"
        trees.extend(tree.children)
    return found


def size(path: str, body: bytes) -> int:
    """Return a request's bytes with every number of Flower's counted as one of a digit."""
    found = REQUESTS[path.removeprefix(FLEET)][0].FromString(body)
    _with_small_numbers(found)
    if isinstance(found, message_pb2.PushObjectRequest):
        content = found.object_content
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == "Message":
            message = message_pb2.Message.FromString(get_object_body(content, FlowerMessage))
            _with_small_numbers(message)
            plain = message.SerializeToString(deterministic=True)
            head = f"{kind} {','.join(children)} {len(plain)}".encode() + b"\0"
            found.object_content = head + plain
    return len(found.SerializeToString(deterministic=True))


def _with_small_numbers(message: Message) -> None:
    for field_, value in message.ListFields():
        if field_.message_type is not None:
            for one in value if field_.is_repeated else [value]:
                _with_small_numbers(one)
        elif field_.name in NUMBERS:
            setattr(message, field_.name, 1)


def _parsed(kind: type[M], body: bytes) -> M:
    """Return a message that has no bytes beside its known fields."""
    found: M = kind()
    found.ParseFromString(body)
    found.DiscardUnknownFields()
    assert found.SerializeToString(deterministic=True) == body, f"{kind.__name__}: unknown bytes"
    return found


def _check_fields(message: Message, allowed: Mapping[str, Check], prefix: str = "") -> None:
    for field_, value in message.ListFields():
        name = prefix + field_.name
        for one in value if field_.is_repeated else [value]:
            if field_.message_type is None:
                assert name in allowed, f"{message.DESCRIPTOR.name} has a field {name}"
                assert allowed[name](one), f"{name} is {one!r}"
            else:
                _check_fields(one, allowed, f"{name}.")


def _names(body: bytes, children: list[str]) -> dict[str, str]:
    """Return name -> object id of a record's parts: their JSON text, and nothing else."""
    names: dict[str, str] = json.loads(body)
    assert json.dumps(names).encode() == body
    assert list(dict.fromkeys(names.values())) == children
    return names


def _header(body: bytes) -> ReplyHeader:
    items = _parsed(recorddict_pb2.ConfigRecord, body).items
    values = {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in items}
    header = ReplyHeader.model_validate(values)
    again = ConfigRecord(header.model_dump()).deflate()
    assert get_object_body(again, ConfigRecord) == body, "a header of more than its fixed fields"
    return header
