"""The federation remembers each shop's ledger: an older copy of it is told from the newest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.app import app
from client.privacy.ledger import Ledger
from common.errors import ArtifactError
from common.model import initial_state, state_spec, trained_names
from common.protocol import (
    HEADER,
    JOIN,
    NO_FINGERPRINT,
    RELEASE,
    TRAIN,
    RoundHeader,
    TrainingPlan,
    shop_key,
)
from federation_support import FaultyGrid, make_settings
from participation_support import MODEL, PLAN, World, make_world
from server.checkpoints import Checkpoint
from server.job import Job
from server.rounds.heads import LedgerHeads
from server.settings import read_home
from server.strategy import Federation

SHOPS = 3
OPEN = PLAN.model_copy(update={"private": False})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = make_world(tmp_path, monkeypatch)
    monkeypatch.setenv("FEDTAIL_SHOPS", str(tmp_path / "shops"))
    for number in range(SHOPS):
        world.shop(number, allow_unprotected=True)
    return world


class ListeningGrid(FaultyGrid):
    """Keeps the headers that the server sends."""

    def __init__(self, **how: Any) -> None:
        super().__init__(app, SHOPS, **how)
        self.headers: list[tuple[int, str, RoundHeader]] = []

    def answer(self, message: Message) -> Message | None:
        fields = dict(message.content.config_records[HEADER])
        shop = self.nodes[message.metadata.dst_node_id]
        kind = message.metadata.message_type.split(".")[1]
        self.headers.append((shop, kind, RoundHeader.model_validate(fields)))
        return super().answer(message)

    def heads(self, shop: int, kind: str) -> list[str]:
        return [h.ledger_head for s, k, h in self.headers if (s, k) == (shop, kind)]


def run(
    world: World,
    name: str,
    plan: TrainingPlan = PLAN,
    *,
    resume: Checkpoint | None = None,
    saved: list[Checkpoint] | None = None,
    **how: Any,
) -> tuple[ListeningGrid, list[dict[str, Any]]]:
    shapes = state_spec(MODEL, world.catalogue.size)
    settings = make_settings(max_update_norm=0.0, timeout_seconds=60.0)
    fingerprint = world.catalogue.fingerprint
    job = Job(name, plan, settings, fingerprint, shapes, trained_names(plan))
    grid, events = ListeningGrid(**how), list[dict[str, Any]]()
    kept: list[Checkpoint] = saved if saved is not None else []
    federation = Federation(
        grid,
        job,
        save=kept.append,
        report=events.append,
        heads=LedgerHeads(world.folder / "heads.json"),
    )
    federation.run(initial_state(MODEL, world.catalogue.size), resume)
    return grid, events


def ledger(world: World, number: int) -> Path:
    return world.folder / "shops" / str(number) / "ledger.sqlite"


def heads_of(world: World, number: int) -> list[str]:
    return [entry.hash for entry in Ledger.read(ledger(world, number))]


def test_heads_last_over_restarts_and_zeros_replace_none(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "heads.json"
    heads = LedgerHeads(path)
    assert heads.of("a" * 64) == NO_FINGERPRINT
    heads.remember({"a" * 64: "1" * 64, "b" * 64: NO_FINGERPRINT})
    heads.remember({"a" * 64: NO_FINGERPRINT})
    again = LedgerHeads(path)
    assert (again.of("a" * 64), again.of("b" * 64)) == ("1" * 64, NO_FINGERPRINT)
    again.remember({"a" * 64: "2" * 64})
    assert LedgerHeads(path).of("a" * 64) == "2" * 64
    assert [p.name for p in path.parent.iterdir()] == ["heads.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"format": 2, "heads": {}}', '{"format": 1, "heads": {"a": "b"}}', "null"],
)
def test_a_damaged_file_of_heads_stops_the_server(tmp_path: Path, text: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match="heads"):
        LedgerHeads(path)


def test_the_file_lies_beside_the_checkpoints_unless_told_otherwise(tmp_path: Path) -> None:
    settings = 'checkpoints = "run-1"\ncatalogue = "c"\n'
    for text, name in ((settings, "ledger-heads.json"), (settings + 'ledger_heads = "h"\n', "h")):
        (tmp_path / "server.toml").write_text(text, encoding="utf-8")
        assert read_home({"FEDTAIL_SERVER": str(tmp_path)}).heads_file == tmp_path / name


def test_every_message_carries_the_shops_own_last_known_head(world: World) -> None:
    grid, _ = run(world, "first")
    for shop in range(SHOPS):
        known = heads_of(world, shop)
        assert grid.heads(shop, JOIN) == [NO_FINGERPRINT]
        assert grid.heads(shop, RELEASE) == [NO_FINGERPRINT]
        assert grid.heads(shop, TRAIN) == known[:2]
    # Another run, another process: whose shop a node is, is only known once it has joined.
    grid, _ = run(world, "second")
    for shop in range(SHOPS):
        known = heads_of(world, shop)
        assert grid.heads(shop, JOIN) == [NO_FINGERPRINT]
        assert grid.heads(shop, RELEASE) == known[2:3]
        assert grid.heads(shop, TRAIN) == known[3:5]
    assert len({grid.heads(shop, RELEASE)[0] for shop in range(SHOPS)}) == SHOPS


@pytest.mark.parametrize("loss", ["older copy", "emptied", "missing", "garbage", "cut off"])
def test_a_shop_that_lost_its_newest_ledger_stops_and_nothing_is_written(
    world: World, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = ledger(world, 1)
    run(world, "first")
    old = path.read_bytes()
    run(world, "second")
    newest = path.read_bytes()
    damage: dict[str, Callable[[], object]] = {
        "older copy": lambda: path.write_bytes(old),
        "emptied": lambda: path.write_bytes(b""),
        "missing": path.unlink,
        "garbage": lambda: path.write_bytes(b"no ledger" * 999),
        "cut off": lambda: path.write_bytes(newest[: len(newest) // 2]),
    }
    damage[loss]()
    before = path.read_bytes() if path.exists() else None
    _, events = run(world, "third")
    (release,) = [event for event in events if event["event"] == "release"]
    rounds = [event for event in events if event["event"] == "round"]
    if loss in ("older copy", "emptied", "missing"):
        # Joining, when nobody can know better, it was let in; and it wrote nothing.
        assert events[0]["shops"][shop_key("m1")] == "ok"
        assert release["shops"] == {shop_key("m1"): "ledger-error"}
        assert [event["shops"] for event in rounds] == [{shop_key("m1"): "ledger-error"}] * 2
        assert "restore the newest backup" in caplog.text
    else:
        assert events[0]["shops"][shop_key("m1")] == "ledger-error"
    assert (path.read_bytes() if path.exists() else None) == before
    assert [event["accepted"] for event in rounds] == [SHOPS - 1] * 2
    path.write_bytes(newest)
    _, events = run(world, "fourth")
    assert all(event["accepted"] == SHOPS for event in events if event["event"] != "end")


def test_a_shop_whose_ledger_is_restored_during_a_run_goes_on(world: World) -> None:
    path = ledger(world, 0)
    run(world, "first")
    newest = path.read_bytes()
    path.write_bytes(b"")

    def restore(shop: int, kind: str, server_round: int, reply: Message) -> Message:
        if (shop, kind, server_round) == (0, "update", 1):
            path.write_bytes(newest)
        return reply

    _, events = run(world, "second", fault=restore)
    accepted = [event["accepted"] for event in events if event["event"] in ("release", "round")]
    assert accepted == [SHOPS - 1, SHOPS - 1, SHOPS]


def test_a_plan_without_privacy_sends_no_head_and_forgets_none(world: World) -> None:
    run(world, "first")
    before = (world.folder / "heads.json").read_text(encoding="utf-8")
    ledger(world, 0).unlink()
    grid, events = run(world, "open", OPEN)
    assert {header.ledger_head for _, _, header in grid.headers} == {NO_FINGERPRINT}
    assert all(event["accepted"] == SHOPS for event in events if event["event"] == "round")
    assert (world.folder / "heads.json").read_text(encoding="utf-8") == before
    # That there was such a run is all that the new file says: it is not taken for the old one.
    mechanisms = [entry.event.mechanism for entry in Ledger.read(ledger(world, 0))]
    assert mechanisms == ["unprotected"]
    _, events = run(world, "second")
    accepted = [event["accepted"] for event in events if event["event"] in ("release", "round")]
    assert accepted == [SHOPS - 1] * 3


def test_nobody_pays_where_no_head_could_be_kept(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("server.rounds.heads.write_whole", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(world, "run")
    assert [world.spent(number) for number in range(SHOPS)] == [0] * SHOPS


def test_a_round_that_is_redone_after_a_crash_meets_a_head_older_than_the_newest(
    world: World,
) -> None:
    saved: list[Checkpoint] = []

    def crash(shop: int, kind: str, server_round: int, reply: Message) -> Message:
        if (kind, server_round) == ("update", 2):
            raise KeyboardInterrupt
        return reply

    with pytest.raises(KeyboardInterrupt):
        run(world, "run", saved=saved, fault=crash)
    known = json.loads((world.folder / "heads.json").read_text(encoding="utf-8"))["heads"]
    spent = [world.spent(number) for number in range(SHOPS)]
    assert sorted(spent) == [2, 2, 3]
    assert known == {shop_key(f"m{number}"): heads_of(world, number)[1] for number in range(SHOPS)}
    _, events = run(world, "run", resume=saved[-1])
    assert [event["accepted"] for event in events if event["event"] == "round"] == [SHOPS]
    assert [world.spent(number) for number in range(SHOPS)] == [count + 1 for count in spent]


def test_a_shop_that_answers_with_an_older_head_when_it_joins_does_not_replace_the_newest(
    world: World,
) -> None:
    run(world, "first")
    old = world.folder / "old.sqlite"
    shutil.copy(ledger(world, 2), old)
    run(world, "second")
    newest = heads_of(world, 2)[-1]
    shutil.copy(old, ledger(world, 2))
    run(world, "third")
    assert LedgerHeads(world.folder / "heads.json").of(shop_key("m2")) == newest
