import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.accounting import Spend, epsilon
from common.errors import ConfigError
from common.protocol import TrainingPlan
from simulations.audit.membership import promised
from simulations.audit.statistics import (
    Roc,
    area_under_curve,
    clopper_pearson,
    clustered_proportion,
    guess,
    mean_interval,
    one_run_lower_bound,
    one_run_p_value,
    promise_curve,
    twice,
)


@pytest.mark.parametrize("guesses", [20, 100, 1000])
def test_all_guesses_right_give_the_known_bound(guesses: int) -> None:
    # P[Binomial(r, q) = r] = q^r: refuted while q < .05^(1/r).
    chance = 0.05 ** (1 / guesses)
    found = one_run_lower_bound(guesses, guesses, guesses, 0.0)
    assert found == pytest.approx(math.log(chance / (1 - chance)), abs=1e-6)


def test_p_value_is_the_binomial_tail_plus_the_price_of_delta() -> None:
    # r = 4, v = 3, ε = 0: P[W ≥ 3] = 5/16; 1/i · P[3 > W ≥ 3 - i] = 6/16, 5/16, 11/48.
    assert one_run_p_value(4, 4, 3, 0.0, 0.0) == pytest.approx(5 / 16)
    assert one_run_p_value(100, 4, 3, 0.0, 1e-3) == pytest.approx(5 / 16 + 2 * 6 / 16 * 0.1)


@given(st.integers(2, 200), st.data())
@settings(max_examples=60, deadline=None)
def test_the_bound_grows_with_what_speaks_for_it(guesses: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, guesses - 1))
    bound = one_run_lower_bound(1000, guesses, correct, 1e-6)
    assert one_run_lower_bound(1000, guesses, correct + 1, 1e-6) >= bound
    assert one_run_lower_bound(1000, guesses, correct, 1e-4) <= bound
    assert one_run_lower_bound(1000, guesses, correct, 1e-6, confidence=0.99) <= bound
    assert one_run_lower_bound(100_000, guesses, correct, 1e-6) <= bound


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 correct of 4"):
        one_run_p_value(10, 4, 5, 1.0, 0.0)


def test_of_a_single_canary_nothing_is_guessed() -> None:
    # A catalogue of one product has room for no more: the audit ended on "1 correct of 0 guesses".
    for inside in (True, False):
        assert guess(np.zeros(1), np.array([inside]), 400) == (0, 0)
    assert one_run_lower_bound(1, 0, 0, 1e-5) == 0.0


def _gaussian(sigma: float, seed: int, canaries: int = 10_000) -> tuple[int, int]:
    stream = np.random.default_rng(seed)
    inside = stream.random(canaries) < 0.5
    scores = inside + sigma * stream.standard_normal(canaries)
    return guess(scores, inside, 400)


@pytest.mark.parametrize("sigma", [7.1, 3.74, 2.0])
def test_a_gaussian_mechanism_is_under_its_epsilon_and_one_with_less_noise_above(
    sigma: float,
) -> None:
    delta = 1e-5
    claimed = epsilon([Spend(sigma, 1.0, 1)], delta).value
    for seed in range(5):
        right, guesses = _gaussian(sigma, seed)
        assert one_run_lower_bound(10_000, guesses, right, delta) < claimed
        right, guesses = _gaussian(sigma / 4, seed)
        assert one_run_lower_bound(10_000, guesses, right, delta) > claimed


def test_scores_that_know_nothing_refute_nothing_more_often_than_promised() -> None:
    refuted = 0
    for seed in range(200):
        stream = np.random.default_rng(seed)
        inside = stream.random(500) < 0.5
        right, guesses = guess(stream.random(500), inside, 100)
        refuted += one_run_lower_bound(500, guesses, right, 0.0) > 0
    assert refuted <= stats.binom.ppf(0.999, 200, 0.05)


def test_clopper_pearson_known_values() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_clusters_that_differ_widen_the_interval() -> None:
    trials = np.full(10, 100.0)
    alike = clustered_proportion(np.full(10, 20.0), trials)
    apart = clustered_proportion(np.array([0.0, 40.0] * 5), trials)
    plain = clopper_pearson(200, 1000)
    assert alike[0] == apart[0] == 0.2
    assert alike[2] - alike[1] >= plain[1] - plain[0]
    assert apart[2] - apart[1] > 2 * (alike[2] - alike[1])


def test_clustered_intervals_cover() -> None:
    stream = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        # Clusters share an effect: the truth is their mean, .3.
        chances = stream.beta(6, 14, 10)
        _, low, high = clustered_proportion(
            stream.binomial(60, chances).astype(float), np.full(10, 60.0)
        )
        covered += low <= 0.3 <= high
    assert covered >= 0.92 * 300


def test_area_counts_pairs() -> None:
    members, others = np.array([3.0, 2.0, 2.0]), np.array([1.0, 2.0])
    assert area_under_curve(members, others) == pytest.approx((2 + 1.5 + 1.5) / 6)
    assert math.isnan(area_under_curve(members, np.empty(0)))


def test_mean_interval_is_students() -> None:
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0, math.nan]))
    assert (mean, high - mean) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)
    assert low == pytest.approx(4 - high)


def test_roc_counts_by_model_and_leaves_out_who_played_no_part() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [math.nan, 5.0, 0.0]])
    inside = np.array([[True, False, True], [False, False, True]])
    roc = Roc.of(scores, inside)
    assert roc.thresholds.tolist() == [5.0, 3.0, 2.0, 1.0, 0.0]
    assert roc.true.tolist() == [[0, 0], [1, 0], [1, 0], [2, 0], [2, 1]]
    assert roc.false.tolist() == [[0, 1], [0, 1], [1, 1], [1, 1], [1, 1]]
    assert (roc.members.tolist(), roc.others.tolist()) == ([2, 1], [1, 1])


def test_roc_of_many_scores_keeps_both_ends() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 500))
    roc = Roc.of(scores, np.arange(500)[None, :] % 2 == np.zeros((4, 1)), points=50)
    assert len(roc.thresholds) <= 50
    assert roc.thresholds[0] == scores.max()
    assert roc.thresholds[-1] == scores.min()


def test_the_curve_of_a_gaussian_is_its_own() -> None:
    # Dong, Roth & Su 2022: TPR ≤ Φ(Φ⁻¹(FPR) + 1/σ) for one unsampled Gaussian.
    sigma, delta = 1.2, 1e-5
    spends = [Spend(sigma, 1.0, 1)]
    claimed = epsilon(spends, delta).value
    grid = np.linspace(0.0, 1.0, 101)
    exact = stats.norm.cdf(stats.norm.ppf(grid) + 1 / sigma)
    curve = promise_curve(spends, claimed, delta)(grid)
    assert (curve >= exact - 1e-9).all()
    assert np.abs(curve - exact).max() < 0.03
    pair = promise_curve([], claimed, delta)(grid)
    assert pair == pytest.approx(
        np.minimum.reduce(
            [
                np.ones(101),
                math.exp(claimed) * grid + delta,
                1 - (1 - grid - delta) / math.exp(claimed),
            ]
        )
    )
    assert (pair >= curve).all()
    # Two units' change: at least the Gaussian's of twice the distance.
    double = stats.norm.cdf(stats.norm.ppf(grid) + 2 / sigma)
    assert (twice(promise_curve(spends, claimed, delta))(grid) >= double - 1e-9).all()


def test_a_promise_that_allows_all_ends_no_audit() -> None:
    # e to the power of twice an ε of 400 is no float.
    grid = np.linspace(0.0, 1.0, 11)
    allowed = promise_curve([], 800.0, 1e-5)(grid)
    assert allowed == pytest.approx([1e-5, *[1.0] * 10])
    plan = TrainingPlan(
        target_epsilon=1000.0, popularity_noise_multiplier=0.1, noise_multiplier=0.1
    )
    point = dict.fromkeys(("fpr", "tpr", "fpr_low", "tpr_low"), 0.5) | {
        "fpr_high": 1.0,
        "tpr_high": 1.0,
    }
    found = promised([point], plan, "interaction")
    assert (found["bound_violations"], found["curve_violations"], found["epsilon"]) == (0, 0, 2000)
