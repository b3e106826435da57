"""Secure sums through the apps themselves: a grid in this process, real keys and ledgers."""

import gc
import json
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.app import app
from client.data.records import held_records
from client.joining.keys import private_key, renew_keys
from client.privacy.ledger import Event as LedgerEvent
from client.privacy.ledger import Ledger
from client.privacy.noise import SeededNoise
from client.rounds.participation import answer
from client.rounds.secure_participation import answer_sum
from client.settings import read_settings
from client.training import train_round
from common.errors import ConfigError, RunError
from common.model import initial_state
from common.protocol import (
    HEADER,
    ITEMS,
    JOIN,
    MASKED_VECTOR,
    NO_FINGERPRINT,
    RELEASE,
    SAID,
    SUM_KEYS,
    SUM_MASKED,
    SUM_OPEN,
    SUM_SHARES,
    SUM_STAGES,
    SUM_UNMASK,
    SUM_VIEW,
    TRAIN,
    Arrays,
    ModelPlan,
    TrainingPlan,
    plan_digest,
    shop_key,
)
from common.secure_sum.encoding import noise_bound, to_words
from common.secure_sum.messages import (
    Advertisement,
    KeysRequest,
    OpenAnswer,
    SharesAnswer,
    most_chars,
    parse,
)
from common.secure_sum.noise import share_std
from common.secure_sum.primitives import fresh
from federation_support import Fault, FaultyGrid, same
from secure_rounds_support import (
    ITEM_COUNT,
    ONE,
    PLAN,
    SHOPS,
    Town,
    broken,
    killed,
    make_town,
    of,
)
from server.checkpoints import read_checkpoint
from server.job import Job
from server.secure_sum.collecting import Collector
from server.strategy import Federation
from simulations.engine.flower import run_federation
from simulations.engine.in_process import run_in_process


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    return make_town(tmp_path, monkeypatch)


def test_a_run_of_secure_sums_charges_every_ledger_for_a_share_of_the_noise(town: Town) -> None:
    saved, events = town.train()
    assert [e["accepted"] for e in of(events, "release") + of(events, "round")] == [5, 5, 5]
    assert not any(e["kept_old_model"] for e in of(events, "round"))
    assert not np.array_equal(saved[1].state[ITEMS], saved[2].state[ITEMS])
    for shop in range(SHOPS):
        assert town.spent(shop) == [0, 1, 2]
        with Ledger.open(town.folder / "shops" / str(shop) / "ledger.sqlite") as ledger:
            events_ = [entry.event for entry in ledger.verify()]
        assert [e.mechanism for e in events_] == [
            "shared-gaussian-histogram",
            "shared-gaussian-step",
            "shared-gaussian-step",
        ]
        assert [e.noise_multiplier for e in events_] == pytest.approx([2.0, 4.0, 4.0])
        assert events_[1].parameters["trust"] == "federation"


def test_masked_vectors_are_added_as_they_come_and_never_all_in_memory(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shops have answered before anyone asks."""
    seen: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []
    together: list[int] = []
    take = Collector.take_masked

    def everyone(grid: FaultyGrid, waiting: list[str]) -> list[str]:
        kinds = {grid._waiting[i].metadata.message_type for i in waiting}
        if kinds == {f"train.{SUM_MASKED}"}:
            together.append(len(waiting))
        return waiting

    def watched(self: Collector, shop: str, vector: np.ndarray) -> None:
        gc.collect()
        alive.append(sum(one() is not None for one in seen))
        seen.append(weakref.ref(vector))
        take(self, shop, vector)

    monkeypatch.setattr(Collector, "take_masked", watched)
    monkeypatch.setattr(FaultyGrid, "choose", everyone)
    gc.freeze()  # What was there before is not looked through each time.
    try:
        _, events = town.train(PLAN.model_copy(update=ONE))
    finally:
        gc.unfreeze()
    assert [e["accepted"] for e in of(events, "release") + of(events, "round")] == [5, 5]
    assert len(alive) == 2 * SHOPS
    assert max(alive) == 0
    assert together == 2 * [4, 1]


def test_with_next_to_no_noise_it_learns_what_the_clipped_gradients_say(town: Town) -> None:
    """Masks, whole steps and shares of noise change nothing but the last digits."""
    little = {"noise_multiplier": 1e-3, "popularity_noise_multiplier": 1e-3}
    model = ModelPlan(dimension=4, feature_rows=8192)
    changes = {**little, "noise_steps": 2**20, "model": model, "rounds": 1}
    shared = PLAN.model_copy(update=changes)
    saved, _ = town.train(shared)
    alone = shared.model_copy(update={"trust": "shop", "noise_multiplier": 1e-9})
    deltas = []
    for shop in range(SHOPS):
        settings = read_settings(town.folder / "shops" / str(shop) / "shop.toml")
        noise = SeededNoise(np.random.default_rng(0))
        events = held_records(settings)
        stream = np.random.default_rng(1)
        before = saved[0].state
        deltas.append(train_round(alone, 1, before, events, town.catalogue, noise, stream))
    for name in (ITEMS, "feature_embedding"):
        expected = np.mean([delta[name] for delta in deltas], axis=0)
        learned = saved[1].state[name] - saved[0].state[name]
        assert np.abs(learned - expected).max() < 0.01 * np.abs(expected).max(), name


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[] if stage == SUM_MASKED else [pytest.mark.slow])
        for stage in SUM_STAGES
        if stage != SUM_OPEN
    ],
)
def test_a_shop_killed_at_any_stage_neither_stops_the_round_nor_pays_for_what_it_did_not_send(
    town: Town, stage: str
) -> None:
    saved, events = town.train(fault=killed(2, stage))
    first, second = of(events, "round")
    in_sum = SUM_STAGES.index(stage) > SUM_STAGES.index(SUM_MASKED)
    assert (first["accepted"], second["accepted"]) == (5 if in_sum else 4, 5)
    assert not first["kept_old_model"]
    assert first["declined"] == {"error": 1}
    # It answered, and its answer was lost, at the stage itself: charged is what may have left.
    paid = SUM_STAGES.index(stage) >= SUM_STAGES.index(SUM_MASKED)
    assert town.spent(2) == ([0, 1, 2] if paid else [0, 2])
    assert town.spent(0) == [0, 1, 2]
    assert len(saved) == 3


def test_a_shop_killed_when_asked_what_it_can_open_is_done_without_and_has_paid_nothing(
    town: Town,
) -> None:
    """The release asks, before anyone pays."""

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        return broken(reply) if (shop, kind) == (2, SUM_OPEN) else reply

    _, events = town.train(PLAN.model_copy(update=ONE), fault)
    assert [e["accepted"] for e in of(events, "release") + of(events, "round")] == [4, 5]
    assert of(events, "release")[0]["declined"] == {"error": 1}
    assert town.spent(2) == [1]
    assert town.spent(0) == [0, 1]


def sealing_rubbish(shop: int, since: int) -> Fault:
    """A shop whose shares nobody can open, from a round on."""

    def fault(number: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if (number, kind) == (shop, SUM_SHARES) and server_round >= since:
            said = parse(SharesAnswer, str(reply.content.config_records[SAID][SAID]))
            sealed = {s: text[:-1] + bytes([text[-1] ^ 1]) for s, text in said.sealed.items()}
            reply.content.config_records[SAID][SAID] = SharesAnswer(sealed=sealed).model_dump_json()
        return reply

    return fault


def test_a_shop_that_seals_rubbish_is_left_out_of_all_sums_before_anyone_pays(town: Town) -> None:
    _, events = town.train(fault=sealing_rubbish(2, since=0))
    release, *rounds = of(events, "release") + of(events, "round")
    assert (release["asked"], release["accepted"]) == (5, 4)
    assert release["declined"] == {"disputed": 1}
    assert [(e["asked"], e["accepted"], e["kept_old_model"]) for e in rounds] == 2 * [(4, 4, False)]
    for event in (release, *rounds):
        assert event["shops"] == {shop_key("m2"): "disputed"}
    assert [town.spent(shop) for shop in range(SHOPS)] == 2 * [[0, 1, 2]] + [[]] + 2 * [[0, 1, 2]]


def test_a_shop_that_begins_to_seal_rubbish_later_spoils_one_round_of_a_run(
    town: Town, caplog: pytest.LogCaptureFixture
) -> None:
    _, events = town.train(PLAN.model_copy(update={"rounds": 3}), sealing_rubbish(2, since=1))
    rounds = of(events, "round")
    assert [e["kept_old_model"] for e in rounds] == [True, False, False]
    assert [(e["asked"], e["accepted"]) for e in rounds] == [(5, 0), (4, 4), (4, 4)]
    name = shop_key("m2")
    assert f"1 shop gave the share of {name[:12]}...'s seed" in str(rounds[0]["reason"])
    assert [e["shops"] for e in rounds] == 3 * [{name: "disputed"}]
    # What had left is paid for, once; from then on whoever seals rubbish is not asked.
    assert town.spent(2) == [0, 1]
    assert town.spent(0) == [0, 1, 2, 3]
    assert caplog.text.count(f"shares=unopened round=1 of={name[:12]}") == 4
    assert f"left_out=disputed round=1 shop={name[:12]}" in caplog.text


@pytest.mark.parametrize(("of_whom", "out"), [((4,), {}), ((0, 2, 3, 4), {1: "disputed"})])
def test_a_shop_that_complains_falsely_takes_nobody_out_but_itself(
    town: Town, of_whom: tuple[int, ...], out: Mapping[int, str]
) -> None:
    falsely = tuple(shop_key(f"m{shop}") for shop in of_whom)

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if (shop, kind) == (1, SUM_OPEN):
            said = OpenAnswer(unopened=falsely).model_dump_json()
            reply.content.config_records[SAID][SAID] = said
        return reply

    _, events = town.train(PLAN.model_copy(update=ONE), fault)
    both = of(events, "release") + of(events, "round")
    assert [e["accepted"] for e in both] == 2 * [SHOPS - len(out)]
    assert [e["shops"] for e in both] == 2 * [{shop_key(f"m{k}"): why for k, why in out.items()}]
    assert [bool(town.spent(shop)) for shop in range(SHOPS)] == [k not in out for k in range(SHOPS)]


def test_where_too_few_seal_what_opens_the_run_ends_and_nobody_has_paid(town: Town) -> None:
    faults = [sealing_rubbish(shop, since=0) for shop in (0, 1, 2)]

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        told: Message | None = reply
        for one in faults:
            assert told is not None
            told = one(shop, kind, server_round, told)
        return told

    with pytest.raises(RunError, match=r"2 shops shared; 3 are needed"):
        town.train(fault=fault)
    assert [town.spent(shop) for shop in range(SHOPS)] == [[]] * SHOPS


@pytest.mark.parametrize("stage", [SUM_VIEW, pytest.param(SUM_UNMASK, marks=pytest.mark.slow)])
def test_noise_that_is_in_a_sum_is_told_of_though_its_shop_fails_afterwards(
    town: Town, stage: str
) -> None:
    """One shop's noise was seeded, and its vector is in the sum when it says that it failed."""
    for shop in range(1, SHOPS):
        town.write(shop, settings='noise = "system"')

    def fault(shop: int, kind: str, at: int, reply: Message) -> Message | None:
        if shop == 0 and kind == stage:
            header = dict(reply.content.config_records[HEADER])
            failed = header | {"status": "failed", "noise": "none", "ledger_head": NO_FINGERPRINT}
            reply.content.config_records[HEADER] = ConfigRecord(failed)
            del reply.content[SAID]
        return reply

    saved, events = town.train(PLAN.model_copy(update={"rounds": 0}), fault)
    release = of(events, "release")[0]
    assert release["accepted"] == SHOPS
    assert release["shops"] == {shop_key("m0"): "failed"}
    assert saved[-1].noise == "seeded"


def test_with_too_few_left_the_old_model_stays_and_the_reason_is_told(town: Town) -> None:
    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if shop < 3 and server_round == 1 and kind == SUM_VIEW:
            return broken(reply)
        return reply

    saved, events = town.train(fault=fault)
    first, second = of(events, "round")
    assert first["kept_old_model"]
    assert "3 are needed" in str(first["reason"])
    assert np.array_equal(saved[0].state[ITEMS], saved[1].state[ITEMS])
    assert not second["kept_old_model"]
    # The masked vectors had left: they are paid for.
    assert [town.spent(shop) for shop in range(SHOPS)] == [[0, 1, 2]] * SHOPS


def test_a_release_that_too_few_take_part_in_ends_the_run(town: Town) -> None:
    def fault(shop: int, kind: str, _round: int, reply: Message) -> Message | None:
        return broken(reply) if shop < 3 and kind == SUM_KEYS else reply

    with pytest.raises(RunError, match="3 are needed"):
        town.train(fault=fault)
    assert [town.spent(shop) for shop in range(SHOPS)] == [[]] * SHOPS


def test_a_shop_with_a_key_that_is_not_in_the_roster_is_left_out(town: Town) -> None:
    renew_keys(town.folder / "shops" / "1" / "node.key")
    _, events = town.train(PLAN.model_copy(update=ONE))
    assert of(events, "join")[0]["declined"] == {"no-secure-sum": 1}
    assert [e["accepted"] for e in of(events, "round")] == [4]
    assert town.spent(1) == []


def test_a_key_that_is_renewed_while_a_shop_answers_is_the_same_all_along(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read twice, one key could be looked for on the roster, and another one sign."""
    read: list[Path] = []

    def then_renewed(path: Path) -> object:
        read.append(path)
        key = private_key(path)
        renew_keys(path)
        return key

    monkeypatch.setattr("client.joining.roster.private_key", then_renewed)
    said = KeysRequest(session=town.session(1, {})).model_dump_json()
    status, text, _ = ask(town, 0, SUM_KEYS, said)
    assert (status, len(read)) == ("ok", 1)
    Collector(parse(KeysRequest, said).session, town.roster).take_keys(
        shop_key("m0"), parse(Advertisement, text)
    )


@pytest.mark.parametrize("changed", ["no section", "no roster", "not on it"])
def test_a_shop_that_is_not_ready_for_sums_says_so_before_anything_begins(
    town: Town, changed: str
) -> None:
    home = town.folder / "shops" / "1" / "shop.toml"
    text = home.read_text()
    if changed == "no section":
        home.write_text(text[: text.index("[secure_sum]")])
    elif changed == "no roster":
        home.write_text(text.replace("../roster", "nowhere"))
    else:
        lines = (town.folder / "shops" / "roster").read_text().splitlines()
        (home.parent / "mine").write_text("\n".join(x for x in lines if not x.endswith(" m1")))
        home.write_text(text.replace("../roster", "mine"))
    _, events = town.train(PLAN.model_copy(update=ONE))
    assert of(events, "join")[0]["declined"] == {"no-secure-sum": 1}
    assert [e["accepted"] for e in of(events, "round")] == [4]
    assert town.spent(1) == []


def test_shops_that_hold_another_roster_take_no_part_in_the_servers_sums(town: Town) -> None:
    """As when the server, or somebody on the way, has put a shop of its own into its copy."""
    path = town.folder / "shops" / "1" / "mine"
    lines = (town.folder / "shops" / "roster").read_text().splitlines()
    path.write_text("\n".join(lines[:4]) + "\n")
    home = town.folder / "shops" / "1" / "shop.toml"
    home.write_text(home.read_text().replace("../roster", "mine"))
    _, events = town.train(PLAN.model_copy(update=ONE))
    assert of(events, "round")[0]["declined"] == {"sum-refused": 1}
    assert [e["accepted"] for e in of(events, "round")] == [4]
    assert town.spent(1) == []


def test_a_server_that_alters_what_shops_say_gets_no_sum(town: Town) -> None:
    """Somebody on the way changes one key: its shop is refused, the others see another view."""

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if kind == SUM_KEYS and server_round == 1 and shop == 0:
            said = json.loads(str(reply.content.config_records[SAID][SAID]))
            said["mask_key"] = fresh().hex()
            reply.content.config_records[SAID][SAID] = json.dumps(said)
        return reply

    _, events = town.train(PLAN.model_copy(update=ONE), fault)
    assert of(events, "round")[0]["declined"] == {"rubbish": 1}
    # By name, as whoever looks after that shop has to know.
    assert of(events, "round")[0]["shops"] == {shop_key("m0"): "rubbish"}
    assert of(events, "round")[0]["accepted"] == 4


def test_a_shop_that_says_more_than_any_can_is_not_listened_to(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MB of complaints that are none took 2.3 GB of the server's memory, and the run with it."""
    heard: list[int] = []

    def listened(kind: type[Any], text: str) -> object:
        heard.append(len(text))
        return parse(kind, text)

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if kind == SUM_OPEN and shop == 0:
            complaints = ",".join(['""'] * most_chars(SHOPS))
            reply.content.config_records[SAID][SAID] = f'{{"unopened":[{complaints}]}}'
        return reply

    monkeypatch.setattr("server.secure_sum.rounds.parse", listened)
    _, events = town.train(PLAN.model_copy(update=ONE), fault)
    assert of(events, "release")[0]["declined"] == {"rubbish": 1}
    assert [e["accepted"] for e in of(events, "release") + of(events, "round")] == [4, 5]
    assert max(heard) <= most_chars(SHOPS)


def test_the_server_refuses_a_run_of_secure_sums_without_a_roster(town: Town) -> None:
    job = Job(**{**vars(town.job(PLAN)), "members": None})
    with pytest.raises(ConfigError, match="roster"):
        Federation(FaultyGrid(app, SHOPS), job, save=id, report=id)


def ask(town: Town, shop: int, stage: str, said: str, **more: object) -> tuple[str, str, Arrays]:
    plan = more.pop("plan", PLAN)
    server_round = more.pop("server_round", 1)
    state = more.pop("state", None)
    assert isinstance(plan, TrainingPlan)
    assert isinstance(server_round, int)
    received = initial_state(PLAN.model, ITEM_COUNT) if state is None else state
    header, text, arrays = answer_sum(
        stage,
        town.header(server_round, plan) | more,
        said,
        lambda: received,  # type: ignore[arg-type,return-value]
        town.node(shop),
    )
    return header.status, text, arrays


def test_a_share_of_the_noise_never_leaves_without_masks(town: Town) -> None:
    state = initial_state(PLAN.model, ITEM_COUNT)
    for kind, server_round in ((RELEASE, 0), (TRAIN, 1)):
        header, arrays = answer(kind, town.header(server_round), lambda: state, town.node(0))
        assert (header.status, arrays) == ("refused-config", {})
    assert answer(JOIN, town.header(0), dict, town.node(0))[0].status == "ok"
    assert town.spent(0) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"trust": "shop"},
        {"private": False},
        {"honest_shops": 0},
        {"local_steps": 2},
        {"sample_rate": 0.5},
        {"noise_multiplier": 1e-4},
    ],
)
def test_plans_that_are_no_secure_sums_are_refused(
    town: Town, changes: Mapping[str, object]
) -> None:
    plan = PLAN.model_copy(update=dict(changes))
    said = KeysRequest(session=town.session(1, {}, plan_digest=plan_digest(plan)))
    status, text, _ = ask(town, 0, SUM_KEYS, said.model_dump_json(), plan=plan)
    assert (status, text) == ("refused-config", "")


def test_a_shop_takes_part_only_as_its_own_settings_allow(town: Town) -> None:
    said = KeysRequest(session=town.session(1, {})).model_dump_json()
    town.write(0, section="colluding_shops = 1\n")
    assert ask(town, 0, SUM_KEYS, said)[0] == "refused-config"
    home = town.folder / "shops" / "1" / "shop.toml"
    home.write_text(home.read_text().split("[secure_sum]")[0])
    assert ask(town, 1, SUM_KEYS, said)[0] == "no-secure-sum"
    (town.folder / "shops" / "2" / "node.key").chmod(0o644)
    assert ask(town, 2, SUM_KEYS, said)[0] == "refused-config"
    assert ask(town, 3, SUM_KEYS, said)[0] == "ok"


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "another"},
        {"server_round": 2},
        {"kind": "release"},
        {"plan_digest": "0" * 64},
        {"catalogue_fingerprint": "0" * 64},
        {"roster_digest": "0" * 64},
        {"threshold": 2},
        {"length": 7},
    ],
)
def test_a_session_of_anything_but_the_plan_is_refused(
    town: Town, changes: Mapping[str, object]
) -> None:
    said = KeysRequest(session=town.session(1, {}, **changes)).model_dump_json()
    assert ask(town, 0, SUM_KEYS, said)[0] == "sum-refused"


def test_a_message_that_is_longer_than_any_of_so_many_shops_is_not_even_read(town: Town) -> None:
    said = KeysRequest(session=town.session(1, {})).model_dump_json()
    most = most_chars(SHOPS)
    assert ask(town, 0, SUM_KEYS, said.ljust(most + 1))[0] == "sum-refused"
    assert ask(town, 0, SUM_KEYS, said.ljust(most))[0] == "ok"


class Walk:
    """A session up to the masked vectors, by hand."""

    def __init__(
        self,
        town: Town,
        state: Arrays,
        server_round: int = 1,
        plan: TrainingPlan = PLAN,
        **changes: object,
    ) -> None:
        from common.secure_sum.messages import Advertisement, SharesAnswer, parse
        from server.secure_sum.collecting import Collector

        self.town, self.round, self.plan = town, server_round, plan
        shown = state if server_round else {}
        changes |= {"plan_digest": plan_digest(plan)}
        session = town.session(server_round, shown, **changes)
        self.collector = Collector(session, town.roster)
        first = KeysRequest(session=session).model_dump_json()
        self.names: dict[int, str] = {}
        for shop in range(SHOPS):
            status, text, _ = ask(town, shop, SUM_KEYS, first, server_round=server_round, plan=plan)
            assert status == "ok"
            keys = parse(Advertisement, text)
            self.names[shop] = keys.shop
            self.collector.take_keys(keys.shop, keys)
        request = self.collector.shares_request().model_dump_json()
        for shop, name in self.names.items():
            of_all = {"server_round": server_round, "plan": plan}
            _, text, _ = ask(town, shop, "sum_shares", request, **of_all)
            self.collector.take_shares(name, parse(SharesAnswer, text))

    def masked(self, shop: int, **more: object) -> tuple[str, Arrays]:
        said = self.collector.masked_request(self.names[shop]).model_dump_json()
        more = {"server_round": self.round, "plan": self.plan, **more}
        status, _, arrays = ask(self.town, shop, SUM_MASKED, said, **more)
        return status, arrays


def test_a_replayed_message_gets_no_second_vector_and_costs_nothing(town: Town) -> None:
    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT))
    status, arrays = walk.masked(0)
    assert status == "ok"
    assert arrays[MASKED_VECTOR].dtype == np.uint32
    assert arrays[MASKED_VECTOR].shape == (4 * ITEM_COUNT,)
    assert walk.masked(0) == ("sum-refused", {})
    assert town.spent(0) == [1]


def test_a_state_that_others_were_not_shown_is_not_trained_on(town: Town) -> None:
    """A server that shows each shop another model could tell their updates apart in the sum."""
    state = initial_state(PLAN.model, ITEM_COUNT)
    walk = Walk(town, state)
    other = {**state, ITEMS: state[ITEMS] + np.float32(1e-3)}
    assert walk.masked(0, state=other) == ("sum-refused", {})
    assert town.spent(0) == []
    assert walk.masked(0)[0] == "ok"


@pytest.mark.parametrize(
    "changes", [{"honest_shops": 5}, {"noise_multiplier": 3.9}, {"max_grad_norm": 2.0}]
)
def test_a_vector_of_another_plan_than_the_sessions_is_not_made(
    town: Town, changes: Mapping[str, object]
) -> None:
    """Of the plan that came with the keys the others make their noise: less would be in the sum."""
    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT))
    assert walk.masked(0, plan=PLAN.model_copy(update=dict(changes))) == ("sum-refused", {})
    assert town.spent(0) == []
    assert walk.masked(0)[0] == "ok"


def test_a_vector_that_the_budget_does_not_cover_is_not_made(town: Town) -> None:
    town.write(0, settings="cap_epsilon = 0.01")
    walk = Walk(town, {}, server_round=0)
    assert walk.masked(0) == ("over-budget", {})
    assert town.spent(0) == []
    # The session is used up all the same: another vector of it will never be.
    town.write(0)
    assert walk.masked(0) == ("sum-refused", {})


@pytest.mark.parametrize("changes", [{"noise_multiplier": 80.0}, {"steps": 0}, {"server_round": 2}])
def test_no_vector_leaves_if_the_ledger_was_charged_less(
    town: Town, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any]
) -> None:
    charge = Ledger.charge

    def careless(ledger: Ledger, event: LedgerEvent, **how: Any) -> str:
        return charge(ledger, replace(event, **changes), **how)

    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT))
    monkeypatch.setattr(Ledger, "charge", careless)
    assert walk.masked(0) == ("refused-config", {})


def test_a_plan_that_the_catalogue_has_no_features_for_begins_no_sum(town: Town) -> None:
    plan = PLAN.model_copy(update={"model": ModelPlan(dimension=4, feature_rows=8191)})
    session = town.session(0, {}, plan_digest=plan_digest(plan))
    said = KeysRequest(session=session).model_dump_json()
    assert ask(town, 0, SUM_KEYS, said, plan=plan, server_round=0)[0] == "wrong-protocol"


@pytest.mark.parametrize("wrong", ["no numbers", "another shape"])
def test_a_state_that_is_not_the_plans_is_refused_before_the_charge(town: Town, wrong: str) -> None:
    """Every shop signs its digest all the same: each would have paid for nothing."""
    state = initial_state(PLAN.model, ITEM_COUNT)
    rows = state[ITEMS]
    state[ITEMS] = rows[1:] if wrong == "another shape" else np.full_like(rows, np.nan)
    assert Walk(town, state).masked(0, state=state) == ("wrong-protocol", {})
    assert town.spent(0) == []


@pytest.mark.parametrize(
    ("server_round", "computes"),
    [
        (0, "client.rounds.secure_participation.whole_popularity"),
        (1, "client.training.whole_gradients"),
    ],
)
def test_a_vector_is_paid_before_anything_of_it_is_computed(
    town: Town, monkeypatch: pytest.MonkeyPatch, server_round: int, computes: str
) -> None:
    """A crash can waste budget and never hide spending."""
    paid: list[list[int]] = []

    def crashing(*_: object) -> None:
        paid.append(town.spent(0))
        raise RuntimeError("customer-4711")

    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT), server_round)
    monkeypatch.setattr(computes, crashing)
    assert walk.masked(0) == ("failed", {})
    assert paid == [[server_round]]


@pytest.mark.parametrize("customers", [0, 12])
def test_sums_of_baskets_need_a_column_of_sessions_with_records_or_without(
    town: Town, customers: int
) -> None:
    """Were an empty shop to send a vector without the column, that would tell that it is empty."""
    for shop in range(SHOPS):
        town.write(shop, settings='unit = "basket"', customers=customers)
    walk = Walk(town, {}, 0, PLAN.model_copy(update={"unit": "basket"}))
    assert walk.masked(0) == ("refused-config", {})
    assert town.spent(0) == []


def test_what_leaves_a_shop_is_not_what_it_holds(town: Town) -> None:
    """The same shop in two sessions: no number of its vector is the same, and none is small."""
    vectors = [Walk(town, {}, server_round=0).masked(0)[1][MASKED_VECTOR] for _ in range(2)]
    assert not np.any(vectors[0] == vectors[1])
    for vector in vectors:
        assert np.median(np.abs(vector.view(np.int32).astype(float))) > 2**28


@pytest.mark.parametrize("server_round", [0, 1])
def test_what_a_shop_may_add_leaves_room_for_all_the_others_and_the_noise(
    town: Town, monkeypatch: pytest.MonkeyPatch, server_round: int
) -> None:
    """Held to more, the sums of shops that each are within it would wrap around."""
    import client.rounds.secure_participation as secure

    bounds: list[int] = []

    def words(clipped: np.ndarray, noise: np.ndarray, bound: np.ndarray) -> np.ndarray:
        bounds.extend(bound.tolist())
        return to_words(clipped, noise, bound)

    monkeypatch.setattr(secure, "to_words", words)
    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT), server_round)
    assert walk.masked(0)[0] == "ok"
    multiplier = PLAN.noise_multiplier if server_round else PLAN.popularity_noise_multiplier
    noise = noise_bound(SHOPS, len(bounds), share_std(PLAN, multiplier))
    assert PLAN.noise_steps <= min(bounds)
    assert SHOPS * max(bounds) + noise < 2**31


def test_records_of_what_a_shop_does_not_stock_count_in_no_row_of_groups_either(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of groups travel whole: they would tell of products that the table says nothing of."""
    import client.rounds.secure_participation as secure

    sums: list[np.ndarray] = []

    def words(clipped: np.ndarray, noise: np.ndarray, bound: np.ndarray) -> np.ndarray:
        sums.append(clipped)
        return to_words(clipped, noise, bound)

    monkeypatch.setattr(secure, "to_words", words)
    groups = {"groups": "category", "learned_items": 5, "group_weights": "even"}
    plan = PLAN.model_copy(update={"model": ModelPlan(dimension=4, **groups)})
    state = initial_state(plan.model, ITEM_COUNT)
    stock = town.publish_stock({0: range(15)})
    path = town.folder / "shops" / "0" / "data" / "interactions.csv"
    records = pd.read_csv(path)
    stocked = records["item_id"].isin([f"i{k:02}" for k in range(15)])
    for rows in (records, records.assign(item_id=records["item_id"].where(stocked, "i29"))):
        rows.to_csv(path, index=False)
        walk = Walk(town, state, 1, plan, stock_fingerprint=stock.fingerprint, length=20)
        assert walk.masked(0, state=state)[0] == "ok"
    assert stocked.any()
    assert sums[0].any()
    assert np.array_equal(sums[0], sums[1])


def test_a_failing_shop_says_a_code_and_no_more(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client.rounds.secure_participation as secure

    def failing(*_: object) -> None:
        raise ValueError("customer-4711")

    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT))
    monkeypatch.setattr(secure, "held_records", failing)
    assert walk.masked(0) == ("failed", {})
    assert town.spent(0) == []


@pytest.mark.slow
def test_the_sums_noise_has_the_planned_variance_end_to_end(town: Town) -> None:
    """Shops without customers, noise from the operating system: what is learned is noise alone."""
    for shop in range(SHOPS):
        town.write(shop, settings='noise = "system"', customers=0)
    wide = ModelPlan(dimension=64)
    plan = PLAN.model_copy(update={"model": wide, "rounds": 1})
    for gone in (0, 1, 2):

        def fault(
            shop: int, kind: str, at: int, reply: Message, gone: int = gone
        ) -> Message | None:
            return broken(reply) if at == 1 and shop < gone and kind == SUM_MASKED else reply

        saved, events = town.train(plan, fault)
        survivors = SHOPS - gone
        assert of(events, "round")[0]["accepted"] == survivors
        delta = saved[1].state[ITEMS].astype(float) - saved[0].state[ITEMS]
        # Of the sum: survivors / m times the plan's variance; of their mean, over survivors².
        clip = plan.clipping_norm(1) * plan.learning_rate / plan.batch_normalizer
        planned = (plan.noise_multiplier * clip) ** 2 * survivors / 3 / survivors**2
        assert delta.size == 64 * ITEM_COUNT
        assert delta.var() / planned == pytest.approx(1, abs=5 * (2 / delta.size) ** 0.5)


def test_in_process_and_experiments_write_what_shops_need(town: Town, tmp_path: Path) -> None:
    outcome = run_in_process(
        PLAN,
        shops_folder=town.folder / "shops",
        shops=SHOPS,
        server_folder=tmp_path / "server",
        catalogue_folder=town.folder / "catalogue",
    )
    assert [e["accepted"] for e in outcome.of("round")] == [5, 5]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_on_flowers_engine_the_figures_are_the_same(town: Town, tmp_path: Path) -> None:
    """Masks are drawn anew and come off to the last bit: seeded noise makes both runs one."""
    states = []
    for engine, run in (("in-process", run_in_process), ("flower", run_federation)):
        copy = tmp_path / engine
        shutil.copytree(town.folder / "shops", copy / "shops")
        shutil.copytree(town.folder / "catalogue", copy / "catalogue")
        outcome = run(
            PLAN.model_copy(update=ONE),
            shops_folder=copy / "shops",
            shops=SHOPS,
            server_folder=copy / "server",
            catalogue_folder=copy / "catalogue",
        )
        assert [e["accepted"] for e in outcome.of("round")] == [SHOPS]
        states.append(read_checkpoint(copy / "server" / "checkpoints", 1).state)
    assert same(*states)


@pytest.mark.parametrize("stage", [SUM_MASKED, pytest.param(SUM_UNMASK, marks=pytest.mark.slow)])
def test_a_shop_that_says_again_what_it_said_in_another_round_spoils_no_model(
    town: Town, stage: str
) -> None:
    """An old vector is found in the sum alone, which is no model; old shares are done without."""
    kept: dict[int, RecordDict] = {}

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if (shop, kind) == (2, stage):
            kept[server_round] = reply.content
            if server_round == 2:
                old = kept[1].copy()
                old[HEADER] = reply.content[HEADER]
                reply.content = old
        return reply

    saved, events = town.train(fault=fault)
    first, second = of(events, "round")
    assert (first["accepted"], first["kept_old_model"]) == (5, False)
    if stage == SUM_UNMASK:
        assert (second["accepted"], second["kept_old_model"]) == (5, False)
        assert not np.array_equal(saved[1].state[ITEMS], saved[2].state[ITEMS])
        assert np.abs(saved[2].state[ITEMS]).max() < 10 * np.abs(saved[1].state[ITEMS]).max()
    else:
        assert (second["accepted"], second["kept_old_model"]) == (0, True)
        assert "spread over all of 32 bits" in str(second["reason"])
        assert np.array_equal(saved[1].state[ITEMS], saved[2].state[ITEMS])
    # A ledger never knows what becomes of a vector.
    assert [town.spent(shop) for shop in range(SHOPS)] == [[0, 1, 2]] * SHOPS


def test_a_release_with_an_old_vector_in_it_ends_the_run(town: Town) -> None:
    kept: list[RecordDict] = []

    def fault(shop: int, kind: str, server_round: int, reply: Message) -> Message | None:
        if (shop, kind, server_round) == (2, SUM_MASKED, 0):
            kept.append(reply.content)
            reply.content = kept[0].copy()
        return reply

    town.train(PLAN.model_copy(update=ONE), fault)
    with pytest.raises(RunError, match=r"further below 0 than any noise|spread over all"):
        town.train(PLAN.model_copy(update=ONE), fault)
    assert len(kept) == 2
    assert [town.spent(shop) for shop in range(SHOPS)] == [[0, 1, 0]] * SHOPS


def test_sessions_that_were_put_back_get_no_second_vector_out_of_a_shop(town: Town) -> None:
    """Under the same masks their difference would be bare but for one shop's shares of noise."""
    walk = Walk(town, initial_state(PLAN.model, ITEM_COUNT))
    settings = read_settings(town.folder / "shops" / "0" / "shop.toml")
    assert settings.secure_sum is not None
    path = settings.secure_sum.sessions
    before = path.read_bytes()
    assert walk.masked(0)[0] == "ok"
    path.write_bytes(before)
    assert walk.masked(0) == ("sum-refused", {})
    assert town.spent(0) == [1]
    with Ledger.open(settings.ledger) as ledger:
        (entry,) = ledger.verify()
    assert entry.event.parameters["session"] == walk.collector.session.id.hex()
    assert entry.event.parameters["roster"] == town.roster.digest
