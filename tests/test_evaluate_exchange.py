"""Figures of the finished model: released by shops that allow it, charged, and by no other."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy.evaluation import evaluation_event, release_evaluation
from client.privacy.events import EVALUATED, Event
from client.privacy.ledger import Ledger
from client.rounds import figures
from client.rounds.participation import answer
from client.rounds.replying import Node
from client.settings import read_settings
from common.accounting import calibrate
from common.evaluation import EVALUATION, EVALUATION_NAMES, ReleasedEvaluation
from common.evaluation import read_evaluation as read_released
from common.model import initial_state
from common.protocol import EVALUATE, NO_FINGERPRINT, Arrays, ModelPlan, ReplyHeader, shop_key
from federation_support import same, write_federation
from server.figures import ShopFigures, write_figures
from server.registry.records import read_evaluation
from test_home_exchange import PLAN, Deployed

ALLOW = "\n[evaluation]\nepsilon = 1.0\n"


def allow(shop: Path) -> None:
    with (shop / "shop.toml").open("a", encoding="utf-8") as file:
        file.write(ALLOW)


def test_figures_come_from_the_shops_that_release_some_and_are_charged(tmp_path: Path) -> None:
    deployed = Deployed(tmp_path)
    for number in (0, 2):
        allow(deployed.shop(number))
    outcome = deployed.run("first", evaluate=True)
    assert [event["event"] for event in outcome.events][-3:] == ["home", "evaluate", "end"]
    (event,) = outcome.of("evaluate")
    assert (event["accepted"], event["declined"]) == (2, {"no-evaluation": 2})
    path = deployed.server / "runs" / "first" / "evaluation.json"
    document = read_evaluation(path)
    assert document["together"]["shops"] == 2
    assert set(document["shops"]) == {shop_key("m0"), shop_key("m2")}
    assert (document["run"], document["noise"]) == ("first", "seeded")
    multiplier, _ = calibrate(1.0, 1e-5, 1.0, 1.0, 0)
    assert document["shops"][shop_key("m0")]["noise_multiplier"] == pytest.approx(multiplier)
    for number in range(3):
        with Ledger.open(deployed.shop(number) / "ledger.sqlite") as ledger:
            paid = [entry.event.mechanism for entry in ledger.verify()]
        assert paid.count(EVALUATED) == (1 if number in (0, 2) else 0)
    heads = json.loads((deployed.server / "ledger-heads.json").read_text())["heads"]
    with Ledger.open(deployed.shop(0) / "ledger.sqlite") as ledger:
        assert heads[shop_key("m0")] == ledger.head()
    # A run that is taken up again asks for them no second time.
    assert not deployed.run("first", evaluate=True).of("evaluate")


def test_nobody_is_asked_unless_the_run_asks_and_nothing_is_written_of_nobody(
    tmp_path: Path,
) -> None:
    deployed = Deployed(tmp_path)
    assert not deployed.run("first").of("evaluate")
    (event,) = deployed.run("second", evaluate=True).of("evaluate")
    assert event["declined"] == {"no-evaluation": 4}
    assert not list((deployed.server / "runs").rglob("evaluation.json"))


def test_figures_say_of_each_shop_where_its_own_noise_came_from(tmp_path: Path) -> None:
    """One that can be replayed makes the figures of all together so, and no other shop's."""
    released = [
        ReleasedEvaluation(np.full(len(EVALUATION_NAMES), value, np.float32), value)
        for value in (100.0, 400.0)
    ]
    path = tmp_path / "evaluation.json"
    write_figures(
        path,
        "first",
        [ShopFigures("a", "system", released[0]), ShopFigures("b", "seeded", released[1])],
    )
    document = read_evaluation(path)
    assert (document["run"], document["noise"]) == ("first", "seeded")
    assert [document["shops"][shop]["noise"] for shop in "ab"] == ["system", "seeded"]
    assert [document["shops"][shop]["noise_multiplier"] for shop in "ab"] == [100.0, 400.0]
    assert document["together"] == json.loads(json.dumps(read_released(released)))
    assert document["shops"]["b"]["shops"] == 1
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


class Asked:
    """A shop that is asked for figures."""

    def __init__(self, folder: Path, settings: str = ALLOW) -> None:
        self.folder = folder
        self.catalogue = write_federation(folder)
        self.shop = folder / "shops" / "0"
        path = self.shop / "shop.toml"
        path.write_text(path.read_text() + settings, encoding="utf-8")
        self.state = initial_state(PLAN.model, self.catalogue.size)

    def ask(self, state: Arrays | None = None, **header: object) -> tuple[ReplyHeader, Arrays]:
        fields: dict[str, object] = {
            "run_id": "r1",
            "server_round": PLAN.rounds,
            "plan_json": PLAN.model_dump_json(),
            "catalogue_fingerprint": self.catalogue.fingerprint,
        }
        node = Node({"partition-id": 0}, {}, {"FEDTAIL_SHOPS": str(self.folder / "shops")})
        return answer(EVALUATE, fields | header, lambda: state or self.state, node)

    def spent(self) -> int:
        with Ledger.open(self.shop / "ledger.sqlite") as ledger:
            return len(ledger.events())


def test_a_release_is_one_vector_of_public_size_and_its_price(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    header, arrays = asked.ask()
    assert (header.status, header.noise) == ("ok", "seeded")
    assert {name: (a.shape, a.dtype) for name, a in arrays.items()} == {
        EVALUATION: ((len(EVALUATION_NAMES),), np.dtype(np.float32))
    }
    settings = read_settings(asked.shop / "shop.toml")
    assert settings.evaluation is not None
    due = evaluation_event(settings.evaluation, "customer", "r1")
    assert header.noise_multiplier == due.noise_multiplier
    assert header.ledger_head != NO_FINGERPRINT
    assert asked.spent() == 1
    assert asked.ask()[0].status == "ok"
    assert asked.spent() == 2  # once more is once more


def test_a_shop_without_consent_answers_the_same_whatever_its_records_are(tmp_path: Path) -> None:
    asked = Asked(tmp_path, "")
    first = asked.ask()
    assert (first[0].status, first[0].noise_multiplier, first[1]) == ("no-evaluation", 0.0, {})
    shutil.rmtree(asked.shop / "data")  # not even looked at
    assert asked.ask() == first
    assert asked.spent() == 0


def test_what_cannot_be_afforded_or_is_not_right_is_refused_uncharged(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    nan = {**asked.state, "spectrum": np.full(4, np.nan, np.float32)}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("wrong-protocol", {"state": nan}),
        ("wrong-protocol", {"server_round": 0}),
        ("wrong-catalogue", {"catalogue_fingerprint": "0" * 64}),
        ("ledger-error", {"ledger_head": "a" * 64}),
    ]
    for status, changes in cases:
        header, arrays = asked.ask(**changes)
        assert (header.status, arrays, header.noise_multiplier) == (status, {}, 0.0)
    path = asked.shop / "shop.toml"
    text = path.read_text()
    path.write_text(text.replace("cap_epsilon = 100.0", "cap_epsilon = 0.5"))
    assert asked.ask()[0].status == "over-budget"
    path.write_text(text.replace('merchant_id = "m0"', 'merchant_id = "m0"\nunit = "basket"'))
    assert asked.ask()[0].status == "refused-config"
    path.write_text(text)
    shutil.rmtree(asked.shop / "data")
    assert asked.ask()[0].status == "refused-config"  # there is no folder
    assert asked.spent() == 0


@pytest.mark.parametrize(
    "model",
    [
        {"groups": "nothing", "learned_items": 3},
        {"groups": "item_id", "learned_items": 3},
        {"feature_rows": 7},
    ],
)
def test_a_plan_that_does_not_fit_tells_no_shop_with_customers_from_one_without(
    tmp_path: Path, model: dict[str, object]
) -> None:
    """A model is made ready as it is asked: it must not be the first customer that asks."""
    asked = Asked(tmp_path)
    plan = PLAN.model_copy(update={"model": ModelPlan.model_validate({"dimension": 4, **model})})
    state = initial_state(plan.model, asked.catalogue.size)
    told = [asked.ask(state, plan_json=plan.model_dump_json())[0].status]
    for path in (asked.shop / "data").glob("interactions.*"):
        path.unlink()
    (asked.shop / "data" / "interactions.csv").write_text("user_id,item_id,timestamp,behavior\n")
    told.append(asked.ask(state, plan_json=plan.model_dump_json())[0].status)
    assert told[0] == told[1] != "ok"
    assert not (asked.shop / "ledger.sqlite").exists()


def _cheaper(event: Event) -> Event:
    return replace(event, noise_multiplier=2 * event.noise_multiplier)


def _other_run(event: Event) -> Event:
    return replace(event, run_id="r2")


def _none(_event: Event) -> None:
    return None


@pytest.mark.parametrize("bug", [_cheaper, _other_run, _none])
def test_no_figure_leaves_that_the_ledger_was_charged_less_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[[Event], Event | None]
) -> None:
    charge = Ledger.charge

    def careless(ledger: Ledger, event: Event, **how: Any) -> str:
        changed = bug(event)
        return ledger.head() if changed is None else charge(ledger, changed, **how)

    asked = Asked(tmp_path)
    monkeypatch.setattr(Ledger, "charge", careless)
    header, arrays = asked.ask()
    assert (header.status, arrays) == ("refused-config", {})


def test_nothing_else_rides_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_loss(*arguments: Any) -> Arrays:
        return {**release_evaluation(*arguments), "loss": np.ones(1, np.float32)}

    asked = Asked(tmp_path)
    monkeypatch.setattr(figures, "release_evaluation", with_loss)
    header, arrays = asked.ask()
    assert (header.status, arrays) == ("refused-config", {})


def test_the_price_is_paid_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_arguments: Any) -> Arrays:
        raise RuntimeError("power cut")

    asked = Asked(tmp_path)
    monkeypatch.setattr(figures, "release_evaluation", crash)
    header, arrays = asked.ask()
    assert (header.status, arrays, asked.spent()) == ("failed", {}, 1)


def test_seeded_noise_is_replayed_and_system_noise_is_not(tmp_path: Path) -> None:
    asked = Asked(tmp_path)
    assert same(asked.ask()[1], asked.ask()[1])
    path = asked.shop / "shop.toml"
    seeded = 'noise = "seeded"\ninsecure_seeded_noise = true\n'
    path.write_text(path.read_text().replace(seeded, ""))
    assert not same(asked.ask()[1], asked.ask()[1])
