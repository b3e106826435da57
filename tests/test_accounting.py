import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.accountants import composition
from common.accounting import (
    Epsilon,
    Spend,
    calibrate,
    epsilon,
    fits,
    plan_spends,
)
from common.errors import ConfigError
from common.protocol import TrainingPlan
from second_accountant import second_opinion, second_opinion_if_added

DELTA = 1e-5

spends = st.lists(
    st.builds(
        Spend,
        noise_multiplier=st.floats(1.5, 20.0),
        sample_rate=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
        steps=st.integers(1, 40),
    ),
    min_size=1,
    max_size=3,
)


def check_against_another_accountant(history: list[Spend], delta: float = DELTA) -> Epsilon:
    ours, theirs = epsilon(history, delta), second_opinion(history, delta)
    # Never below it by more than the other's own discretisation error.
    assert ours.value >= theirs - max(1e-4 * theirs, 1e-4), history
    if not ours.upper_bound:
        assert abs(ours.value - theirs) <= max(0.01 * theirs, 0.01), history
    return ours


@given(spends)
@settings(max_examples=8, deadline=None)
def test_epsilon_agrees_with_a_second_accountant(history: list[Spend]) -> None:
    check_against_another_accountant(history)


def random_ledger(stream: np.random.Generator, segments: int) -> list[Spend]:
    """Return segments of any rate and length, with noise for which each costs ε of .2 to 10."""
    history = []
    for _ in range(segments):
        rate = float(stream.choice([1.0, 10 ** stream.uniform(-2.5, 0)]))
        steps = int(10 ** stream.uniform(0, 3.3))
        sigma = rate * steps**0.5 / 10 ** stream.uniform(-1.3, 0.4)
        history.append(Spend(max(sigma, 0.7), rate, steps))
    return history


@pytest.mark.parametrize(
    "history",
    [
        [Spend(1.0, 0.5, 1)],
        [Spend(0.7, 0.01, 200)],
        [Spend(0.5, 0.9, 2)],
        [Spend(2.0, 1.0, 1), Spend(1.5, 0.3, 20)],
        [Spend(8.0, 0.9, 30), Spend(3.0, 0.2, 10)],
    ],
)
@pytest.mark.parametrize("delta", [DELTA, 1e-2])
def test_of_sampled_steps_a_unit_added_is_composed_too(
    history: list[Spend], delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That one removed costs more in every composition is conjectured, and proven of Rényi alone.
    found: dict[bool, float] = {}
    compose = composition._prv_on_grid

    def remembered(*values: Any, added: bool = False) -> float:
        value = compose(*values, added=added)
        assert value is not None
        found[added] = value
        return value

    monkeypatch.setattr(composition, "_prv_on_grid", remembered)
    segments = [(s.noise_multiplier, s.sample_rate, s.steps) for s in history]
    cost = composition.prv(segments, delta, composition.rdp(segments, delta))
    theirs = second_opinion_if_added(history, delta)
    assert theirs * (1 - 1e-4) - 1e-4 <= found[True] <= theirs + max(0.02 * theirs, 0.015)
    assert cost == found[False]


@pytest.mark.parametrize(("added", "cost"), [(5.0, 5.0), (0.5, 1.0), (None, None)])
def test_the_dearer_of_adding_and_removing_counts(
    added: float | None, cost: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {False: 1.0, True: added}
    monkeypatch.setattr(composition, "_prv_on_grid", lambda *_, added=False: both[added])
    assert composition.prv([(1.0, 0.5, 3)], DELTA, 10.0) == cost
    # Without sampling the two are the same.
    assert composition.prv([(1.0, 1.0, 3)], DELTA, 10.0) == 1.0


# 200 random ledgers: 160 of up to five segments, on which the numerical accountant always runs,
# and 40 of so many that often only the Rényi bound can be had.
@pytest.mark.statistical
@pytest.mark.parametrize("batch", range(20))
def test_random_ledgers_agree_with_another_accountant(batch: int) -> None:
    stream = np.random.default_rng([20, batch])
    for _ in range(8):
        history = random_ledger(stream, int(stream.integers(1, 6)))
        delta = float(stream.choice([1e-4, 1e-5, 1e-6]))
        assert not check_against_another_accountant(history, delta).upper_bound
    bounds = [
        check_against_another_accountant(random_ledger(stream, 60)).upper_bound for _ in range(2)
    ]
    assert any(bounds)


@given(spends)
@settings(max_examples=5, deadline=None)
def test_order_and_splitting_of_segments_do_not_matter(history: list[Spend]) -> None:
    split = [
        Spend(s.noise_multiplier, s.sample_rate, 1)
        for s in reversed(history)
        for _ in range(s.steps)
    ]
    assert epsilon(split, DELTA).value == pytest.approx(epsilon(history, DELTA).value, rel=1e-6)


def test_one_gaussian_costs_what_the_analytic_formula_says() -> None:
    def delta_at(eps: float, sigma: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        a, b = 1 / (2 * sigma), eps * sigma
        return phi(a - b) - math.exp(eps) * phi(-a - b)

    for sigma in (0.6, 2.0, 12.0):
        value = epsilon([Spend(sigma, 1.0, 1)], DELTA).value
        assert delta_at(value, sigma) <= DELTA < delta_at(value * 0.99 - 1e-3, sigma)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon([], DELTA).value == 0
    assert epsilon([Spend(0.0, 1.0, 0)], DELTA).value == 0
    assert epsilon([Spend(0.0, 0.1, 1), Spend(3.0, 1.0, 1)], DELTA).value == math.inf
    assert second_opinion([], DELTA) == 0


@pytest.mark.parametrize(
    "history",
    [
        [Spend(1.0, 0.5, 10_001)],
        [Spend(1.0 + i / 100, 0.1, 3) for i in range(60)],
        [Spend(0.02, 1.0, 50)],
        [Spend(1e-3, 0.5, 100)],
        [Spend(1e6, 1e-4, 10)],
    ],
)
def test_histories_beyond_prv_still_get_a_bound(history: list[Spend]) -> None:
    found = epsilon(history, DELTA)
    assert found.value >= 0
    assert not math.isnan(found.value)
    assert found.method == "prv" or found.value > 0


def test_where_prv_cannot_run_the_answer_is_marked_as_an_upper_bound() -> None:
    history = [Spend(20.0 + i / 10, 0.1, 50) for i in range(60)]
    found = epsilon(history, DELTA)
    assert (found.method, found.upper_bound) == ("rdp", True)
    assert found.value >= second_opinion(history, DELTA) * (1 - 1e-9)
    # Nor is it asked for a delta that its sums in float64 cannot tell from nothing.
    tiny = epsilon([Spend(2.0, 0.1, 10)], 1e-11)
    assert (tiny.method, tiny.upper_bound) == ("rdp", True)


@pytest.mark.parametrize("target", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(("sample_rate", "steps"), [(1.0, 8), (0.2, 100), (0.5, 0)])
def test_calibration_hits_its_target_from_below(
    target: float, sample_rate: float, steps: int
) -> None:
    popularity, noise = calibrate(target, DELTA, 0.3, sample_rate, steps)
    history = [Spend(popularity, 1.0, 1), Spend(noise, sample_rate, steps)]
    assert 0.998 * target <= epsilon(history, DELTA).value <= target
    theirs = second_opinion(history, DELTA)
    assert abs(theirs - epsilon(history, DELTA).value) <= max(0.01 * theirs, 0.01)


def test_at_full_rate_the_histogram_has_its_share_of_the_precision() -> None:
    popularity, noise = calibrate(8.0, DELTA, 0.3, 1.0, 10)
    assert popularity**-2 / (popularity**-2 + 10 * noise**-2) == pytest.approx(0.3)


def test_more_budget_needs_less_noise() -> None:
    noises = [calibrate(target, DELTA, 0.3, 0.1, 50) for target in (0.5, 2.0, 8.0)]
    for dearer, cheaper in pairwise(noises):
        assert dearer[0] > cheaper[0]
        assert dearer[1] > cheaper[1]


def test_a_plan_spends_its_histogram_and_every_step() -> None:
    plan = TrainingPlan(
        noise_multiplier=4.0, popularity_noise_multiplier=5.0, rounds=7, local_steps=3
    )
    assert plan_spends(plan) == [Spend(5.0, 1.0, 1), Spend(4.0, plan.sample_rate, 21)]
    assert plan_spends(plan.model_copy(update={"rounds": 0})) == [Spend(5.0, 1.0, 1)]
    assert plan_spends(plan.model_copy(update={"private": False})) == []


@pytest.mark.parametrize(
    "history", [[], [Spend(1.0, 1.0, 0)], [Spend(2.0, 1.0, 1)], [Spend(0.0, 1.0, 1)]]
)
def test_what_fits_is_what_epsilon_says(history: list[Spend]) -> None:
    # Nothing spent is no leave to go below 0, and a step without noise fits no finite cap.
    exact = epsilon(history, DELTA).value
    for cap in (-1.0, 0.0, exact * (1 - 1e-6), exact, exact * (1 + 1e-6), 1e6, math.inf):
        assert fits(history, DELTA, cap) == (exact <= cap), cap


def test_wrong_constants_are_refused() -> None:
    for values in ((-1.0, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.5, 1), (float("nan"), 1.0, 1)):
        with pytest.raises(ConfigError, match="noise_multiplier"):
            Spend(*values)
    with pytest.raises(ConfigError, match="target_delta"):
        epsilon([Spend(1.0, 1.0, 1)], 0.0)
    with pytest.raises(ConfigError, match="target_epsilon"):
        calibrate(math.inf, DELTA, 0.3, 1.0, 1)
    with pytest.raises(ConfigError, match="popularity_share"):
        calibrate(1.0, DELTA, 1.0, 1.0, 1)
