"""What SuperLink stores of a shop is read by itself: whatever it is, the others' replies count.

All replies pass through Flower's objects here, as in a deployment: what a shop's node stores is
bytes whose head, length and hash are right, which is all that SuperLink asks.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.run import Run as FlowerRun
from flwr.superlink.grid.http_grid import HttpGrid
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import RunError
from common.protocol import UPDATE
from federation_support import FaultyGrid, make_job, same, start_state
from server.checkpoints import Checkpoint
from server.job import Event, Job
from server.rounds import pulling
from server.strategy import Federation
from test_wire_faults import NamedGrid

#: The objects of a reply, children first: (id, its children's, bytes; None: they never come).
Stored = list[tuple[str, list[str], bytes | None]]
#: (objects of a good reply) -> what a hostile node stores in its place.
Spoil = Callable[[Stored], Stored]


class OverHttp(HttpGrid):
    """Flower's own grid, whose SuperLink is nodes of this process."""

    def __init__(self, nodes: FaultyGrid, spoil: Spoil, exchange: str = "update") -> None:
        super().__init__(token="none")
        self._run = FlowerRun.create_empty(1)
        self._nodes, self._spoil, self._exchange = nodes, spoil, exchange
        self._store: dict[str, bytes | None] = {}
        self.extra: list[tuple[Any, ObjectTree]] = []
        self.calls: Counter[str] = Counter()
        self.kept: set[str] = set()

    @property
    def _runtime_client(self) -> Any:
        return self

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._nodes.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return self._nodes.push_messages(messages)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:  # noqa: N802
        self.calls["pull"] += 1
        found, trees = [], []
        for reply in self._nodes.pull_messages(request.message_ids):
            stored = objects_of(reply)
            hostile = self._nodes.nodes[reply.metadata.src_node_id] == 0
            if hostile and self._exchange in reply.metadata.message_type:
                stored = self._spoil(stored)
            for name, _, content in stored:
                # What several replies hold is there as soon as one node has sent it.
                self._store[name] = content or self._store.get(name)
            self.kept.add(stored[-1][0])
            reply.metadata.__dict__["_message_id"] = stored[-1][0]
            found.append(message_to_proto(reply))
            trees.append(tree_of(stored))
        found += [told for told, _ in self.extra]
        trees += [tree for _, tree in self.extra]
        return PullAppMessagesResponse(messages_list=found, message_object_trees=trees)

    def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
        self.calls["object"] += 1
        content = self._store[request.object_id]
        return PullObjectResponse(
            object_found=True, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self.kept.discard(request.message_object_id)


def objects_of(reply: Message) -> Stored:
    found: dict[str, tuple[list[str], bytes]] = {}

    def add(each: Any) -> str:
        children = [add(child) for child in (each.children or {}).values()]
        found[each.object_id] = (children, each.deflate())
        return str(each.object_id)

    add(reply)
    return [(name, children, content) for name, (children, content) in found.items()]


def tree_of(stored: Stored) -> ObjectTree:
    children = {name: below for name, below, _ in stored}

    def grow(name: str) -> ObjectTree:
        return ObjectTree(object_id=name, children=[grow(each) for each in children[name]])

    return grow(stored[-1][0])


def made(kind: str, children: list[str], body: bytes) -> tuple[str, list[str], bytes]:
    """Return an object that SuperLink takes."""
    head = f"{kind} {','.join(children)} {len(body)}"
    content = head.encode() + HEAD_BODY_DIVIDER + body
    validate_object_content(content)
    return get_object_id(content), list(dict.fromkeys(children)), content


def body_of(stored: Stored) -> bytes:
    """Return the body of a reply's uppermost object."""
    content = stored[-1][2]
    assert content is not None
    return content.partition(HEAD_BODY_DIVIDER)[2]


def records_that_are_no_json(stored: Stored) -> Stored:
    records = made("RecordDict", [], b"not json")
    return [records, made("Message", [records[0]], body_of(stored))]


def records_that_are_a_list(stored: Stored) -> Stored:
    records = made("RecordDict", [], b"[1]")
    return [records, made("Message", [records[0]], body_of(stored))]


def an_array_of_no_shape(stored: Stored) -> Stored:
    facts = {"dtype": "float32", "shape": ["a"], "stype": "numpy.ndarray", "arraychunk_ids": []}
    array = made("Array", [], json.dumps(facts).encode())
    arrays = made("ArrayRecord", [array[0]], json.dumps({"item_bias": array[0]}).encode())
    records = made("RecordDict", [arrays[0]], json.dumps({UPDATE: arrays[0]}).encode())
    return [array, arrays, records, made("Message", [records[0]], body_of(stored))]


def a_message_of_nothing(stored: Stored) -> Stored:
    return [made("Message", [], body_of(stored))]


def no_message(stored: Stored) -> Stored:
    return [made("ConfigRecord", [], b"")]


def a_message_of_an_array(stored: Stored) -> Stored:
    record = made("ConfigRecord", [], b"")
    return [record, made("Message", [record[0]], body_of(stored))]


def a_child_that_is_nowhere(stored: Stored) -> Stored:
    name, _, content = made("Message", ["0" * 64], body_of(stored))
    return [(name, [], content)]


def a_body_of_no_message(stored: Stored) -> Stored:
    return [made("Message", [], b"\xff\xff\xff")]


def too_many_bytes(stored: Stored) -> Stored:
    chunks = [made("ArrayChunk", [], bytes([k]) * (1 << 20)) for k in range(3)]
    top = made("Message", [name for name, _, _ in chunks], body_of(stored))
    return [*chunks, top]


def too_many_objects(stored: Stored) -> Stored:
    chunks = [made("ArrayChunk", [], str(k).encode()) for k in range(1000)]
    top = made("Message", [name for name, _, _ in chunks], body_of(stored))
    return [*chunks, top]


HOSTILE = [
    records_that_are_no_json,
    records_that_are_a_list,
    an_array_of_no_shape,
    a_message_of_nothing,
    no_message,
    a_message_of_an_array,
    a_child_that_is_nowhere,
    a_body_of_no_message,
    too_many_bytes,
    too_many_objects,
]


def run(grid: HttpGrid, job: Job) -> tuple[list[Event], list[Checkpoint]]:
    events: list[Event] = []
    saved: list[Checkpoint] = []
    Federation(grid, job, save=saved.append, report=events.append).run(start_state())
    return events, saved


def rounds(events: list[Event], fact: str) -> list[object]:
    return [event[fact] for event in events if event["event"] == "round"]


def test_good_replies_come_as_flower_itself_would_bring_them() -> None:
    grid = OverHttp(NamedGrid(4, order=1), lambda stored: stored)
    events, saved = run(grid, make_job(rounds=2))
    assert rounds(events, "accepted") == [4, 4]
    calm: list[Checkpoint] = []
    nodes = NamedGrid(4)
    Federation(nodes, make_job(rounds=2), save=calm.append, report=lambda _: None).run(
        start_state()
    )
    assert same(saved[-1].state, calm[-1].state)
    # SuperLink was told to forget each of them.
    assert not grid.kept


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: str(spoil.__name__))
@pytest.mark.parametrize("exchange", ["join", "update"])
def test_what_cannot_be_read_costs_its_sender_the_exchange_and_no_one_else(
    spoil: Spoil, exchange: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid = OverHttp(NamedGrid(4, order=1), spoil, exchange)
    events, _ = run(grid, make_job(rounds=2))
    assert rounds(events, "accepted") == [3, 3]
    refused = [e["declined"] for e in events if e["event"] == ("join", "round")[exchange != "join"]]
    assert refused[0] == {"rubbish": 1}
    assert "reply=rubbish" in caplog.text
    assert not grid.kept
    # Of what is too large no more is read than shows it.
    assert grid.calls["object"] < 500


def test_bytes_that_never_come_are_waited_for_as_long_as_the_exchange_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node may announce objects and keep them: each look is answered with 'not yet'."""
    monkeypatch.setattr(pulling, "_LEAST_SECONDS", 0.1)

    def withheld(stored: Stored) -> Stored:
        return [(name, children, None) for name, children, _ in stored]

    # The hostile node's is the first of those that are pulled together.
    nodes = NamedGrid(4, order=1)
    nodes.choose = lambda waiting: waiting  # type: ignore[method-assign]
    started = time.monotonic()
    events, _ = run(OverHttp(nodes, withheld), make_job(rounds=1, timeout_seconds=1.0))
    assert rounds(events, "accepted") == [3]
    assert rounds(events, "declined") == [{"late": 1}]
    assert time.monotonic() - started < 10.0
    assert threading.active_count() < 50


def test_a_message_that_nobody_asked_for_is_not_even_read() -> None:
    """SuperLink adds what any node sends to it in SuperLink's own name to the next pull."""
    grid = OverHttp(NamedGrid(3), lambda stored: stored)
    told = message_to_proto(Message(RecordDict(), 1, "query.anything"))
    told.metadata.message_id = "f" * 64
    grid.extra = [(told, ObjectTree(object_id="f" * 64))]
    events, _ = run(grid, make_job(rounds=1))
    assert rounds(events, "accepted") == [3]
    assert "f" * 64 not in grid._store


def test_a_reply_that_claims_to_answer_anothers_message_is_its_senders() -> None:
    """The message inside says whom it answers; SuperLink knows whom it was sent to."""
    nodes = NamedGrid(3, order=1)
    sent: dict[int, str] = {}
    push = nodes.push_messages

    def watched(messages: Iterable[Message]) -> list[str]:
        told = list(messages)
        ids = push(told)
        shops = [nodes.nodes[message.metadata.dst_node_id] for message in told]
        sent.update(zip(shops, ids, strict=True))
        return ids

    nodes.push_messages = watched  # type: ignore[method-assign]

    def forged(stored: Stored) -> Stored:
        said = MessageProto.FromString(body_of(stored))
        said.metadata.reply_to_message_id = sent[1]
        *below, (_, children, _) = stored
        return [*below, made("Message", children, said.SerializeToString())]

    events, _ = run(OverHttp(nodes, forged), make_job(rounds=1))
    assert rounds(events, "accepted") == [3]
    assert rounds(events, "declined") == [{}]


def test_an_error_of_the_connection_ends_the_run_as_before() -> None:
    class Broken(OverHttp):
        def PullObject(self, request: Any) -> PullObjectResponse:  # noqa: N802
            raise RunError("the connection is gone")

    with pytest.raises(RunError, match="the connection is gone"):
        run(Broken(NamedGrid(3), lambda stored: stored), make_job(rounds=1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.binary(max_size=40), st.integers(0, 400), st.booleans())
def test_no_change_to_any_object_of_a_reply_ends_a_run(
    which: int, change: bytes, at: int, whole: bool
) -> None:
    """Whatever stands in the place of an object's body, what is above it names the new one."""

    def changed(stored: Stored) -> Stored:
        chosen = which % len(stored)
        renamed: dict[str, str] = {}
        found: Stored = []
        for number, (name, _, content) in enumerate(stored):
            assert content is not None
            head, _, body = content.partition(HEAD_BODY_DIVIDER)
            kind, children, _ = head.decode().split(" ")
            for old, new in renamed.items():
                body = body.replace(old.encode(), new.encode())
            if number == chosen:
                where = at % (len(body) + 1)
                body = change if whole else body[:where] + change + body[where + len(change) :]
            below = [renamed[child] for child in children.split(",") if child]
            found.append(made(kind, below, body))
            renamed[name] = found[-1][0]
        return found

    grid = OverHttp(NamedGrid(3, order=1), changed)
    events, _ = run(grid, make_job(rounds=1))
    assert rounds(events, "accepted")[0] in (2, 3)
