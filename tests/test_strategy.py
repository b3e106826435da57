import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message

from common.errors import ArtifactError, RunError
from common.protocol import HEADER, POPULARITY, UPDATE, Arrays, TrainingPlan
from federation_support import (
    ITEMS,
    SHAPES,
    TRAINED,
    Clock,
    Fault,
    FaultyGrid,
    make_job,
    make_reply,
    make_settings,
    names,
    same,
    start_state,
    toy_app,
)
from server.checkpoints import (
    Checkpoint,
    alone,
    last_checkpoint,
    read_checkpoint,
    rounds,
    write_checkpoint,
)
from server.job import Event, Job
from server.rounds import messenger
from server.strategy import Federation


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "time", Clock())


def run(
    grid: FaultyGrid, job: Job, resume: Checkpoint | None = None
) -> tuple[Arrays, list[Event], list[Checkpoint]]:
    events: list[Event] = []
    saved: list[Checkpoint] = []
    federation = Federation(grid, job, save=saved.append, report=events.append)
    return federation.run(start_state(), resume), events, saved


def test_the_same_seed_gives_the_same_state_whatever_the_order_of_answers() -> None:
    job = make_job(rounds=3, clients_per_round=0.5)
    first, _, _ = run(FaultyGrid(toy_app(), 6, order=1), job)
    for order in (2, 3, 4):
        again, _, _ = run(FaultyGrid(toy_app(), 6, order=order), job)
        assert same(first, again)
    other, _, _ = run(
        FaultyGrid(toy_app(), 6, order=1), make_job(rounds=3, seed=4, clients_per_round=0.5)
    )
    assert not same(first, other)


def test_a_run_is_one_join_one_release_and_a_train_a_round() -> None:
    grid = FaultyGrid(toy_app(), 4)
    state, events, saved = run(grid, make_job(rounds=2))
    assert Counter(kind for _, kind, _ in grid.sent) == {"join": 4, "release": 4, "update": 8}
    assert [e["event"] for e in events] == ["join", "release", "round", "round", "end"]
    assert [c.server_round for c in saved] == [0, 1, 2]
    assert same(saved[-1].state, state)
    assert state[POPULARITY].sum() == pytest.approx(1.0)


def test_clients_per_round_asks_that_share_of_the_shops() -> None:
    grid = FaultyGrid(toy_app(), 10)
    run(grid, make_job(rounds=8, clients_per_round=0.3))
    asked = names(grid.sent, "update")
    assert all(count == 3 for count in Counter(r for _, r in asked).values())
    assert len({shop for shop, _ in asked}) > 5


def test_a_declining_shop_is_left_out_and_counted_by_code() -> None:
    grid = FaultyGrid(toy_app({1: "over-budget", 2: "over-budget", 3: "failed"}), 6)
    _, events, _ = run(grid, make_job(rounds=1))
    assert events[0]["declined"] == {"failed": 1, "over-budget": 2}
    assert {shop for shop, _ in names(grid.sent, "update")} == {0, 4, 5}


def test_the_run_fails_when_every_shop_declines_or_too_few_connect() -> None:
    with pytest.raises(RunError, match="2 over-budget"):
        run(FaultyGrid(toy_app({0: "over-budget", 1: "over-budget"}), 2), make_job())
    with pytest.raises(RunError, match="needs 5"):
        run(FaultyGrid(toy_app(), 2), make_job(min_shops=5))


def _rubbish(kind: str) -> Fault:
    """Shop 0's updates arrive broken in one way."""

    def fault(shop: int, exchange: str, server_round: int, reply: Message) -> Message | None:
        if shop != 0 or exchange != "update":
            return reply
        good = {n: np.ones(SHAPES[n], np.float32) for n in TRAINED}
        asked = Message(
            reply.content, reply.metadata.src_node_id, "train.update", group_id=str(server_round)
        )
        asked.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
        broken: dict[str, dict[str, np.ndarray]] = {
            "name": {"item_embedding": good["item_embedding"], "other": good["item_bias"]},
            "missing": {"item_bias": good["item_bias"]},
            "long names": {"x" * 10**6: good["item_bias"], **good},
            "shape": good | {"item_bias": np.ones(ITEMS + 1, np.float32)},
            "dtype": good | {"item_bias": np.ones(ITEMS)},
            "nan": good | {"item_bias": np.full(ITEMS, np.nan, np.float32)},
            "norm": good | {"item_bias": np.full(ITEMS, 1e3, np.float32)},
        }
        if kind in broken:
            return make_reply(asked, shop, broken[kind])
        if kind == "long shape":
            broken_reply = make_reply(asked, shop, good)
            array = broken_reply.content.array_records[UPDATE]["item_bias"]
            object.__setattr__(array, "shape", tuple(range(10**6)))
            return broken_reply
        if kind == "late":
            return None
        if kind == "error":
            return Message(Error(1, "the text of some exception"), reply_to=asked)
        if kind == "weight":
            return make_reply(asked, shop, good, weight=17.0)
        if kind == "replayed":
            return make_reply(asked, shop, good, server_round=server_round - 1)
        if kind == "impostor":
            return make_reply(asked, 1, good)
        return make_reply(asked, shop, good, fingerprint="e" * 64)

    return fault


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("name", "rubbish"),
        ("missing", "rubbish"),
        ("long names", "rubbish"),
        ("long shape", "rubbish"),
        ("shape", "rubbish"),
        ("dtype", "rubbish"),
        ("nan", "rubbish"),
        ("norm", "rubbish"),
        ("weight", "rubbish"),
        ("replayed", "rubbish"),
        ("impostor", "rubbish"),
        ("catalogue", "rubbish"),
        ("late", "late"),
        ("error", "error"),
    ],
)
def test_a_bad_reply_changes_nothing_but_its_own_absence(
    kind: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(rounds=2)
    _, events, saved = run(FaultyGrid(toy_app(), 5, fault=_rubbish(kind)), job)
    rounds = [e for e in events if e["event"] == "round"]
    assert [e["declined"] for e in rounds] == [{code: 1}] * 2
    assert [e["accepted"] for e in rounds] == [4, 4]
    # A name of a million letters was a line of as many in the run's log, each round.
    assert max((len(record.getMessage()) for record in caplog.records), default=0) < 1000

    def absent(shop: int, exchange: str, _round: int, reply: Message) -> Message | None:
        return None if shop == 0 and exchange == "update" else reply

    _, _, without = run(FaultyGrid(toy_app(), 5, fault=absent), job)
    assert same(saved[-1].state, without[-1].state)


@pytest.mark.parametrize(
    ("private", "odd", "others"), [(True, "none", "system"), (False, "system", "none")]
)
def test_what_a_shop_says_of_its_noise_is_what_the_plan_asks(
    private: bool, odd: str, others: str
) -> None:
    # Bare numbers in a private model would be told of as the system's noise.
    def said(shop: int, exchange: str, _round: int, reply: Message) -> Message:
        if exchange in ("release", "update"):
            reply.content.config_records[HEADER]["noise"] = odd if shop == 0 else others
        return reply

    _, events, _ = run(FaultyGrid(toy_app(), 5, fault=said), make_job(rounds=1, private=private))
    charged = [e for e in events if e["event"] in ("release", "round")]
    assert [e["declined"] for e in charged] == [{"rubbish": 1}] * 2
    assert [e["accepted"] for e in charged] == [4, 4]


def test_without_a_quorum_the_old_model_stays() -> None:
    def mute(shop: int, exchange: str, server_round: int, reply: Message) -> Message | None:
        return None if exchange == "update" and server_round == 2 and shop < 3 else reply

    grid = FaultyGrid(toy_app(), 5, fault=mute)
    _, events, saved = run(grid, make_job(rounds=3))
    assert [e["kept_old_model"] for e in events if e["event"] == "round"] == [False, True, False]
    assert same(saved[1].state, saved[2].state)
    assert same(saved[1].memory, saved[2].memory)
    assert not same(saved[2].state, saved[3].state)


def test_a_share_of_the_shops_is_the_one_that_is_written() -> None:
    def mute(shop: int, exchange: str, _round: int, reply: Message) -> Message | None:
        return None if exchange == "update" and shop < 11 else reply

    # .56 * 25 is a little more than 14, as floats have it.
    grid = FaultyGrid(toy_app(), 25, fault=mute)
    job = make_job(rounds=1, quorum=0.56, max_update_norm=0.0)
    _, events, _ = run(grid, job)
    assert [e["kept_old_model"] for e in events if e["event"] == "round"] == [False]
    grid = FaultyGrid(toy_app(), 25)
    run(grid, make_job(rounds=1, clients_per_round=0.28, max_update_norm=0.0))
    assert len(names(grid.sent, "update")) == 7
    for shops in range(1, 101):
        for percent in range(1, 101):
            settings = make_settings(quorum=percent / 100, clients_per_round=percent / 100)
            assert settings.quorum_of(shops) == settings.asked_of(shops)
            assert settings.asked_of(shops) == -(-percent * shops // 100)


def test_without_a_quorum_of_releases_nothing_is_trained() -> None:
    def mute(shop: int, exchange: str, _round: int, reply: Message) -> Message | None:
        return None if exchange == "release" and shop < 3 else reply

    grid = FaultyGrid(toy_app(), 5, fault=mute)
    with pytest.raises(RunError, match="2 of 5 shops"):
        run(grid, make_job())
    assert not names(grid.sent, "update")


def test_resuming_in_the_middle_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    job = make_job(rounds=4, clients_per_round=0.5)
    whole, _, saved = run(FaultyGrid(toy_app(), 6), job)
    for checkpoint in saved[:3]:
        write_checkpoint(tmp_path, checkpoint)
    resume = last_checkpoint(
        tmp_path,
        plan=job.plan,
        settings_json=job.settings.identity(),
        catalogue_fingerprint=job.catalogue_fingerprint,
    )
    assert resume is not None
    grid = FaultyGrid(toy_app(), 6, order=9)
    resumed, events, _ = run(grid, job, resume)
    assert same(whole, resumed)
    assert [e["server_round"] for e in events if e["event"] == "round"] == [3, 4]
    assert not names(grid.sent, "release")


@pytest.mark.parametrize("field", ["shop", "ledger_head", "catalogue_fingerprint"])
def test_what_stands_for_a_hash_in_a_reply_is_one(field: str) -> None:
    """Anything else would come into logs, and before an operator's eyes, as it was sent."""

    def hostile(shop: int, kind: str, _round: int, reply: Message) -> Message:
        if (shop, kind) == (0, "join"):
            header = reply.content.config_records[HEADER]
            header[field] = "\x1b[2J\nrun=well ".ljust(64, "a")
        return reply

    _, events, _ = run(FaultyGrid(toy_app(), 3, fault=hostile), make_job(rounds=1))
    assert events[0]["declined"] == {"rubbish": 1}
    shops = [shop for event in events for shop in event.get("shops", {})]  # type: ignore[attr-defined]
    assert all(re.fullmatch("[0-9a-f]{64}", shop) for shop in shops)


def test_a_shop_that_connects_later_joins_the_next_round() -> None:
    grid = FaultyGrid(toy_app(), 4)
    late = max(grid.nodes)
    shop = grid.nodes.pop(late)

    def report(event: Event) -> None:
        if event["event"] == "round" and event["server_round"] == 1:
            grid.nodes[late] = shop

    Federation(grid, make_job(rounds=2), save=lambda _: None, report=report).run(start_state())
    assert [r for s, r in names(grid.sent, "update") if s == shop] == [2]
    assert names(grid.sent, "join")[-1] == (shop, 2)


def test_a_round_in_which_nobody_could_be_asked_is_none() -> None:
    # A run that is stopped may work on for a moment. If what it could not ask any more counted as
    # a round without answers, the run would go on one round too late.
    class Stopped(FaultyGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            messages = list(messages)
            if any(m.metadata.group_id == "2" for m in messages):
                return []
            return super().push_messages(messages)

    saved: list[Checkpoint] = []
    grid = Stopped(toy_app(), 3)
    federation = Federation(grid, make_job(rounds=3), save=saved.append, report=lambda _: None)
    with pytest.raises(RunError, match="the run was stopped"):
        federation.run(start_state())
    assert [checkpoint.server_round for checkpoint in saved][-1] == 1


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    job = make_job(rounds=1)
    _, _, saved = run(FaultyGrid(toy_app(), 3), job)
    write_checkpoint(tmp_path, saved[-1])
    right = {
        "plan": job.plan,
        "settings_json": job.settings.identity(),
        "catalogue_fingerprint": job.catalogue_fingerprint,
    }
    for key, wrong in (
        ("plan", TrainingPlan(rounds=9)),
        ("settings_json", "{}"),
        ("catalogue_fingerprint", "0" * 64),
    ):
        with pytest.raises(ArtifactError, match="another"):
            last_checkpoint(tmp_path, **(right | {key: wrong}))  # type: ignore[arg-type]


def test_a_round_is_on_the_disk_before_it_counts_as_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rename is lost in a power cut, alone or before an earlier one, until its folder is synced:
    # a round without its tensors keeps the run from going on.
    _, _, saved = run(FaultyGrid(toy_app(), 3), make_job(rounds=1))
    synced: list[list[str]] = []

    def fsync(handle: int) -> None:
        # What is itself not on the disk yet has another name; what is, is renamed whole.
        synced.append(sorted(path.name for path in tmp_path.glob("round-00000.*")))
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            assert os.fstat(handle).st_size > 100

    monkeypatch.setattr(os, "fsync", fsync)
    write_checkpoint(tmp_path, saved[0])
    tensors, facts = "round-00000.safetensors", "round-00000.json"
    assert synced == [
        [f"{tensors}.partial"],
        [tensors],
        [f"{facts}.partial", tensors],
        [facts, tensors],
    ]


def test_a_copy_beside_the_checkpoints_is_none_of_them(tmp_path: Path) -> None:
    _, _, saved = run(FaultyGrid(toy_app(), 3), make_job(rounds=1))
    for checkpoint in saved:
        path = write_checkpoint(tmp_path, checkpoint)
    shutil.copy(path, tmp_path / "round-00001-kept.json")
    shutil.copy(path, tmp_path / "round-00009.old.json")
    assert rounds(tmp_path) == [checkpoint.server_round for checkpoint in saved]


def test_a_checkpoint_under_another_round_s_name_is_refused(tmp_path: Path) -> None:
    """A run went on from a copy of round 1 as though round 2 were done."""
    _, _, saved = run(FaultyGrid(toy_app(), 3), make_job(rounds=1))
    path = write_checkpoint(tmp_path, saved[1])
    for ending in (".json", ".safetensors"):
        shutil.copy(path.with_suffix(ending), tmp_path / f"round-00002{ending}")
    with pytest.raises(ArtifactError, match=r"round-00002\.json holds round 1"):
        read_checkpoint(tmp_path, 2)
    assert read_checkpoint(tmp_path, 1).server_round == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": 1}, "has format 1, this code reads 2"),
        ({"noise": "dice"}, r"cannot read the checkpoint .*'system'"),
        ({"sha256": "0" * 64}, "damaged"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_says_is_refused(
    tmp_path: Path, facts: dict[str, object], message: str
) -> None:
    _, _, saved = run(FaultyGrid(toy_app(), 3), make_job(rounds=1))
    path = write_checkpoint(tmp_path, saved[0])
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(tmp_path, 0)


def test_a_half_written_or_damaged_checkpoint_is_noticed(tmp_path: Path) -> None:
    job = make_job(rounds=2)
    _, _, saved = run(FaultyGrid(toy_app(), 3), job)
    for checkpoint in saved:
        write_checkpoint(tmp_path, checkpoint)
    restored = read_checkpoint(tmp_path, 2)
    assert same(restored.state, saved[2].state)
    assert same(restored.memory, saved[2].memory)
    # A run that was trained with seeded noise stays one whenever it goes on.
    for noise in ("seeded", "system"):
        write_checkpoint(tmp_path / noise, replace(saved[2], noise=noise))
        again = read_checkpoint(tmp_path / noise, 2)
        assert (again.noise, again.run_name) == (noise, saved[2].run_name)

    def last_of(folder: Path) -> int:
        resume = last_checkpoint(
            folder,
            plan=job.plan,
            settings_json=job.settings.identity(),
            catalogue_fingerprint=job.catalogue_fingerprint,
        )
        assert resume is not None
        return resume.server_round

    (tmp_path / "round-00002.json").unlink()  # the crash came before the last rename
    assert last_of(tmp_path) == 1

    tensors = tmp_path / "round-00001.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged.*or remove the \.json: the run then goes on"):
        last_of(tmp_path)
    (tmp_path / "round-00001.json").unlink()
    assert last_of(tmp_path) == 0
    (tmp_path / "round-00000.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cannot read the checkpoint.*or remove the \.json"):
        last_of(tmp_path)


def test_one_attempt_at_a_run_works_in_its_folder(tmp_path: Path) -> None:
    with alone(tmp_path / "run"):
        with pytest.raises(RunError, match="another attempt"), alone(tmp_path / "run", patience=0):
            pass
        with alone(tmp_path / "other", patience=0):
            pass
    with alone(tmp_path / "run", patience=0):
        pass
