"""What the ceiling may know, and what all arms share."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from client.data.periods import ShopPeriod
from client.home.ease import Ease
from client.home.evaluation import measure_lists
from client.home.personalization import HomeModel
from client.home.shop import untrained
from client.home_settings import LEARNED_PARTS, HomeSettings
from common.model import initial_state
from common.protocol import POPULARITY, ModelPlan, TrainingPlan
from experiment_support import BIG, SMALL, write_folder
from simulations.arms import (
    Knowledge,
    OwnEases,
    at_home,
    global_model,
    own_popularity,
    pooled_ease,
)
from simulations.evaluating import arm_outcomes, trained_by
from simulations.experiment import Experiment, read_experiment
from simulations.pooled import ProductEase, weighed_rows
from simulations.world import World, build_world


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("pooled")
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    return read_experiment(folder / "small.toml", [f"data.path={write_folder(folder / 'shops')}"])


@pytest.fixture(scope="module")
def world(experiment: Experiment) -> World:
    return build_world(experiment)


def histories(customers: int = 50, n: int = 30) -> sparse.csr_matrix:
    stream = np.random.default_rng(1)
    chance = np.linspace(0.4, 0.02, n)
    bought = stream.random((customers, n)) < chance
    return sparse.csr_matrix(bought * stream.choice([0.3, 1.0], bought.shape), dtype=np.float32)


def test_with_all_products_it_is_the_dual_form() -> None:
    own, asked = histories(), histories(7)
    dual = Ease.fit(own, 20.0, 1000).scores(asked)
    np.testing.assert_allclose(
        ProductEase.fit(own, 20.0, 30).scores(asked), dual, rtol=2e-3, atol=2e-4
    )


def test_with_fewer_it_is_ease_among_the_most_popular_ones() -> None:
    own = histories()
    counts = np.bincount(own.indices, minlength=30)
    popular = np.sort(np.argsort(-counts, kind="stable")[:10])
    found = ProductEase.fit(own, 20.0, 10)
    np.testing.assert_array_equal(found.products, popular)
    alone = Ease.fit(sparse.csr_matrix(own[:, popular]), 20.0, 1000)
    scores = found.scores(own)
    expected = alone.scores(sparse.csr_matrix(own[:, popular]))
    np.testing.assert_allclose(scores[:, popular], expected, rtol=2e-3, atol=2e-4)
    others = np.setdiff1d(np.arange(30), popular)
    assert not scores[:, others].any()


def test_the_ceiling_takes_everybodys_customers_however_many(world: World) -> None:
    everyone = sum(history.shape[0] for history in world.test.history.values())
    exact = pooled_ease(world, world.test, 50.0, everyone)
    assert isinstance(exact, Ease)
    assert exact.customers.shape[0] == everyone
    # Too many for the system: it is solved over products, and still with everybody.
    products = pooled_ease(world, world.test, 50.0, everyone - 1)
    asked = world.test.history[BIG]
    scores, expected = products.scores(asked), exact.scores(asked)
    popular = products.products  # type: ignore[attr-defined]
    assert len(popular) == everyone - 1
    assert np.corrcoef(scores[:, popular].ravel(), expected[:, popular].ravel())[0, 1] > 0.95


def test_what_customers_have_in_common_is_weighed_by_its_power() -> None:
    own = histories()
    x = (own.toarray() > 0).astype(float)
    energies, directions = np.linalg.eigh(x.T @ x)
    top = energies.max()
    for power in (0.5, 0.6, 1.0):
        rows = weighed_rows(own, power).astype(float)
        longer = top * np.maximum(energies / top, 0.0) ** (2 * power)
        expected = (directions * longer) @ directions.T
        np.testing.assert_allclose(rows.T @ rows, expected, atol=1e-4 * top)


@pytest.mark.parametrize("power", [0.5, 0.7])
def test_over_customers_or_products_the_power_is_the_same(power: float) -> None:
    own, asked = histories(), histories(7)
    dual = Ease.fit(own[:0], 20.0, 1000, weighed_rows(own, power)).scores(asked)
    products = ProductEase.fit(own, 20.0, 30, power).scores(asked)
    np.testing.assert_allclose(products, dual, rtol=2e-3, atol=2e-4)
    plain = Ease.fit(own, 20.0, 1000).scores(asked)
    assert np.allclose(dual, plain, rtol=2e-3, atol=2e-4) == (power == 0.5)


def test_the_ceiling_weighs_what_customers_have_in_common(world: World) -> None:
    everyone = sum(history.shape[0] for history in world.test.history.values())
    asked = world.test.history[BIG]
    plain = pooled_ease(world, world.test, 50.0, everyone).scores(asked)
    np.testing.assert_array_equal(
        pooled_ease(world, world.test, 50.0, everyone, 0.5).scores(asked), plain
    )
    found = pooled_ease(world, world.test, 50.0, everyone, 0.7).scores(asked)
    assert np.isfinite(found).all()
    assert not np.allclose(found, plain)


def test_a_shops_own_ease_is_fitted_once_for_all_arms(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    honest = Ease.fit

    def counting(*arguments: object) -> Ease:
        fitted.append(1)
        return honest(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("simulations.arms.Ease.fit", counting)
    settings, eases = experiment.home.local, OwnEases()
    alone = Knowledge(untrained(world.catalogue), {})
    first = list(at_home(world, settings, lambda: alone, lambda: alone, eases))
    once = len(fitted)
    assert once == 2 * len(world.shops)  # before the validation weeks, and before the test
    again = list(at_home(world, settings, lambda: alone, lambda: alone, eases))
    assert len(fitted) == once
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.all_products.rows, other.all_products.rows)
    stronger = settings.model_copy(update={"ease_lambda": 900.0})
    list(at_home(world, stronger, lambda: alone, lambda: alone, eases))
    assert len(fitted) == 2 * once
    fewer = settings.model_copy(update={"max_customers": 5})
    list(at_home(world, fewer, lambda: alone, lambda: alone, eases))
    assert len(fitted) == 3 * once


def test_weights_are_chosen_at_one_moment_and_what_is_measured_is_fitted_at_the_next(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of what came later, and of what another shop stocks or asks, nothing may choose a weight.
    rows, stock = np.array([2, 3]), np.arange(world.catalogue.size) % 2 == 0
    world = replace(world, measured={BIG: rows}, stock={BIG: stock})
    before, after = (Knowledge(untrained(world.catalogue), {}) for _ in range(2))
    chosen: list[tuple[object, ...]] = []
    fitted: list[tuple[object, ...]] = []
    measured: list[tuple[Any, ...]] = []
    settings = experiment.home.local
    weights = {"own_popularity": 1.0}

    def choose(
        model: object, period: ShopPeriod, tail: object, how: object, **more: object
    ) -> dict[str, float]:
        chosen.append((model, period.history, period.targets, tail, how))
        chosen.append((more["stock"], more["asked"], more["others"]))
        return weights

    def fit(*args: object) -> HomeModel:
        fitted.append((*args[:4], args[5]))
        return honest(*args)  # type: ignore[arg-type]

    def measure(*args: Any) -> object:
        measured.append(args)
        return measure_lists(*args)

    honest = HomeModel.fit
    monkeypatch.setattr("simulations.arms.choose_weights", choose)
    monkeypatch.setattr(HomeModel, "fit", fit)
    monkeypatch.setattr("simulations.arms.measure_lists", measure)
    (found,) = at_home(world, settings, lambda: before, lambda: after, OwnEases())
    assert found.weights == weights
    past, end = world.validation, world.test

    def same(calls: list[tuple[object, ...]], *expected: tuple[object, ...]) -> None:
        for call, wanted in zip(calls, expected, strict=True):
            for one, other in zip(call, wanted, strict=True):
                assert one is other

    asked = (before.model, past.history[BIG], past.targets[BIG], past.tail, settings)
    same(chosen, asked, (stock, rows, before.others))
    same(fitted, (after.model, end.history[BIG], settings, after.others, stock))
    ((_, history, targets, tail, listed, quintiles),) = measured
    same([(tail, listed, quintiles)], (end.tail, stock, end.quintiles))
    np.testing.assert_array_equal(history.toarray(), end.history[BIG][rows].toarray())
    np.testing.assert_array_equal(targets.toarray(), end.targets[BIG][rows].toarray())


def test_popularity_counts_a_shops_customers_before_the_test_weeks(
    experiment: Experiment, world: World
) -> None:
    light = {"purchase": 0.25}
    data = experiment.data.model_copy(update={"behaviors": light})
    for seen in (world, build_world(experiment.model_copy(update={"data": data}))):
        shop = next(shop for shop in seen.shops if shop.merchant_id == BIG)
        past = shop.before(seen.split.train_until)
        pairs = set(zip(past.users.tolist(), past.items.tolist(), strict=True))
        expected = np.bincount([item for _, item in pairs], minlength=seen.catalogue.size)
        np.testing.assert_array_equal(own_popularity(seen, BIG), expected)


def test_an_arm_is_measured_at_the_sample_and_fitted_on_everyone(
    experiment: Experiment, world: World
) -> None:
    rows = np.array([1, 4, 9])
    sampled = replace(world, measured={BIG: rows})
    # Without tuning: the weights are the same, and so must be the lists.
    settings = experiment.home.local.model_copy(update={"rounds": 0})
    alone = Knowledge(untrained(world.catalogue), {})
    whole = {
        o.merchant_id: o for o in at_home(world, settings, lambda: alone, lambda: alone, OwnEases())
    }
    (one,) = at_home(sampled, settings, lambda: alone, lambda: alone, OwnEases())
    np.testing.assert_array_equal(one.all_products.rows, whole[BIG].all_products.rows[rows])
    np.testing.assert_array_equal(one.sums.ndcg, whole[BIG].sums.ndcg[rows])


def test_the_ceiling_may_mix_the_federations_model(experiment: Experiment, world: World) -> None:
    assert trained_by(experiment, "centralized") is None
    assert trained_by(experiment, "federated-dp-global") == "federated-dp"
    assert trained_by(experiment, "local") is None
    central = experiment.home.centralized
    start = {**central.start, "learned": 2.0}
    home = experiment.home.model_copy(
        update={"centralized": central.model_copy(update={"start": start})}
    )
    mixing = experiment.model_copy(update={"home": home})
    assert trained_by(mixing, "centralized") == "federated"
    plan = ModelPlan(dimension=2)
    state = initial_state(plan, world.catalogue.size)
    state |= {POPULARITY: np.full(world.catalogue.size, 1 / world.catalogue.size, np.float32)}
    known = Knowledge(
        global_model(world, plan, state),
        {"pooled_ease": pooled_ease(world, world.test, 50.0, 1000)},
    )
    for outcome in at_home(world, home.centralized, lambda: known, lambda: known, OwnEases()):
        assert outcome.weights is not None
        assert set(outcome.weights) == set(start)


class Rounds:
    """A federation whose model tells by its popularity after which round it was."""

    def __init__(self, world: World, rounds: int) -> None:
        ends = {"validation_from": 1, "tuning_round": rounds // 2}
        model = ModelPlan(dimension=1, learned_items=1)
        self.plan = TrainingPlan(rounds=rounds, private=False, model=model, **ends)
        self._size = world.catalogue.size

    def checkpoint(self, server_round: int) -> object:
        state = initial_state(self.plan.model, self._size)
        popularity = np.full(self._size, float(server_round), np.float32)
        return SimpleNamespace(state=state | {POPULARITY: popularity})


@pytest.mark.parametrize(
    ("arm", "rounds", "expected"),
    [
        ("centralized", None, ["none", "none"]),
        ("centralized", 4, ["2", "4"]),
        ("centralized", 0, ["0", "0"]),
        ("federated", 4, ["2", "4"]),
        ("federated", 0, ["0", "0"]),
        ("local", None, ["none", "none"]),
        ("home-only", None, ["none", "none"]),
    ],
)
def test_weights_are_chosen_with_what_has_not_seen_the_validation_weeks(
    arm: str,
    rounds: int | None,
    expected: list[str],
    experiment: Experiment,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nor the ceiling's EASE: a second look at what chooses would make the ceiling one of its own.
    asked: list[HomeSettings] = []
    known: list[Knowledge] = []
    pooled: list[object] = []

    def adapt(
        _: World,
        settings: HomeSettings,
        tuning: Callable[[], Knowledge],
        final: Callable[[], Knowledge],
        __: OwnEases,
    ) -> Iterator[object]:
        asked.append(settings)
        known.extend([tuning(), final()])
        return iter(())

    def ease(_: World, period: object, *__: object) -> object:
        pooled.append(period)
        return period

    monkeypatch.setattr("simulations.evaluating.at_home", adapt)
    monkeypatch.setattr("simulations.evaluating.pooled_ease", ease)
    central = experiment.home.centralized
    mixes = central.model_copy(update={"start": {**central.start, "learned": 2.0}})
    home = experiment.home.model_copy(update={"centralized": mixes})
    experiment = experiment.model_copy(update={"home": home})
    trained: Any = None if rounds is None else Rounds(world, rounds)
    assert list(arm_outcomes(experiment, world, arm, trained, OwnEases())) == []
    names = []
    for one in known:
        popularity = one.model.state[POPULARITY]
        names.append(f"{popularity[0]:g}" if trained is not None else "none")
        assert trained is not None or not popularity.any()
    assert names == expected
    (settings,) = asked
    if arm == "centralized":
        assert pooled == [world.validation, world.test]
        assert [one.others for one in known] == [{"pooled_ease": period} for period in pooled]
        none = rounds == 0
        wanted = home.centralized.without(*LEARNED_PARTS) if none else home.centralized
    else:
        assert [one.others for one in known] == [{}, {}]
        wanted = {"local": home.local, "home-only": home.home_only()}.get(
            arm, home.federated if rounds else home.federated.without(*LEARNED_PARTS)
        )
    assert settings == wanted


def test_a_global_model_is_shown_as_it_was_published(
    experiment: Experiment, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []

    def show(_: World, model: object) -> Iterator[object]:
        shown.append(model)
        return iter(())

    monkeypatch.setattr("simulations.evaluating.by_global_model", show)
    trained: Any = Rounds(world, 4)
    list(arm_outcomes(experiment, world, "federated-global", trained, OwnEases()))
    assert (shown[0].state[POPULARITY] == 4.0).all()
