"""What the real client app answers is planned records alone, and the account finds what is not."""

from collections.abc import Callable
from copy import copy

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto import fleet_pb2, message_pb2, node_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from client.joining.error_replies import without_words, wordless
from common.protocol import HEADER, UPDATE, WEIGHT, ModelPlan, TrainingPlan
from federation_support import write_federation
from leaving_account import FLEET, Account, Reply, request, size
from simulations.engine import in_process
from simulations.engine.in_process import InProcessGrid, run_in_process

PLAN = TrainingPlan(
    rounds=2,
    noise_multiplier=4.0,
    popularity_noise_multiplier=2.0,
    model=ModelPlan(dimension=3),
)
ITEMS = 30
SECRET = "/home/merchant/flwr/apps: u1 bought i07"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, Message]]:
    """(shop, reply) of a whole run of four shops, the last of which cannot afford it."""
    folder = tmp_path_factory.mktemp("run")
    write_federation(folder)
    found = []

    class Listening(InProcessGrid):
        def answer(self, message: Message) -> Message | None:
            reply = super().answer(message)
            assert reply is not None
            kept = make_message(copy(reply.metadata), content=reply.content)
            # SuperLink numbers messages by their content, the grid counts them.
            kept.metadata.__dict__["_reply_to_message_id"] = "a" * 64
            found.append((self.nodes[message.metadata.dst_node_id], kept))
            return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_process, "InProcessGrid", Listening)
        run_in_process(
            PLAN,
            shops_folder=folder / "shops",
            shops=4,
            server_folder=folder / "server",
            catalogue_folder=folder / "catalogue",
            run_config={"evaluate": True},
        )
    return found


def account(reply: Message) -> Reply:
    objects = {key: part.deflate() for key, part in get_all_nested_objects(reply).items()}
    return Account(PLAN, ITEMS).reply(objects, reply.object_id)


def test_every_answer_of_a_run_is_accounted_for(answers: list[tuple[int, Message]]) -> None:
    told = [(shop, account(reply)) for shop, reply in answers]
    kinds = [reply.kind for shop, reply in told if shop == 0]
    assert kinds[:4] == ["query.join", "train.release", "train.update", "train.update"]
    assert {shop for shop, r in told if r.kind == "train.update"} == {0, 1, 2}
    assert all(r.error is None for _, r in told)
    poor = [r.header.status for shop, r in told if shop == 3 and r.header]
    assert poor[0] == "over-budget"
    for _, reply in told:
        planned = {"train.release": {"popularity"}, "train.update": {"item_embedding"}}
        assert set(reply.arrays) == planned.get(reply.kind, set())
    assert all(r.arrays["popularity"].any() for _, r in told if r.kind == "train.release")


def test_sizes_are_the_same_whoever_answers(answers: list[tuple[int, Message]]) -> None:
    sizes: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for shop, reply in answers:
        if shop < 3:
            parts = [part.deflate() for part in get_all_nested_objects(reply).values()]
            key = (reply.metadata.message_type, reply.metadata.group_id)
            bodies = [_pushed(part) for part in parts]
            found = tuple(size(FLEET + "push-object", body) for body in bodies)
            sizes.setdefault(key, set()).add(found)
    assert len(sizes) >= 4
    assert all(len(found) == 1 for found in sizes.values()), sizes


def _release(answers: list[tuple[int, Message]]) -> Message:
    (reply,) = [
        r for shop, r in answers if shop == 0 and r.metadata.message_type == "train.release"
    ]
    return reply


def _off_grid(records: RecordDict) -> None:
    array = records.array_records[UPDATE]["popularity"].numpy().copy()
    array[3] += 2.0**-20
    records[UPDATE] = ArrayRecord({"popularity": Array(array)})


def _one_more_array(records: RecordDict) -> None:
    more = Array(np.zeros(1, np.float32))
    records[UPDATE] = ArrayRecord({**records.array_records[UPDATE], "loss": more})


def _longer_array(records: RecordDict) -> None:
    records[UPDATE] = ArrayRecord({"popularity": Array(np.zeros(ITEMS + 1, np.float32))})


def _padded_array(records: RecordDict) -> None:
    old = records.array_records[UPDATE]["popularity"]
    padded = Array(old.dtype, old.shape, old.stype, old.data + b"u1")
    records[UPDATE] = ArrayRecord({"popularity": padded})


def _one_more_field(records: RecordDict) -> None:
    header = dict(records.config_records[HEADER])
    records[HEADER] = ConfigRecord({**header, "customers": 12})


def _words_for_a_code(records: RecordDict) -> None:
    header = dict(records.config_records[HEADER])
    records[HEADER] = ConfigRecord({**header, "status": SECRET})


def _weight(records: RecordDict) -> None:
    records[WEIGHT] = MetricRecord({WEIGHT: 12.0})


def _metric(records: RecordDict) -> None:
    records[WEIGHT] = MetricRecord({WEIGHT: 1.0, "loss": 0.5})


def _record(records: RecordDict) -> None:
    records["more"] = MetricRecord({"loss": 0.5})


@pytest.mark.parametrize(
    "leak",
    [
        _off_grid,
        _one_more_array,
        _longer_array,
        _padded_array,
        _one_more_field,
        _words_for_a_code,
        _weight,
        _metric,
        _record,
    ],
)
def test_what_is_not_planned_is_found(
    answers: list[tuple[int, Message]], leak: Callable[[RecordDict], None]
) -> None:
    reply = _release(answers)
    account(reply)
    records = RecordDict(dict(reply.content))
    leak(records)
    changed = Message(records, reply_to=reply)
    changed.metadata.__dict__.update(reply.metadata.__dict__)
    with pytest.raises((AssertionError, ValueError)):
        account(changed)


def test_an_object_that_belongs_to_no_record_is_found(answers: list[tuple[int, Message]]) -> None:
    reply = _release(answers)
    parts = {key: part.deflate() for key, part in get_all_nested_objects(reply).items()}
    other = MetricRecord({"loss": 0.5})
    with pytest.raises(AssertionError, match="no planned record"):
        Account(PLAN, ITEMS).reply({**parts, other.object_id: other.deflate()}, reply.object_id)


def _pushed(content: bytes) -> bytes:
    sent = message_pb2.PushObjectRequest(
        node=node_pb2.Node(node_id=2**63), run_id=7, object_content=content
    )
    body: bytes = sent.SerializeToString(deterministic=True)
    return body


def test_requests_have_known_paths_and_fields_and_no_other_bytes() -> None:
    pull = fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=5))
    body = pull.SerializeToString(deterministic=True)
    assert request(FLEET + "pull-messages", body) == pull
    for path, sent in (
        (FLEET + "unregister-node", body),
        ("/v1/control/list-runs", body),
        # A field that exists and that nobody sends; one that does not exist.
        (FLEET + "pull-messages", body + b"\x12\x02u1"),
        (FLEET + "pull-messages", body + b"\x7a\x02u1"),
    ):
        with pytest.raises(AssertionError):
            request(path, sent)


def _error_reply(words: str) -> Message:
    asked = Message(RecordDict(), 7, "train.release", group_id="0")
    asked.metadata.__dict__["_message_id"] = "a" * 64
    reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, words), reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def test_an_error_reply_leaves_without_its_words() -> None:
    reply = _error_reply(SECRET)
    with pytest.raises(AssertionError, match="reason"):
        account(reply)
    assert account(wordless(reply)) == Reply(
        "train.release", 0, error=ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    )
    assert reply.error.reason == SECRET  # the shop's own log has it


def test_flowers_own_sending_is_made_wordless() -> None:
    """Flower's function, with the guard, a node's state, and a link that notes what it is sent."""
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode import start_client_internal as inside
    from flwr.supernode.nodestate import NodeStateFactory

    stores = ObjectStoreFactory()
    state, store = NodeStateFactory(objectstore_factory=stores).state(), stores.store()
    fine = Message(RecordDict({WEIGHT: MetricRecord({WEIGHT: 1.0})}), reply_to=_error_reply(""))
    replies = [_error_reply(SECRET), fine]
    for reply in replies:
        inside._insert_message(reply, state, store)
    messages, objects = [], {}

    def send(message: Message, tree: message_pb2.ObjectTree, _: float) -> tuple[set[str], str]:
        messages.append(message)
        assert tree.object_id == message.metadata.message_id
        children = {child.object_id for child in tree.children}
        parts = {c.object_id for child in tree.children for c in child.children}
        return {tree.object_id, *children, *parts}, "session"

    def push_object(_: int, session: str, object_id: str, content: bytes) -> None:
        assert session == "session"
        objects[object_id] = content

    without_words(inside._push_messages)(
        state=state, object_store=store, send=send, push_object=push_object
    )
    failed, sent = messages
    assert (failed.error.code, failed.error.reason) == (replies[0].error.code, "")
    assert not any(SECRET.encode() in content for content in objects.values())
    told = Account(PLAN, ITEMS).reply(
        {failed.metadata.message_id: objects[failed.metadata.message_id]},
        failed.metadata.message_id,
    )
    assert told.error == failed.error.code
    # What is no error goes as it was.
    assert sent.metadata.message_id == fine.object_id
    assert get_object_tree(fine).object_id in objects
    assert len(objects) == 4
