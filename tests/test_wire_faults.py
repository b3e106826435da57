"""What a deployment does to a run: nodes that come and go, speak for others, or send rubbish."""

import io
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.proto.node_pb2 import NodeInfo

from common.errors import RunError
from common.protocol import NO_FINGERPRINT, TRAIN, UPDATE, Noise, shop_key
from federation_support import (
    SHAPES,
    TRAINED,
    Clock,
    Fault,
    FaultyGrid,
    make_job,
    make_reply,
    names,
    no_fault,
    same,
    start_state,
    toy_app,
)
from server.checkpoints import Checkpoint
from server.job import Event, Job
from server.rounds import messenger
from server.rounds.messenger import Messenger
from server.rounds.roster import Roster
from server.strategy import Federation


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "time", Clock())


class NamedGrid(FaultyGrid):
    """Nodes are enrolled under names, as a deployment's are."""

    def __init__(self, shops: int, *, fault: Fault = no_fault, order: int = 0) -> None:
        super().__init__(toy_app(), shops, fault=fault, order=order)
        self.names = {node: f"shop-{shop}" for node, shop in self.nodes.items()}

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names.get(node, "")) for node in self.nodes]


def run(grid: FaultyGrid, job: Job, report: Callable[[Event], object] = lambda _: None) -> "Run":
    found = Run()

    def tell(event: Event) -> None:
        found.events.append(event)
        report(event)

    Federation(grid, job, save=found.saved.append, report=tell).run(start_state())
    return found


class Run:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.saved: list[Checkpoint] = []

    def rounds(self, fact: str) -> list[object]:
        return [event[fact] for event in self.events if event["event"] == "round"]


def asked_for(reply: Message, server_round: int) -> Message:
    """Return the message that a reply answers."""
    asked = Message(
        reply.content, reply.metadata.src_node_id, "train.update", group_id=str(server_round)
    )
    asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return asked


def test_a_node_speaks_for_the_shop_of_its_own_name_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grid = NamedGrid(4)
    impostor = next(node for node, shop in grid.nodes.items() if shop == 2)
    grid.names[impostor] = "shop-99"
    found = run(grid, make_job(rounds=1))
    join = found.events[0]
    assert (join["accepted"], join["declined"]) == (3, {"rubbish": 1})
    assert join["shops"] == {
        **{shop_key(f"shop-{shop}"): "ok" for shop in (0, 1, 3)},
        shop_key("shop-99"): "rubbish",
    }
    assert {shop for shop, _ in names(grid.sent, "update")} == {0, 1, 3}
    assert "its merchant_id differs from the name it was enrolled under" in caplog.text
    assert names(grid.sent, "join").count((2, 0)) == 1


def test_a_shop_that_turns_into_another_after_it_joined_is_not_counted() -> None:
    def turn(shop: int, kind: str, server_round: int, reply: Message) -> Message:
        if shop != 0 or kind != "update":
            return reply
        good = {name: np.ones(SHAPES[name], np.float32) for name in TRAINED}
        return make_reply(asked_for(reply, server_round), 1, good)

    found = run(NamedGrid(4, fault=turn), make_job(rounds=1))
    assert found.rounds("declined") == [{"rubbish": 1}]
    assert found.rounds("accepted") == [3]
    # What it says is not put down to the shop that it names.
    assert found.rounds("shops") == [{shop_key("shop-0"): "rubbish"}]


@pytest.mark.parametrize("named", [True, False])
def test_a_shop_that_restarts_under_another_number_trains_in_the_next_round(named: bool) -> None:
    grid = NamedGrid(3) if named else FaultyGrid(toy_app(), 3)
    old = next(node for node, shop in grid.nodes.items() if shop == 0)

    def restart(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 1:
            move(grid, old, 20_000, keep=False)

    found = run(grid, make_job(rounds=3), restart)
    assert found.rounds("accepted") == [3, 3, 3]
    assert names(grid.sent, "update").count((0, 2)) == 1
    undisturbed = run(FaultyGrid(toy_app(), 3), make_job(rounds=3))
    assert same(found.saved[-1].state, undisturbed.saved[-1].state)


def move(grid: FaultyGrid, old: int, new: int, *, keep: bool) -> None:
    """Let a shop's process start anew under another number."""
    grid.nodes[new] = grid.nodes[old]
    grid._contexts[new] = grid._contexts[old]
    if isinstance(grid, NamedGrid):
        grid.names[new] = grid.names[old]
    if not keep:
        del grid.nodes[old]


def test_the_enrolled_node_of_a_shop_takes_the_place_of_one_not_given_up_yet() -> None:
    grid = NamedGrid(3)
    old = next(node for node, shop in grid.nodes.items() if shop == 0)
    dead: list[int] = []

    def restart(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 1:
            move(grid, old, 20_000, keep=True)
            dead.append(old)

    def answer(message: Message) -> Message | None:
        if message.metadata.dst_node_id in dead:
            return None
        return FaultyGrid.answer(grid, message)

    grid.answer = answer  # type: ignore[method-assign]
    found = run(grid, make_job(rounds=2), restart)
    assert found.rounds("accepted") == [3, 3]
    assert names(grid.sent, "update").count((0, 2)) == 1


def test_a_nameless_second_node_cannot_push_a_shop_out_and_gets_in_when_it_is_gone() -> None:
    grid = FaultyGrid(toy_app(), 3)
    old = next(node for node, shop in grid.nodes.items() if shop == 0)

    def twice(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 1:
            move(grid, old, 20_000, keep=True)
        if event["event"] == "round" and event["server_round"] == 2:
            del grid.nodes[old]

    found = run(grid, make_job(rounds=3), twice)
    assert found.rounds("asked") == [3, 3, 3]
    assert found.rounds("accepted") == [3, 3, 3]
    assert names(grid.sent, "update").count((0, 2)) == 1


def test_a_node_that_was_gone_for_a_round_is_asked_again() -> None:
    grid = NamedGrid(3)
    node = next(n for n, shop in grid.nodes.items() if shop == 0)

    def blink(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 1:
            del grid.nodes[node]
        if event["event"] == "round" and event["server_round"] == 2:
            grid.nodes[node] = 0

    found = run(grid, make_job(rounds=3), blink)
    assert found.rounds("accepted") == [3, 2, 3]
    assert names(grid.sent, "join").count((0, 3)) == 1


def test_a_shop_that_is_removed_is_not_asked_any_more() -> None:
    grid = NamedGrid(4)
    node = next(n for n, shop in grid.nodes.items() if shop == 1)

    def remove(event: Event) -> None:
        if event["event"] == "round":
            grid.nodes.pop(node, None)

    found = run(grid, make_job(rounds=3), remove)
    assert found.rounds("asked") == [4, 3, 3]
    assert [r for shop, r in names(grid.sent, "update") if shop == 1] == [1]


def test_when_superlink_starts_anew_a_run_waits_for_the_shops() -> None:
    grid = NamedGrid(3)
    away: dict[int, int] = {}
    looks: list[int] = []
    get_node_ids = grid.get_node_ids

    def flaky() -> list[int]:
        if away:
            looks.append(len(looks))
            if len(looks) == 3:
                grid.nodes.update(away)
                away.clear()
        return get_node_ids()

    grid.get_node_ids = flaky  # type: ignore[method-assign]

    def restart(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 1:
            away.update(grid.nodes)
            grid.nodes.clear()

    found = run(grid, make_job(rounds=2, wait_seconds=30.0), restart)
    assert found.rounds("accepted") == [3, 3]
    assert len(looks) == 3


def test_a_run_without_any_shop_left_ends_with_a_clear_message() -> None:
    grid = NamedGrid(2)

    def leave(event: Event) -> None:
        if event["event"] == "round":
            grid.nodes.clear()

    with pytest.raises(RunError, match="round 2: no shop takes part any more"):
        run(grid, make_job(rounds=2, wait_seconds=0.05), leave)


def test_replies_that_nobody_waits_for_and_second_ones_count_nothing() -> None:
    grid = NamedGrid(3)
    pull, kept = grid.pull_messages, []

    def noisy(message_ids: Iterable[str]) -> list[Message]:
        replies = pull(message_ids)
        kept.extend(replies)
        stranger = Message(Error(1, "of some unknown node"), reply_to=asked_for(kept[0], 0))
        stranger.metadata.__dict__["_reply_to_message_id"] = "no-such-message"
        # Everything that ever came comes again, and something that nobody asked for.
        return [stranger, *replies, *kept]

    grid.pull_messages = noisy  # type: ignore[method-assign]
    found = run(grid, make_job(rounds=2))
    assert found.rounds("accepted") == [3, 3]
    assert found.rounds("declined") == [{}, {}]
    calm = run(NamedGrid(3), make_job(rounds=2))
    assert same(found.saved[-1].state, calm.saved[-1].state)


def test_a_node_that_never_says_whether_it_takes_part_is_waited_for_twice() -> None:
    """Once a round it would cost all the others as long as an exchange may last."""

    def mute(shop: int, kind: str, _round: int, reply: Message) -> Message | None:
        return None if (shop, kind) == (0, "join") else reply

    grid = NamedGrid(3, fault=mute)
    found = run(grid, make_job(rounds=5))
    assert [event["declined"] for event in found.events if event["event"] == "join"] == [
        {"late": 1},
        {"late": 1},
    ]
    assert [r for shop, r in names(grid.sent, "join") if shop == 0] == [0, 2]
    assert found.rounds("accepted") == [2] * 5


def test_a_silent_node_that_was_gone_is_asked_anew() -> None:
    def mute(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        return None if (shop, kind) == (0, "join") and server_round < 4 else reply

    grid = NamedGrid(3, fault=mute)
    node = next(node for node, shop in grid.nodes.items() if shop == 0)

    def come_and_go(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 2:
            del grid.nodes[node]
        if event["event"] == "round" and event["server_round"] == 3:
            grid.nodes[node] = 0

    found = run(grid, make_job(rounds=5), come_and_go)
    assert found.rounds("accepted") == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("exchange", ["join", "release", "update"])
@pytest.mark.parametrize("named", [True, False])
def test_a_reply_that_is_of_no_shop_is_of_no_use(exchange: str, named: bool) -> None:
    """Rows, a part in a sum and one reply an exchange go by the shop's name."""

    def nobody(shop: int, kind: str, _round: int, reply: Message) -> Message:
        if shop == 0 and kind == exchange:
            reply.content.config_records["header"]["shop"] = NO_FINGERPRINT
        return reply

    grid = NamedGrid(3, fault=nobody)
    if not named:
        grid.names = {}
    found = run(grid, make_job(rounds=1))
    event = next(e for e in found.events if e["event"] == exchange.replace("update", "round"))
    assert (event["accepted"], event["declined"]) == (2, {"rubbish": 1})


def test_the_name_of_nobody_does_not_free_a_shop_of_the_stock_table() -> None:
    """A shop sends the rows of what it is published to stock; nobody is in no such table."""

    def nobody(shop: int, kind: str, _round: int, reply: Message) -> Message:
        if shop == 0 and kind == "update":
            reply.content.config_records["header"]["shop"] = NO_FINGERPRINT
        return reply

    grid = NamedGrid(3, fault=nobody)
    roster = Roster(grid)
    roster.look()
    shops = {node: shop_key(f"shop-{shop}") for node, shop in grid.nodes.items()}
    roster.join(shops)
    first = np.arange(7) == 0
    found = Messenger(grid, make_job(1), roster, None).exchange(
        TRAIN,
        1,
        sorted(grid.nodes),
        start_state(),
        {name: SHAPES[name] for name in TRAINED},
        # Every shop is published to stock one product; all of them send all rows.
        rows=lambda shop: {"item_embedding": first} if shop in shops.values() else {},
    )
    assert found.contributions == []
    assert found.declined == {"rubbish": 3}


def _archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


def _npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an array",
        b"PK\x03\x04 no archive",
        _archive(),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }"),
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (7,), }"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-7,), }"),
        _npy("(((((((("),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (7,), }"),
    ],
)
def test_bytes_that_are_no_array_cost_their_sender_the_round_and_no_one_else(data: bytes) -> None:
    def spoil(shop: int, kind: str, _round: int, reply: Message) -> Message:
        if shop == 0 and kind == "update":
            good = dict(reply.content.array_records[UPDATE])
            bias = SHAPES["item_bias"]
            good["item_bias"] = Array(dtype="float32", shape=bias, stype="numpy.ndarray", data=data)
            reply.content[UPDATE] = ArrayRecord(good)
        return reply

    found = run(NamedGrid(3, fault=spoil), make_job(rounds=1))
    assert found.rounds("declined") == [{"rubbish": 1}]
    assert found.rounds("accepted") == [2]


@pytest.mark.parametrize(
    ("noise", "multiplier", "accepted"),
    [("system", 0.0, 3), ("seeded", 0.0, 3), ("none", 0.0, 2), ("system", 3.0, 2)],
)
def test_a_private_update_that_claims_no_noise_is_not_used(
    noise: Noise, multiplier: float, accepted: int
) -> None:
    def claim(shop: int, kind: str, _round: int, reply: Message) -> Message:
        fields = reply.content.config_records["header"]
        fields["noise"] = "system"
        if shop == 0 and kind == "update":
            fields["noise"], fields["noise_multiplier"] = noise, multiplier
        return reply

    found = run(NamedGrid(3, fault=claim), make_job(rounds=1, private=True))
    assert found.rounds("accepted") == [accepted]
    assert found.saved[-1].noise == ("seeded" if noise == "seeded" else "system")
    assert found.saved[0].noise == "system"
