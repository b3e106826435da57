"""Cold start on planted tastes: what is hidden is hidden, and what is known of it pays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.home.personalization import HomeModel
from client.home.shop import untrained
from common.errors import ConfigError
from common.popularity import of_like
from common.protocol import TrainingPlan
from experiment_support import EMPTY, SMALL, Silent, write_folder
from report_support import shown_text
from simulations.cold_start import run as cold_run
from simulations.cold_start.customers import FOLDS, cold_customers, described, hidden_customers
from simulations.cold_start.customers import records_of as records_of_customers
from simulations.cold_start.measure import Case, Models, without
from simulations.cold_start.page import (
    cold_start_tables,
    render_cold_start,
    sentences,
    verdict,
)
from simulations.cold_start.products import new_products
from simulations.cold_start.products import records_of as records_of_products
from simulations.cold_start.run import _ColdStart, run_cold_start
from simulations.cold_start.shops import cold_shops, new_shops
from simulations.experiment import Experiment, read_experiment
from simulations.world import World, build_world

PLANTED = """
[data]
source = "marketplace"
[data.marketplace]
shops = 6
customers_per_shop = 60
products = 400
groups = 20
categories = 20
brands = 30
taste_strength = 2.0
taste_dimension = 2
content_fidelity = 0.9
weeks = 26
train_weeks = 20
[run]
engine = "in-process"
arms = ["federated"]
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    file = tmp_path_factory.mktemp("cold") / "planted.toml"
    file.write_text(PLANTED + SMALL, encoding="utf-8")
    return read_experiment(file)


@pytest.fixture(scope="module")
def world(experiment: Experiment) -> World:
    return build_world(experiment)


@pytest.fixture(scope="module")
def cases(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("cold-out") / "found"
    document = run_cold_start(experiment, out, Silent())
    assert json.loads((out / "cold-start.json").read_text(encoding="utf-8")) == document
    page = (out / "cold-start.html").read_text(encoding="utf-8")
    assert document["warnings"] == ["the data are synthetic"]
    assert "http://" not in page.split("<body>")[1]
    assert all(sentence[:20] in page for sentence in sentences(document))
    assert sorted(entry.name for entry in out.iterdir()) == [
        "cold-start.html",
        "cold-start.json",
        "experiment.json",
    ]
    return {case["case"]: case for case in document["cases"]}


def test_a_hidden_customer_leaves_no_record_in_training(
    experiment: Experiment, world: World
) -> None:
    everyone = [hidden_customers(world, fold, 0) for fold in range(FOLDS)]
    for shop in world.shops:
        halves = [hidden[shop.merchant_id] for hidden in everyone]
        known = np.flatnonzero(described(shop))
        np.testing.assert_array_equal(np.sort(np.concatenate(halves)), known)
    seen = without(world, experiment, records_of_customers(world, everyone[0]))
    for shop, left in zip(world.shops, seen.shops, strict=True):
        hidden = set(shop.user_ids[everyone[0][shop.merchant_id]])
        assert hidden
        assert set(left.user_ids) == set(shop.user_ids) - hidden


def test_a_new_product_was_never_bought_in_training(experiment: Experiment, world: World) -> None:
    new = new_products(world, 0)
    assert new.sum() == 40
    seen = without(world, experiment, records_of_products(world, new))
    assert seen.catalogue.fingerprint == world.catalogue.fingerprint
    for shop, left in zip(world.shops, seen.shops, strict=True):
        until = world.split.train_until
        assert not new[left.before(until).items].any()
        assert (~new[shop.before(until).items]).sum() == len(left.before(until))
        assert new[left.since(until).items].any()


def test_a_new_shop_is_not_there_at_all(experiment: Experiment, world: World) -> None:
    names = new_shops(world)
    assert len(names) == 1
    merchants = world.dataset.tables.interactions["merchant_id"].astype(str)
    seen = without(world, experiment, merchants.isin(names).to_numpy())
    assert {shop.merchant_id for shop in seen.shops} == {
        shop.merchant_id for shop in world.shops
    } - set(names)


def test_a_new_product_is_taken_to_sell_as_its_like(world: World) -> None:
    catalogue = world.catalogue
    kind = catalogue.products["type"].to_numpy()
    chosen = kind == kind[0]
    values, known = np.where(chosen, 5.0, 1.0), np.ones(catalogue.size, dtype=bool)
    known[0], values[0] = False, 0.0
    found = of_like(values, known, catalogue.features)
    assert found[0] > found[~chosen].max()
    nobody = of_like(values, np.zeros_like(known), catalogue.features)
    assert not nobody.any()


@pytest.mark.slow
def test_a_customer_is_served_by_the_taste_of_their_age(cases: dict[str, Any]) -> None:
    case = cases["customer"]
    assert case["attributes"] == ["age"]
    assert case["customers"] > 200
    taste = case["arms"]["segment-taste:federated"]
    assert verdict(taste, "popularity") == verdict(taste, "everywhere") == "better"
    assert verdict(case["arms"]["segment-purchases"], "everywhere") == "better"


@pytest.mark.slow
def test_a_product_is_found_by_its_content(cases: dict[str, Any]) -> None:
    case = cases["product"]
    assert case["products"] == 40
    chance = case["arms"]["chance"]["metrics"]["ndcg@20"]
    for against in case["references"]:
        assert case["arms"][against]["metrics"]["ndcg@20"] > chance
        for name in ("content", "federated-taste", "federated-global", "federated", "local"):
            assert verdict(case["arms"][name], against) == "better"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("customers", "words"),
    [(1, "customer: 1 customer to ask: too few"), (9, "too few to say"), (10, "better: taste")],
)
def test_a_handful_of_lucky_customers_is_no_finding(customers: int, words: str) -> None:
    # Few who are lucky alike have an interval of no width: a way to answer was said to be better.
    arm = {"metrics": {"ndcg@20": 0.2}, "vs": {}}
    gain = {"popularity": {"ndcg@20": {"low": 0.1, "high": 0.1}}}
    case = {
        "case": "customer",
        "customers": customers,
        "references": ["popularity"],
        "arms": {"popularity": arm, "taste": {**arm, "vs": gain}},
    }
    [said] = sentences({"cases": [case]})
    assert words in said


def test_a_shop_is_served_from_its_first_day(cases: dict[str, Any]) -> None:
    first = cases["shop-0"]
    # Without any history the global model is what it released of popularity; products that nobody
    # has bought sell as their like, and none of them comes up among the best.
    released, model = (first["arms"][name] for name in ("everywhere", "federated-global"))
    for metric in ("ndcg@20", "recall@20"):
        assert model["metrics"][metric] == released["metrics"][metric]
    for name in ("shop-7", "shop-28", "shop-all"):
        case = cases[name]
        for arm in ("federated-global", "federated", "federated-served"):
            for against in ("popularity", "everywhere"):
                assert verdict(case["arms"][arm], against) == "better"


def test_without_a_customers_table_nothing_is_trained_for_customers(
    experiment: Experiment, world: World
) -> None:
    # Nobody can be hidden, and models were trained to measure nobody.
    nameless = replace(world, shops=tuple(replace(s, attributes={}) for s in world.shops))
    case = cold_customers(experiment, nameless, (pytest.fail("trained") for _ in range(1)))
    facts = {"data": {}, "machine": {}, "experiment": {}, "seed": 0, "seconds": 0}
    facts["warnings"] = ["two shops are one"]
    document = {"cases": [case.document(world.catalogue.size, 0)], **facts}
    assert sentences(document) == ["customer: nobody to ask, so nothing can be said."]
    for shown in (render_cold_start(document), shown_text(cold_start_tables(document))):
        assert "takes a customers table" in shown
        assert "two shops are one" in shown  # what a run on these data would warn of


def test_a_shop_without_a_record_is_nobody_to_ask_about_new_products(
    experiment: Experiment, tmp_path: Path
) -> None:
    # A shop that its stock alone names ended the command once all had been trained.
    data = experiment.data.model_copy(update={"path": str(write_folder(tmp_path / "shops"))})
    asked = experiment.model_copy(update={"data": data})
    document = run_cold_start(asked, tmp_path / "out", Silent(), ["product"])
    assert EMPTY in [shop.merchant_id for shop in build_world(asked).measured_shops]
    assert document["cases"][0]["customers"] > 0


def test_what_a_run_would_warn_of_cold_start_does_too(
    experiment: Experiment, world: World, tmp_path: Path
) -> None:
    privacy = experiment.privacy.model_copy(update={"target_delta": 0.5})
    loose = experiment.model_copy(update={"privacy": privacy})
    document = _ColdStart(loose, world, tmp_path, Silent(), ("federated-dp", "federated")).run([])
    _, little = document["warnings"]
    assert little.startswith("δ = 0.5 promises little")


def test_who_took_no_part_in_a_case_is_said(
    experiment: Experiment, world: World, tmp_path: Path
) -> None:
    # A shop whose cap is too low for the plan was left out of what is measured, in silence.
    name = world.shops[0].merchant_id
    privacy = experiment.privacy.model_copy(update={"caps": {name: 0.01}})
    short = experiment.model_copy(update={"privacy": privacy})
    for _ in ("trained", "read again"):
        found = _ColdStart(short, world, tmp_path, Silent(), ("federated-dp",)).run(["product"])
        begins = f"product, federated-dp: 1 of 6 shops took no part ({name}: the plan costs"
        assert found["warnings"][-1].startswith(begins)


def test_what_trains_nothing_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    arms = experiment.run.model_copy(update={"arms": ("popularity", "local")})
    with pytest.raises(ConfigError, match="names no model to train"):
        run_cold_start(experiment.model_copy(update={"run": arms}), tmp_path / "out", Silent())


def test_a_case_that_leaves_nobody_to_train_with_is_refused(
    experiment: Experiment, tmp_path: Path
) -> None:
    # Of shops with one customer each, all are hidden at once: it ended in a stack trace.
    size = {"customers_per_shop": 1, "shop_skew": 0.0}
    lonely = experiment.data.marketplace.model_copy(update=size)
    data = experiment.data.model_copy(update={"marketplace": lonely})
    asked = experiment.model_copy(update={"data": data})
    with pytest.raises(ConfigError, match="of the case customer no shop is left to train with"):
        run_cold_start(asked, tmp_path / "out", Silent(), ["customer"])
    assert not list(tmp_path.iterdir())


def test_customers_are_hidden_and_asked_for_where_arms_are_measured(
    experiment: Experiment, tmp_path: Path
) -> None:
    # Where few shops are measured, all others were looked for among those who are hidden.
    run = experiment.run.model_copy(update={"measured_shops": 2, "measured_customers": 20})
    few = experiment.model_copy(update={"run": run})
    world = build_world(few)
    folds = [hidden_customers(world, fold, 0) for fold in range(FOLDS)]
    for shop in world.measured_shops:
        users = np.concatenate([hidden[shop.merchant_id] for hidden in folds])
        known = np.flatnonzero(described(shop))
        expected = np.intersect1d(known, world.measured[shop.merchant_id])
        np.testing.assert_array_equal(np.sort(users), expected)
    document = run_cold_start(few, tmp_path / "out", Silent(), ["customer"])
    assert 0 < document["cases"][0]["customers"] <= 40


def test_what_is_finished_when_a_person_interrupts_is_kept(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of it was thrown away, as what an experiment that is refused leaves.
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_ColdStart, "_trained", interrupt)
    out, cases = tmp_path / "out", ["customer", "product"]
    with pytest.raises(KeyboardInterrupt):
        run_cold_start(experiment, out, Silent(), cases)
    assert list(tmp_path.iterdir()) == []  # nothing was begun
    monkeypatch.setattr(cold_run, "cold_customers", lambda *_: Case("customer", "who?", ()))
    with pytest.raises(KeyboardInterrupt):
        run_cold_start(experiment, out, Silent(), cases)
    monkeypatch.setattr(cold_run, "cold_customers", lambda *_: pytest.fail("measured again"))
    with pytest.raises(KeyboardInterrupt):
        run_cold_start(experiment, out, Silent(), cases)


def test_a_new_shop_is_fitted_to_what_it_stocks_whenever_it_is(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What decides whether adapting pays was fitted as if the shop sold everything.
    names = new_shops(world)
    merchants = world.dataset.tables.interactions["merchant_id"].astype(str)
    others = without(world, experiment, merchants.isin(names).to_numpy())
    fitted: list[np.ndarray | None] = []
    fit = HomeModel.fit.__func__  # type: ignore[attr-defined]

    def spied(cls: type, *args: Any, **named: Any) -> HomeModel:
        fitted.append(args[5] if len(args) > 5 else named.get("stock"))
        found = fit(cls, *args, **named)
        assert isinstance(found, HomeModel)
        return found

    monkeypatch.setattr(HomeModel, "fit", classmethod(spied))
    alone = untrained(world.catalogue)
    plan = TrainingPlan(rounds=0, private=False)
    models = {"federated": Models(alone, alone, plan, away="")}
    cases = list(cold_shops(experiment, world, others, models))
    assert len(cases) == 4
    assert len(fitted) > 4
    for stock in fitted:
        np.testing.assert_array_equal(stock, world.stock[names[0]])
