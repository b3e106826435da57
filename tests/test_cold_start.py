"""Cold start on planted tastes: what is hidden is hidden, and what is known of it pays."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from client.data.periods import histories
from client.home.personalization import HomeModel
from client.home.shop import untrained
from client.home_settings import HomeSettings
from common.errors import ConfigError
from common.metrics import MetricSums
from common.model import GlobalModel, initial_state
from common.popularity import of_like
from common.protocol import POPULARITY, TrainingPlan
from common.schema import ShopEvents
from experiment_support import EMPTY, SMALL, Silent, write_folder
from report_support import shown_text
from simulations.cold_start import run as cold_run
from simulations.cold_start.customers import (
    FOLDS,
    Segments,
    _Place,
    _served,
    _strengths,
    cold_customers,
    described,
    hidden_customers,
)
from simulations.cold_start.customers import records_of as records_of_customers
from simulations.cold_start.measure import Case, Models, measure, train, without
from simulations.cold_start.page import (
    cold_start_tables,
    render_cold_start,
    sentences,
    verdict,
)
from simulations.cold_start.products import _added, cold_products, new_products
from simulations.cold_start.products import records_of as records_of_products
from simulations.cold_start.run import _ColdStart, run_cold_start
from simulations.cold_start.shops import _adapting_pays, _Window, cold_shops, new_shops
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


def test_what_noise_released_of_a_product_that_nobody_could_buy_is_not_served(
    world: World,
) -> None:
    model, new = untrained(world.catalogue), new_products(world, 0)
    released = np.linspace(1.0, 2.0, world.catalogue.size, dtype=np.float32)
    found = _added(replace(model, state={**model.state, POPULARITY: released}), new)
    assert not found.state[POPULARITY][new].any()
    assert (found.popularity_of_like[new] > 0).all()
    kept = found.state[POPULARITY][~new]
    np.testing.assert_allclose(kept / kept.sum(), released[~new] / released[~new].sum(), rtol=1e-5)


def test_lists_of_the_tail_hold_what_is_stocked_alone() -> None:
    tail, stock = np.arange(60) >= 20, np.arange(60) % 2 == 0
    targets = sparse.csr_matrix(np.ones((1, 60), np.float32))
    nothing = sparse.csr_matrix((1, 60), dtype=np.float32)
    found = measure(lambda _: -np.arange(60.0)[None, :], nothing, targets, tail, stock)
    # Of 20 places in either list all hold a product that is asked for.
    assert found.ndcg.tolist() == found.tail_ndcg.tolist() == [pytest.approx(1.0)]
    bought = sparse.csr_matrix((tail & ~stock)[None, :].astype(np.float32))
    found = measure(lambda _: -np.arange(60.0)[None, :], nothing, bought, tail, stock)
    assert found.ndcg.tolist() == found.tail_ndcg.tolist() == [0.0]


def test_a_case_tunes_with_the_round_before_the_validation_weeks(
    experiment: Experiment, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = TrainingPlan(rounds=4, private=False, validation_from=1, tuning_round=2)

    def checkpoint(server_round: int) -> SimpleNamespace:
        popularity = np.full(world.catalogue.size, float(server_round), np.float32)
        state = initial_state(plan.model, world.catalogue.size)
        return SimpleNamespace(state=state | {POPULARITY: popularity})

    trained = SimpleNamespace(plan=plan, declined={}, checkpoint=checkpoint)
    federator = SimpleNamespace(plan=lambda _: plan, federate=lambda _: trained)
    monkeypatch.setattr("simulations.cold_start.measure.Federator", lambda *_: federator)
    found = train(experiment, world, tmp_path / "case", Silent(), ["federated"])["federated"]
    assert (found.tuning.state[POPULARITY] == 2.0).all()
    assert (found.final.state[POPULARITY] == 4.0).all()


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


@pytest.mark.slow
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


def models_of(world: World) -> Models:
    """Return an untrained model, and another one for the time before the validation weeks."""
    plan = TrainingPlan(rounds=0, private=False)
    return Models(untrained(world.catalogue), untrained(world.catalogue), plan, away="")


def as_hidden(
    experiment: Experiment, world: World, fold: int = 0
) -> tuple[Mapping[str, np.ndarray], World]:
    hidden = hidden_customers(world, fold, 0)
    return hidden, without(world, experiment, records_of_customers(world, hidden))


def past_alone(world: World) -> World:
    """Return the world as it was when the test weeks began."""
    return replace(world, shops=tuple(world.split.train(shop) for shop in world.shops))


def test_a_shop_that_begins_in_the_test_weeks_serves_what_sells_everywhere(
    experiment: Experiment, world: World
) -> None:
    # All trainings were done, and the command ended in a stack trace.
    late = world.shops[0].merchant_id
    frame = world.dataset.tables.interactions
    early = (frame["merchant_id"] == late) & (frame["timestamp"] < world.split.train_until)
    begun = without(world, experiment, early.to_numpy())
    hidden, seen = as_hidden(experiment, begun)
    shop = seen.shops[0]
    assert shop.merchant_id == late
    models = models_of(seen)
    popular = np.arange(seen.catalogue.size, dtype=np.float32)
    state = {**models.final.state, POPULARITY: popular / popular.sum()}
    models = replace(models, final=replace(models.final, state=state))
    found = _served(experiment, seen, shop, models, [{"age": "a"}, {}])
    np.testing.assert_array_equal(found, np.tile(models.final.popularity_part, (2, 1)))
    folds = iter([(hidden, seen, {"federated": models})])
    assert cold_customers(experiment, begun, folds).facts["trainings"] == 1


def test_what_is_asked_for_chooses_nothing_at_a_shop_that_serves_who_is_new(
    experiment: Experiment, world: World
) -> None:
    _, seen = as_hidden(experiment, world)
    shop, models = seen.shops[0], models_of(seen)
    people = [{"age": str(age)} for age in np.unique(shop.attributes["age"])]
    found = _served(experiment, seen, shop, models, people)
    assert (found != found[0]).any()
    past = past_alone(seen)
    np.testing.assert_array_equal(found, _served(experiment, past, past.shops[0], models, people))
    earlier = replace(seen, shops=tuple(seen.split.fit(shop) for shop in seen.shops))
    less = _served(experiment, earlier, earlier.shops[0], models, people)
    assert not np.array_equal(found, less)  # the validation weeks do


def test_strengths_are_chosen_on_the_validation_weeks_by_what_came_before_them(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen = as_hidden(experiment, world)
    models = models_of(seen)
    places: list[_Place] = []
    read: list[tuple[str, sparse.csr_matrix, GlobalModel]] = []

    def segments(
        shop: ShopEvents, history: sparse.csr_matrix, model: GlobalModel, *_: str, **__: bool
    ) -> Mapping[str, Segments]:
        read.append((shop.merchant_id, history, model))
        return {"segment-purchases": Segments({}, np.zeros(history.shape, np.float32))}

    def ndcg(place: _Place, scores: np.ndarray, tail: np.ndarray) -> np.ndarray:
        places.append(place)
        assert tail is seen.validation.tail
        return scores[:, 0] * 0.0

    monkeypatch.setattr("simulations.cold_start.customers._segments", segments)
    monkeypatch.setattr("simulations.cold_start.customers._ndcg", ndcg)
    found = _strengths(seen, {"federated": models})
    # Where none is better than another, what sells is not moved.
    assert found == {"segment-taste:federated": 0.0, "segment-purchases": 0.0}
    assert [name for name, _, _ in read] == [shop.merchant_id for shop in seen.shops]
    for (name, history, model), shop, place in zip(read, seen.shops, places[::8], strict=True):
        assert model is models.tuning
        past, then = seen.split.fit(shop), seen.split.validation(shop)
        expected = past.matrix(seen.catalogue.size)
        np.testing.assert_array_equal(history.toarray() > 0, expected.toarray() > 0)
        bought = then.matrix(seen.catalogue.size)
        users = np.flatnonzero((np.diff(bought.indptr) > 0) & described(shop))
        assert place.own_rows == users.tolist()  # each left out of their own segments
        np.testing.assert_array_equal(place.targets.toarray(), bought[users].toarray())
        assert place.stock is seen.stock.get(name)


def test_who_is_new_is_asked_for_what_the_test_weeks_brought(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def spied(*args: Any) -> MetricSums:
        asked.append(args)
        return measure(*args)

    monkeypatch.setattr("simulations.cold_start.customers.measure", spied)
    hidden, seen = as_hidden(experiment, world)
    case = cold_customers(experiment, world, iter([(hidden, seen, {"f": models_of(seen)})]))
    assert len(asked) == len(case.arms) * len(world.shops)
    for (_, history, targets, tail, stock), shop in zip(
        asked[:: len(case.arms)], world.shops, strict=True
    ):
        assert not history.nnz
        later = shop.since(world.split.train_until).matrix(world.catalogue.size)
        later = later[hidden[shop.merchant_id]]
        np.testing.assert_array_equal(targets.toarray(), later[np.diff(later.indptr) > 0].toarray())
        assert tail is seen.test.tail
        assert stock is seen.stock.get(shop.merchant_id)


def test_records_of_hidden_customers_are_those_of_their_shop_alone(world: World) -> None:
    frame = world.dataset.tables.interactions
    one, other = (shop.merchant_id for shop in world.shops[:2])
    name = world.shops[0].user_ids[3]
    user = pd.Categorical([name] * len(frame), frame["user_id"].cat.categories)
    tables = replace(world.dataset.tables, interactions=frame.assign(user_id=user))
    same = replace(world, dataset=replace(world.dataset, tables=tables))
    none = {shop.merchant_id: np.array([], np.int64) for shop in world.shops}
    found = records_of_customers(same, none | {one: np.array([3])})
    np.testing.assert_array_equal(found, frame["merchant_id"] == one)
    assert (frame["merchant_id"] == other).any()


@pytest.mark.parametrize(("half_life", "age"), [(0.0, 1000), (20.0, 10)])
def test_a_new_shop_knows_its_own_last_days_and_is_asked_what_comes_then(
    half_life: float,
    age: int,
    experiment: Experiment,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = new_shops(world)
    opened = world.split.train_until - age * 86_400
    shops = tuple(s.since(opened) if s.merchant_id in names else s for s in world.shops)
    world = replace(world, shops=shops)
    merchants = world.dataset.tables.interactions["merchant_id"].astype(str)
    others = without(world, experiment, merchants.isin(names).to_numpy())
    world = replace(world, half_life_days=half_life)
    # A shop without any record is none that has joined.
    nobody = replace(world.shops[0].select(np.zeros(len(world.shops[0]), bool)), merchant_id="zz")
    measured = {**world.measured, "zz": np.arange(0)}
    world = replace(world, shops=(*world.shops, nobody), measured=measured)
    models, (shop,) = models_of(world), [s for s in world.shops if s.merchant_id in names]
    chosen: list[tuple[Any, ...]] = []
    fitted: list[tuple[Any, ...]] = []
    asked: list[tuple[Any, ...]] = []

    def choose(*args: Any, stock: object) -> dict[str, float]:
        chosen.append((*args, stock))
        return {"own_popularity": 1.0}

    def fit(*args: Any, **named: Any) -> HomeModel:
        fitted.append((*args, named["stock"]))
        found = honest(*args, **named)
        assert isinstance(found, HomeModel)
        return found

    def spied(*args: Any) -> MetricSums:
        asked.append(args)
        return measure(*args)

    honest = HomeModel.fit
    monkeypatch.setattr("simulations.cold_start.shops.choose_weights", choose)
    monkeypatch.setattr(HomeModel, "fit", fit)
    monkeypatch.setattr("simulations.cold_start.shops.measure", spied)
    end, size, share = world.split.train_until, world.catalogue.size, 0.2
    later = shop.since(end).matrix(size).toarray() > 0
    first = int(shop.timestamps.min())
    for case, days in zip(
        cold_shops(experiment, world, others, {"f": models}), (0, 7, 28, -1), strict=True
    ):
        assert case.facts["shops"] == len(names) == 1
        begin = max(first, end - days * 86_400) if days >= 0 else first
        known = shop.before(end).since(begin)
        cut = end - max(1, round(share * (end - begin)))
        history = histories(known, size, half_life, end).toarray()
        wanted = later & (history == 0)
        rows = np.flatnonzero(wanted.any(axis=1))
        final = [args for args in asked if args[2].shape[0] == len(rows)]
        assert len(final) >= 2
        for _, seen, targets, tail, stock in final:
            np.testing.assert_array_equal(seen.toarray(), history[rows])
            np.testing.assert_array_equal(targets.toarray() > 0, wanted[rows])
            assert tail is others.test.tail
            assert stock is world.stock.get(shop.merchant_id)
        assert len(chosen) == (2 if days else 0)
        for (model, period, tail, _, stock), right in zip(
            chosen, (None, models.tuning), strict=False
        ):
            assert right is None or model is right
            np.testing.assert_array_equal(
                period.history.toarray(),
                histories(known.before(cut), size, half_life, cut).toarray(),
            )
            expected = (known.since(cut).matrix(size).toarray() > 0) & (
                period.history.toarray() == 0
            )
            expected &= (period.history.toarray() > 0).any(axis=1)[:, None]
            np.testing.assert_array_equal(period.targets.toarray() > 0, expected)
            assert tail is others.test.tail
            assert stock is world.stock.get(shop.merchant_id)
        # Fitted on all of its days; what says whether that pays, on those before the last.
        assert len(fitted) == (3 if days else 0)
        for (model, rows_of, *_), right, whole in zip(
            fitted, (None, models.final, models.tuning), (True, True, False), strict=False
        ):
            assert right is None or model is right
            np.testing.assert_array_equal(
                rows_of.toarray(), history if whole else chosen[0][1].history.toarray()
            )
        for calls in (chosen, fitted, asked):
            calls.clear()


def test_adapting_that_does_no_better_does_not_pay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.2, 0.2, 0.3, 0.2, 0.1, 0.2])

    def told(*_: object) -> SimpleNamespace:
        return SimpleNamespace(summary=lambda: {"ndcg@20": next(values)})

    monkeypatch.setattr("simulations.cold_start.shops.measure", told)
    shop, model = world.shops[0], untrained(world.catalogue)
    window, how = _Window.of(world, shop, 28), HomeSettings(start={"own_popularity": 1.0})
    home = HomeModel.fit(model, window.history(), how)
    for expected in (False, True, False):
        tail = world.test.tail
        assert _adapting_pays(window, model, how, home, tail, None, 0.2) is expected


def test_a_new_products_shop_is_fitted_and_asked_at_its_moments(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = new_products(world, 0)
    # One customer has nothing left of before the test weeks, and another nothing at all.
    frame, first = world.dataset.tables.interactions, world.shops[0]
    inside = (frame["merchant_id"] == first.merchant_id).to_numpy()
    wanting = first.users[(first.timestamps >= world.split.train_until) & new[first.items]]
    late, gone = ((frame["user_id"] == first.user_ids[wanting[k]]).to_numpy() for k in (-1, 0))
    early = (frame["timestamp"] < world.split.train_until).to_numpy()
    left_out = records_of_products(world, new) | inside & (late & early | gone)
    before = without(world, experiment, left_out)
    assert len(before.shops[0].user_ids) == len(first.user_ids) - 1
    models = models_of(before)
    chosen: list[tuple[Any, ...]] = []
    asked: list[tuple[Any, ...]] = []

    def choose(*args: Any, stock: object) -> dict[str, float]:
        chosen.append((*args, stock))
        return {"own_popularity": 1.0}

    def spied(*args: Any) -> MetricSums:
        asked.append(args)
        return measure(*args)

    monkeypatch.setattr("simulations.cold_start.products.choose_weights", choose)
    monkeypatch.setattr("simulations.cold_start.products.measure", spied)
    case = cold_products(experiment, world, before, new, {"f": models})
    assert len(chosen) == 2 * len(world.shops)
    for place, shop in enumerate(world.shops):
        calls = chosen[2 * place : 2 * place + 2]
        assert calls[1][0] is models.tuning
        for _, period, tail, _, stock in calls:
            assert period.history is before.validation.history[shop.merchant_id]
            assert period.targets is before.validation.targets[shop.merchant_id]
            assert tail is before.validation.tail
            assert stock is before.stock.get(shop.merchant_id)
        own = next(s for s in before.shops if s.merchant_id == shop.merchant_id)
        history = before.test.history[shop.merchant_id].toarray()
        users = [list(own.user_ids).index(u) if u in own.user_ids else -1 for u in shop.user_ids]
        later = shop.since(world.split.train_until).matrix(world.catalogue.size).toarray() > 0
        later &= new
        rows = [
            (u, k) for k, u in enumerate(users) if u >= 0 and history[u].any() and later[k].any()
        ]
        stock = before.stock.get(shop.merchant_id)
        for _, known, targets, tail, allowed in asked[
            place * len(case.arms) : (place + 1) * len(case.arms)
        ]:
            np.testing.assert_array_equal(known.toarray(), history[[u for u, _ in rows]])
            np.testing.assert_array_equal(targets.toarray() > 0, later[[k for _, k in rows]])
            assert tail is new
            np.testing.assert_array_equal(allowed, new if stock is None else new & stock)


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


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.0, 0.1, "level"),
        (1e-9, 0.1, "better"),
        (-0.1, 0.0, "level"),
        (-0.1, -1e-9, "worse"),
        (0.0, 0.0, "level"),
        (None, None, "unknown"),
    ],
)
def test_an_interval_that_touches_0_is_level(
    low: float | None, high: float | None, word: str
) -> None:
    arm = {"vs": {"popularity": {"ndcg@20": {"low": low, "high": high}}}}
    assert verdict(arm, "popularity") == word
