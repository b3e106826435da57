import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.app import app
from client.data import records as shop_records
from client.privacy.ledger import Event, Ledger
from client.settings import ShopSettings, read_settings
from client.statement import render_shop_statement, shop_statement
from common.accounting import epsilon, plan_spends
from common.errors import DataError
from common.features import Catalogue
from common.model import initial_state, state_spec, trained_names
from common.protocol import (
    HEADER,
    ITEMS,
    JOIN,
    NO_FINGERPRINT,
    POPULARITY,
    PROTOCOL_VERSION,
    PUBLIC_WEIGHT,
    RELEASE,
    TRAIN,
    UPDATE,
    WEIGHT,
    Arrays,
    ModelPlan,
    ReplyHeader,
    shop_key,
)
from common.schema import ShopEvents
from federation_support import FaultyGrid, make_settings, same
from participation_support import MODEL, PLAN, SECRET, World, make_world
from server.job import Job
from server.strategy import Federation

_FINGERPRINTS = ("catalogue_fingerprint", "stock_fingerprint", "ledger_head")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch)


def test_a_shop_that_can_afford_the_plan_joins_and_pays_nothing_yet(world: World) -> None:
    world.shop(0)
    header, arrays = world.ask(JOIN)
    assert (header.status, header.shop, arrays) == ("ok", shop_key("m0"), {})
    assert world.spent() == 0


def test_each_release_and_round_is_charged_once(world: World) -> None:
    world.shop(0)
    assert world.ask(RELEASE)[0].status == "ok"
    assert world.spent() == 1
    header, arrays = world.ask(TRAIN, 1)
    assert header.status == "ok"
    assert world.spent() == 2
    assert header.ledger_head != NO_FINGERPRINT
    assert set(arrays) == set(trained_names(PLAN))
    assert world.ask(TRAIN, 1)[0].status == "ok"
    assert world.spent() == 3  # a redone round is a new release


def test_a_cap_below_the_whole_plan_keeps_the_shop_out_before_any_spending(world: World) -> None:
    world.shop(0, cap_epsilon=0.05)
    assert world.ask(JOIN)[0].status == "over-budget"
    assert world.ask(RELEASE)[0].status == "over-budget"
    assert world.ask(TRAIN, 1)[0].status == "over-budget"
    assert world.spent() == 0


def test_who_joins_can_afford_every_round_that_is_left_at_its_own_delta(world: World) -> None:
    """A cap that holds all but a little of the plan is no cap for the plan."""
    for delta in (1e-5, 1e-7):
        whole = epsilon(plan_spends(PLAN), delta).value
        for cap, status in ((0.999 * whole, "over-budget"), (1.001 * whole, "ok")):
            world.shop(0, cap_epsilon=cap, cap_delta=delta)
            assert world.ask(JOIN)[0].status == status
    assert world.spent() == 0


def test_a_shop_without_the_entry_that_is_remembered_of_it_does_not_join(world: World) -> None:
    world.shop(0)
    assert world.ask(JOIN, ledger_head="a" * 64)[0].status == "ledger-error"
    assert world.ask(RELEASE)[0].status == "ok"
    assert world.ask(JOIN, ledger_head="a" * 64)[0].status == "ledger-error"


@pytest.mark.parametrize("noise", ["seeded", "system"])
def test_the_ledger_says_where_the_noise_came_from(world: World, noise: str) -> None:
    """Whoever knows the seed can take the noise off: what was paid for it is no promise."""
    folder = world.shop(0, noise=noise)
    assert world.ask(RELEASE)[0].noise == noise
    (entry,) = Ledger.read(folder / "ledger.sqlite")
    assert entry.event.parameters["noise"] == noise


def test_a_release_is_not_paid_where_the_rounds_after_it_do_not_fit(world: World) -> None:
    release, *_ = plan_spends(PLAN)
    world.shop(0, cap_epsilon=epsilon([release], 1e-5).value * 1.001)
    assert world.ask(RELEASE)[0].status == "over-budget"
    assert world.spent() == 0


@pytest.mark.parametrize(("kind", "server_round"), [(RELEASE, 0), (TRAIN, 1)])
def test_a_crash_in_training_wastes_budget_and_hides_nothing(
    world: World, kind: str, server_round: int
) -> None:
    world.shop(0)
    world.error = RuntimeError(SECRET)
    header, arrays = world.ask(kind, server_round)
    assert (header.status, arrays) == ("failed", {})
    assert world.spent() == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DataError(SECRET), "data-error"),
        (ValueError(SECRET), "failed"),
        (MemoryError(SECRET), "failed"),
    ],
)
def test_no_text_of_an_error_leaves_the_shop(
    world: World, error: Exception, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.shop(0)
    world.error = error
    header, _ = world.ask(TRAIN, 1)
    assert header.status == status
    assert SECRET not in header.model_dump_json()
    assert SECRET in caplog.text  # the shop's own log says what happened
    # Whoever is told in words needs no stack trace in every round; a mistake of ours has one.
    assert ("Traceback" in caplog.text) == (status == "failed")


def test_data_that_cannot_be_read_is_noticed_before_the_charge(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.shop(0)

    def broken(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
        raise DataError(SECRET)

    monkeypatch.setattr(shop_records, "read_shop", broken)
    assert world.ask(RELEASE)[0].status == "data-error"
    assert world.spent() == 0


def test_what_does_not_fit_the_shop_is_refused_without_a_charge(world: World) -> None:
    world.shop(0)
    open_plan = PLAN.model_copy(update={"private": False})
    basket_plan = PLAN.model_copy(update={"unit": "basket"})
    cases: list[tuple[dict[str, object], str]] = [
        ({"catalogue_fingerprint": "0" * 64}, "wrong-catalogue"),
        ({"version": PROTOCOL_VERSION + 1}, "wrong-protocol"),
        ({"plan_json": '{"rounds": "many"}'}, "wrong-protocol"),
        ({"server_round": 9}, "wrong-protocol"),
        ({"surprise": 1}, "wrong-protocol"),
        ({"plan": open_plan}, "refused-config"),
        ({"plan": basket_plan}, "refused-config"),
        ({"run_config": {"ledger": "/tmp/other"}}, "refused-config"),
        ({"run_config": {"seed": 1, "cap-epsilon": 99.0}}, "refused-config"),
    ]
    # A reply repeats the catalogue's: of what is no hash its own header could not be made.
    cases += [({name: "\x1b".ljust(64, "Z")}, "wrong-protocol") for name in _FINGERPRINTS]
    for changes, status in cases:
        for kind in (JOIN, RELEASE, TRAIN):
            served = {"server_round": int(kind != RELEASE)}
            header, arrays = world.ask(kind, **(served | changes))  # type: ignore[arg-type]
            assert (header.status, arrays) == (status, {})
    assert world.spent() == 0
    assert world.ask(JOIN, number=77)[0].status == "refused-config"  # no such shop


@pytest.mark.parametrize("records", [0, 1])
def test_baskets_need_a_column_of_sessions_with_records_or_without(
    world: World, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    """Were an empty shop let in without the column, its answer would tell that it is empty."""
    world.shop(0, unit="basket")
    plan = PLAN.model_copy(update={"unit": "basket"})
    rows = np.zeros(records, np.int32)

    def with_sessions(sessions: np.ndarray | None) -> None:
        weights = np.ones(records, np.float32)
        users = np.array(["u"] * records, object)
        events = ShopEvents("m0", users, rows, rows, rows.astype(np.int64), weights, sessions)
        monkeypatch.setattr(shop_records, "read_shop", lambda *_: events)
        shop_records.forget()

    with_sessions(None)
    assert world.ask(RELEASE, plan=plan)[0].status == "refused-config"
    assert world.spent() == 0
    with_sessions(rows)
    assert world.ask(RELEASE, plan=plan)[0].status == "ok"
    assert world.spent() == 1


def test_a_plan_without_privacy_runs_where_the_shop_allows_it_and_charges_nothing(
    world: World,
) -> None:
    folder = world.shop(0, allow_unprotected=True)
    open_plan = PLAN.model_copy(update={"private": False})
    assert world.ask(TRAIN, 1, plan=open_plan)[0].status == "ok"
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert ledger.epsilon(1e-5) == {}


def test_the_ledger_and_the_shops_statement_tell_of_each_run_without_privacy_for_good(
    world: World,
) -> None:
    """All that the shop said of it was "What left the shop: nothing", over its whole life."""
    folder = world.shop(0, allow_unprotected=True)
    open_plan = PLAN.model_copy(update={"private": False})
    for kind, server_round in ((RELEASE, 0), (TRAIN, 1), (TRAIN, 2)):
        assert world.ask(kind, server_round, plan=open_plan)[0].status == "ok"
    assert world.ask(TRAIN, 1, plan=open_plan, run_id="r2")[0].status == "ok"
    world.shop(0)
    assert world.ask(RELEASE, run_id="r3")[0].status == "ok"
    entries = Ledger.read(folder / "ledger.sqlite")
    assert [(e.event.mechanism, e.event.run_id, e.event.steps) for e in entries] == [
        ("unprotected", "r1", 0),
        ("unprotected", "r2", 0),
        ("gaussian-histogram", "r3", 1),
    ]
    found = shop_statement(read_settings(folder / "shop.toml"), entries)
    assert [one["run"] for one in found["unprotected"]] == ["r1", "r2"]
    assert found["epsilon"] == epsilon(plan_spends(PLAN)[:1], 1e-5).value
    text = " ".join(render_shop_statement(found).split())
    assert text.count("Without any privacy since") == 2
    assert "run r1, which allow_unprotected let train here" in text
    bare = shop_statement(read_settings(folder / "shop.toml"), entries[:2])
    assert "- nothing but what had no privacy\n" in render_shop_statement(bare)


def test_what_has_no_privacy_leaves_no_shop_whose_ledger_cannot_tell_of_it(world: World) -> None:
    folder = world.shop(0, allow_unprotected=True)
    (folder / "ledger.sqlite").mkdir()
    open_plan = PLAN.model_copy(update={"private": False})
    header, arrays = world.ask(RELEASE, plan=open_plan)
    assert (header.status, arrays) == ("ledger-error", {})


def test_a_cap_that_was_raised_before_a_run_without_privacy_is_logged_all_the_same(
    world: World,
) -> None:
    folder = world.shop(0, allow_unprotected=True)
    world.ask(RELEASE)
    open_plan = PLAN.model_copy(update={"private": False})
    world.ask(RELEASE, plan=open_plan, run_id="r2")
    world.shop(0, cap_epsilon=60.0)
    world.ask(TRAIN, 1)
    mechanisms = [e.event.mechanism for e in Ledger.read(folder / "ledger.sqlite")]
    assert mechanisms == ["gaussian-histogram", "unprotected", "cap", "dp-sgd"]


@pytest.mark.parametrize(("kind", "server_round"), [(RELEASE, 0), (TRAIN, 1)])
def test_a_shops_own_state_stays_where_no_ledger_is_asked_either(
    world: World, kind: str, server_round: int
) -> None:
    world.shop(0, allow_unprotected=True)
    world.extra = {"own_ease": np.ones(3, np.float32)}
    open_plan = PLAN.model_copy(update={"private": False})
    header, arrays = world.ask(kind, server_round, plan=open_plan)
    assert (header.status, arrays) == ("failed", {})


def test_data_are_read_once_until_they_change(world: World) -> None:
    folder = world.shop(0)
    world.ask(RELEASE)
    world.ask(TRAIN, 1)
    assert world.reads == 1
    (folder / "data" / "interactions.csv").write_text("new", encoding="utf-8")
    world.ask(TRAIN, 2)
    assert world.reads == 2


def test_seeded_noise_is_replayed_and_system_noise_is_not(world: World) -> None:
    world.shop(0)
    first, again = world.ask(TRAIN, 1)[1], world.ask(TRAIN, 1)[1]
    other_round = world.ask(TRAIN, 2)[1]
    assert same(first, again)
    assert not same(first, other_round)
    world.shop(1, noise="system")
    assert not same(world.ask(TRAIN, 1, number=1)[1], world.ask(TRAIN, 1, number=1)[1])


def test_the_real_client_app_serves_a_whole_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = state_spec(MODEL, world.catalogue.size)
    settings = make_settings(max_update_norm=0.0, timeout_seconds=60.0)
    trained = trained_names(PLAN)
    job = Job("r1", PLAN, settings, world.catalogue.fingerprint, shapes, trained)
    monkeypatch.setenv("FEDTAIL_SHOPS", str(world.folder / "shops"))
    results = []
    for order in (1, 2):
        shutil.rmtree(world.folder / "shops", ignore_errors=True)
        for number in range(4):
            world.shop(number, cap_epsilon=0.05 if number == 3 else 50.0)
        events: list[dict[str, object]] = []
        federation = Federation(
            FaultyGrid(app, 4, order=order), job, save=lambda _: None, report=events.append
        )
        results.append(federation.run(initial_state(MODEL, world.catalogue.size)))
        assert events[0]["declined"] == {"over-budget": 1}
        assert [world.spent(number) for number in range(4)] == [3, 3, 3, 0]
    assert same(*results)


@pytest.mark.parametrize("name", ["loss", "item_embedding", "customers"])
def test_nothing_leaves_that_no_ledger_entry_pays_for(
    world: World, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.shop(0)
    world.extra = {name: np.ones(3, np.float32)}
    header, arrays = world.ask(RELEASE)
    assert header.status != "ok"
    assert arrays == {}
    assert "no entry of its ledger pays for it" in caplog.text or "may not travel" in caplog.text
    world.extra = {POPULARITY: np.ones(12, np.float32)}
    header, arrays = world.ask(TRAIN, 1)  # popularity is paid for by its own release only
    assert (header.status, arrays) == ("refused-config", {})
    world.extra = {}
    assert world.ask(TRAIN, 1)[0].status == "ok"


def _cheaper(event: Event) -> Event:
    return replace(event, noise_multiplier=2 * event.noise_multiplier)


def _fewer(event: Event) -> Event:
    return replace(event, steps=0)


def _other_round(event: Event) -> Event:
    return replace(event, server_round=event.server_round + 1)


def _none(_event: Event) -> None:
    return None


@pytest.mark.parametrize("bug", [_cheaper, _fewer, _other_round, _none])
def test_nothing_leaves_if_the_ledger_was_charged_less(
    world: World, monkeypatch: pytest.MonkeyPatch, bug: Callable[[Event], Event | None]
) -> None:
    charge = Ledger.charge

    def careless(ledger: Ledger, event: Event, **how: Any) -> str:
        changed = bug(event)
        return ledger.head() if changed is None else charge(ledger, changed, **how)

    world.shop(0)
    assert world.ask(RELEASE)[0].status == "ok"
    monkeypatch.setattr(Ledger, "charge", careless)
    for kind, server_round in ((RELEASE, 0), (TRAIN, 1)):
        header, arrays = world.ask(kind, server_round, run_id="r2")
        assert (header.status, arrays) == ("refused-config", {})


def test_a_reply_holds_fixed_facts_and_one_public_constant_beside_the_arrays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.shop(0)
    monkeypatch.setenv("FEDTAIL_SHOPS", str(world.folder / "shops"))
    replies: list[Message] = []

    def keep(_shop: int, _kind: str, _round: int, reply: Message) -> Message:
        replies.append(reply)
        return reply

    shapes = state_spec(MODEL, world.catalogue.size)
    job = Job(
        "r1",
        PLAN,
        make_settings(max_update_norm=0.0, timeout_seconds=60.0),
        world.catalogue.fingerprint,
        shapes,
        trained_names(PLAN),
    )
    grid = FaultyGrid(app, 1, fault=keep)
    federation = Federation(grid, job, save=lambda _: None, report=lambda _: None)
    federation.run(initial_state(MODEL, world.catalogue.size))
    assert len(replies) == 4
    for reply in replies:
        records = reply.content
        assert set(records) - {UPDATE} == {HEADER, WEIGHT}
        assert dict(records.metric_records[WEIGHT]) == {WEIGHT: PUBLIC_WEIGHT}
        assert set(records.config_records[HEADER]) == set(ReplyHeader.model_fields)


@pytest.mark.parametrize(("kind", "server_round"), [(TRAIN, 0), (RELEASE, 1)])
def test_a_round_of_the_wrong_kind_is_refused_before_the_charge(
    world: World, kind: str, server_round: int
) -> None:
    # Charged as a histogram, trained as a round: the last gate would stop it, the budget is gone.
    world.shop(0)
    assert world.ask(kind, server_round)[0].status == "wrong-protocol"
    assert world.spent() == 0


@pytest.mark.parametrize("kind", [JOIN, TRAIN])
@pytest.mark.parametrize("server_round", [-1, PLAN.rounds + 1])
def test_a_round_that_the_plan_does_not_have_is_refused_before_the_charge(
    world: World, kind: str, server_round: int
) -> None:
    """From the end a list counts, too: round -1 would be priced as the last one alone."""
    world.shop(0)
    assert world.ask(kind, server_round)[0].status == "wrong-protocol"
    assert world.spent() == 0


def test_a_run_cannot_write_escapes_into_the_ledger(world: World) -> None:
    # A name with terminal escapes could hide lines of `ledger show` from the shop's engineer.
    world.shop(0)
    assert world.ask(RELEASE, run_id="r\x1b[2J")[0].status == "wrong-protocol"
    assert world.spent() == 0


def test_a_server_cannot_write_escapes_into_the_shops_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    # `run` says in a terminal why the shop refused: there they could hide what it said before.
    world.shop(0)
    reply, _ = world.ask(RELEASE, plan_json='{"\\u001b[2J": 1}')
    assert reply.status == "wrong-protocol"
    assert "[2J" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_plan_of_nothing_but_mistakes_is_told_in_a_line_and_a_longer_one_is_not_read(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake took a thousand bytes to collect: 3 MB of them 1.2 GB of the shop's memory."""
    world.shop(0)
    mistakes = ",".join(f'"k{k}":1' for k in range(10_000))
    for plan in (f"{{{mistakes}}}", f"{{{mistakes}}}".ljust(2**20 + 1)):
        assert world.ask(JOIN, plan_json=plan)[0].status == "wrong-protocol"
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("is not valid in: k0, k1, k10, k100, k1000, ...")
    assert second.endswith("is longer than any")
    plan = PLAN.model_dump_json()
    assert world.ask(JOIN, plan_json=plan.ljust(2**20))[0].status == "ok"


def test_a_state_that_swallows_the_noise_is_refused_before_the_charge(world: World) -> None:
    world.shop(0)
    state = initial_state(MODEL, world.catalogue.size)
    state["item_embedding"] = np.full_like(state["item_embedding"], 1e9)
    reply, arrays = world.ask(TRAIN, 1, state=state)
    assert (reply.status, arrays, world.spent()) == ("refused-config", {}, 0)


@pytest.mark.parametrize(
    "changes",
    [
        lambda array: {ITEMS: np.full_like(array, np.nan)},
        lambda array: {ITEMS: array[1:]},
        lambda array: {ITEMS: array.astype(np.float64)},
        lambda array: {"another": array},
    ],
)
def test_a_state_that_is_not_the_plans_is_refused_before_the_charge(
    world: World, changes: Callable[[np.ndarray], Arrays]
) -> None:
    """What is charged cannot be taken back: a server could spend a budget on nothing."""
    world.shop(0)
    state = initial_state(MODEL, world.catalogue.size)
    state |= changes(state[ITEMS])
    reply, arrays = world.ask(TRAIN, 1, state=state)
    assert (reply.status, arrays, world.spent()) == ("wrong-protocol", {}, 0)


@pytest.mark.parametrize(
    "model", [{"feature_rows": 31}, {"groups": "brand"}, {"groups": "item_id"}]
)
@pytest.mark.parametrize(("kind", "server_round"), [(JOIN, 0), (RELEASE, 0), (TRAIN, 1)])
def test_a_plan_that_the_catalogue_has_no_features_for_is_refused_before_the_charge(
    world: World, model: dict[str, object], kind: str, server_round: int
) -> None:
    """A shop paid for the popularity, and for each round asked for, and could train none."""
    world.shop(0)
    shape = ModelPlan.model_validate({"dimension": 4, "learned_items": 5, **model})
    plan = PLAN.model_copy(update={"model": shape})
    state = initial_state(shape, world.catalogue.size)
    reply, arrays = world.ask(kind, server_round, plan=plan, state=state)
    assert (reply.status, arrays, world.spent()) == ("wrong-protocol", {}, 0)


def test_the_histogram_asked_for_again_and_again_is_charged_each_time(world: World) -> None:
    world.shop(0, cap_epsilon=5.0)
    statuses = [world.ask(RELEASE, run_id=f"r{k}")[0].status for k in range(40)]
    assert statuses[-1] == "over-budget"
    assert world.spent() == statuses.count("ok")
