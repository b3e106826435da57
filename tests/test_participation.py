import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from client import participation
from client.app import app
from client.participation import Node, answer
from client.privacy.ledger import Ledger
from client.privacy.noise import NoiseSource
from client.settings import ShopSettings
from common.errors import DataError
from common.features import Catalogue, write_catalogue
from common.model import initial_state, state_spec, trained_names
from common.protocol import (
    JOIN,
    NO_FINGERPRINT,
    POPULARITY,
    RELEASE,
    TRAIN,
    Arrays,
    ModelPlan,
    ReplyHeader,
    TrainingPlan,
    shop_key,
)
from common.schema import ShopEvents
from federation_support import FaultyGrid, make_settings, same
from server.strategy import Federation, Job

MODEL = ModelPlan(dimension=4, feature_rows=32, customer_rows=8)
PLAN = TrainingPlan(
    rounds=2,
    sample_rate=0.5,
    noise_multiplier=4.0,
    popularity_noise_multiplier=4.0,
    model=MODEL,
)
SECRET = "customer-4711"


class World:
    """A catalogue, some shops, and a training that needs neither."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reads = folder, 0
        self.error: Exception | None = None
        products = pd.DataFrame({"item_id": [f"i{k:02}" for k in range(12)], "category": "tea"})
        self.catalogue = Catalogue.of(products)
        write_catalogue(self.catalogue, folder / "catalogue")

    def shop(self, number: int, **changes: object) -> Path:
        folder = self.folder / "shops" / str(number)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        values: dict[str, object] = {
            "merchant_id": f"m{number}",
            "data": "data",
            "catalogue": "../../catalogue",
            "ledger": "ledger.sqlite",
            "cap_epsilon": 50.0,
            "noise": "seeded",
            "insecure_seeded_noise": True,
        }
        lines = [f"{k} = {_toml(v)}" for k, v in (values | changes).items()]
        (folder / "shop.toml").write_text("\n".join(lines), encoding="utf-8")
        return folder

    def node(self, number: int, run_config: Mapping[str, object] | None = None) -> Node:
        shops = str(self.folder / "shops")
        return Node({"partition-id": number}, run_config or {}, {"FEDTAIL_SHOPS": shops})

    def ask(
        self, kind: str, server_round: int = 0, number: int = 0, **changes: object
    ) -> tuple[ReplyHeader, Arrays]:
        plan = changes.pop("plan", PLAN)
        assert isinstance(plan, TrainingPlan)
        header: dict[str, object] = {
            "run_id": "r1",
            "server_round": server_round,
            "plan_json": plan.model_dump_json(),
            "catalogue_fingerprint": self.catalogue.fingerprint,
        }
        run_config = changes.pop("run_config", None)
        assert run_config is None or isinstance(run_config, dict)
        state = initial_state(MODEL, self.catalogue.size)
        return answer(kind, header | changes, lambda: state, self.node(number, run_config))

    def spent(self, number: int = 0) -> int:
        path = self.folder / "shops" / str(number) / "ledger.sqlite"
        if not path.exists():
            return 0
        with Ledger.open(path) as ledger:
            return len(ledger.events())


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | float) else f'"{value}"'


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)

    def read_shop(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
        world.reads += 1
        return ShopEvents(
            merchant_id=settings.merchant_id,
            user_ids=np.empty(0, object),
            users=np.empty(0, np.int32),
            items=np.empty(0, np.int32),
            timestamps=np.empty(0, np.int64),
            weights=np.empty(0, np.float32),
        )

    def release_popularity(
        plan: TrainingPlan, events: ShopEvents, n_items: int, noise: NoiseSource
    ) -> Arrays:
        if world.error:
            raise world.error
        return {POPULARITY: noise.normal((n_items,), 1.0).astype(np.float32)}

    def train_round(
        plan: TrainingPlan,
        server_round: int,
        state: Arrays,
        events: ShopEvents,
        catalogue: Catalogue,
        noise: NoiseSource,
        sampling: np.random.Generator,
    ) -> Arrays:
        if world.error:
            raise world.error
        return {
            n: noise.normal(state[n].shape, 1.0).astype(np.float32) for n in trained_names(plan)
        }

    training = ModuleType("client.training")
    vars(training).update(release_popularity=release_popularity, train_round=train_round)
    monkeypatch.setitem(sys.modules, "client.training", training)
    monkeypatch.setattr(participation, "read_shop", read_shop)
    participation._events.cache_clear()
    participation._catalogue.cache_clear()
    return world


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


def test_a_crash_in_training_wastes_budget_and_hides_nothing(world: World) -> None:
    world.shop(0)
    world.error = RuntimeError(SECRET)
    header, arrays = world.ask(RELEASE)
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


def test_data_that_cannot_be_read_is_noticed_before_the_charge(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.shop(0)

    def broken(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
        raise DataError(SECRET)

    monkeypatch.setattr(participation, "read_shop", broken)
    assert world.ask(RELEASE)[0].status == "data-error"
    assert world.spent() == 0


def test_what_does_not_fit_the_shop_is_refused_without_a_charge(world: World) -> None:
    world.shop(0)
    open_plan = PLAN.model_copy(update={"private": False})
    basket_plan = PLAN.model_copy(update={"unit": "basket"})
    cases: list[tuple[dict[str, object], str]] = [
        ({"catalogue_fingerprint": "0" * 64}, "wrong-catalogue"),
        ({"version": 2}, "wrong-protocol"),
        ({"plan_json": '{"rounds": "many"}'}, "wrong-protocol"),
        ({"server_round": 9}, "wrong-protocol"),
        ({"surprise": 1}, "wrong-protocol"),
        ({"plan": open_plan}, "refused-config"),
        ({"plan": basket_plan}, "refused-config"),
        ({"run_config": {"ledger": "/tmp/other"}}, "refused-config"),
        ({"run_config": {"seed": 1, "cap-epsilon": 99.0}}, "refused-config"),
    ]
    for changes, status in cases:
        for kind in (JOIN, RELEASE, TRAIN):
            header, arrays = world.ask(kind, **({"server_round": 1} | changes))  # type: ignore[arg-type]
            assert (header.status, arrays) == (status, {})
    assert world.spent() == 0
    assert world.ask(JOIN, number=77)[0].status == "refused-config"  # no such shop


def test_baskets_need_sessions_and_an_empty_shop_needs_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.shop(0, unit="basket")
    plan = PLAN.model_copy(update={"unit": "basket"})
    assert world.ask(RELEASE, plan=plan)[0].status == "ok"

    def without_sessions(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
        one = np.zeros(1, np.int32)
        return ShopEvents(
            "m0", np.array(["u"], object), one, one, np.zeros(1, np.int64), np.ones(1, np.float32)
        )

    monkeypatch.setattr(participation, "read_shop", without_sessions)
    participation._events.cache_clear()
    assert world.ask(RELEASE, plan=plan)[0].status == "refused-config"
    assert world.spent() == 1


def test_a_plan_without_privacy_runs_where_the_shop_allows_it_and_charges_nothing(
    world: World,
) -> None:
    world.shop(0, allow_unprotected=True)
    open_plan = PLAN.model_copy(update={"private": False})
    assert world.ask(TRAIN, 1, plan=open_plan)[0].status == "ok"
    assert world.spent() == 0


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
    settings = make_settings(max_update_norm=0.0)
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
