import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from client.privacy.discrete import discrete_gaussian
from client.privacy.noise import SeededNoise, SystemNoise
from client.privacy.plan import check_plan, planned_events
from client.privacy.step import ExactDPStep, UnitBatch
from client.privacy.whole import WholeOptimizer, WholeStep
from client.privacy.whole_rows import whole_rows
from common.accounting import (
    Spend,
    calibrate,
    epsilon,
    fits,
    plan_spends,
)
from common.errors import ConfigError, PrivacyError, SecureSumError
from common.planning import with_noise
from common.protocol import TrainingPlan
from common.secure_sum.encoding import coordinate_bound, from_words, to_words
from common.secure_sum.messages import MASKED, SHARES
from common.secure_sum.noise import LEAST_SHARE, accounted_multiplier, share_std, tau
from second_accountant import second_opinion_on_sums
from secure_sum_support import play

PLAN = TrainingPlan(trust="federation", honest_shops=13, rounds=10, target_epsilon=8.0)


def pmf(std: float, reach: int) -> np.ndarray:
    """Return N_Z(0, std²) at -reach to reach."""
    values = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    return np.asarray(values / values.sum())


def summed_pmf(std: float, shares: int) -> np.ndarray:
    """Return the sum of ``shares`` such draws, by convolution, symmetric around 0."""
    one = pmf(std, math.ceil(12 * std))
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return np.asarray(total)


def delta_of(noise: np.ndarray, shift: int, eps: float) -> float:
    """Return δ(ε) of adding the noise to numbers ``shift`` apart: Σ max(0, p - e^ε q)."""
    p = np.concatenate([noise, np.zeros(shift)])
    q = np.concatenate([np.zeros(shift), noise])
    return float(np.maximum(p - math.exp(eps) * q, 0).sum())


def epsilon_of(noise: np.ndarray, shift: int, delta: float) -> float:
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(noise, shift, middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("shares", [1, 3, 13])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_epsilon_bounds_the_exact_one_of_summed_shares_and_is_near_it(
    shares: int, target: float
) -> None:
    """The shares' own sum, by convolution, for a unit of one number: no accountant at all."""
    steps, delta = 32, 1e-5
    sigma, _ = calibrate(target, delta, 1.0, 1.0, 0, discrete=True)
    exact = epsilon_of(summed_pmf(sigma * steps / math.sqrt(shares), shares), steps, delta)
    ours = epsilon([Spend(sigma, 1.0, 1, discrete=True)], delta).value
    assert exact <= ours <= 1.12 * exact


def test_a_unit_of_several_numbers_costs_no_more_than_the_bound() -> None:
    """Two coordinates, at every split of the norm: δ of the product of two exact sums."""
    steps, delta, shares = 25, 1e-5, 4
    sigma, _ = calibrate(2.0, delta, 1.0, 1.0, 0, discrete=True)
    noise = summed_pmf(sigma * steps / math.sqrt(shares), shares)
    ours = epsilon([Spend(sigma, 1.0, 1, discrete=True)], delta).value
    for first, second in ((25, 0), (24, 7), (20, 15), (15, 20)):
        assert first**2 + second**2 == steps**2
        p1, q1 = np.r_[noise, np.zeros(first)], np.r_[np.zeros(first), noise]
        p2, q2 = np.r_[noise, np.zeros(second)], np.r_[np.zeros(second), noise]
        joint = np.maximum(np.outer(p1, p2) - math.exp(ours) * np.outer(q1, q2), 0).sum()
        assert joint <= delta


@pytest.mark.parametrize("fewer", [1, 2])
def test_a_row_of_fewer_and_larger_shares_costs_no_more_beside_one_of_all(fewer: int) -> None:
    """A number that four honest shops add to, and one that one or two do: δ of the product."""
    steps, delta = 25, 1e-5
    sigma, _ = calibrate(2.0, delta, 1.0, 1.0, 0, discrete=True)
    plan = PLAN.model_copy(update={"noise_steps": steps, "honest_shops": 4})
    every, few = (
        summed_pmf(share_std(plan, sigma, shares), shares) for shares in (plan.honest_shops, fewer)
    )
    ours = epsilon([Spend(sigma, 1.0, 1, discrete=True)], delta).value
    for first, second in ((0, 25), (7, 24), (15, 20), (20, 15), (25, 0)):
        p1, q1 = np.r_[every, np.zeros(first)], np.r_[np.zeros(first), every]
        p2, q2 = np.r_[few, np.zeros(second)], np.r_[np.zeros(second), few]
        joint = np.maximum(np.outer(p1, p2) - math.exp(ours) * np.outer(q1, q2), 0).sum()
        assert 0.1 * delta < joint <= delta


@pytest.mark.parametrize("target", [1.0, 8.0])
def test_a_second_accountant_agrees_on_a_plan(target: float) -> None:
    plan = with_noise(PLAN.model_copy(update={"target_epsilon": target, "rounds": 4}))
    spends = plan_spends(plan)
    ours = epsilon(spends, plan.target_delta)
    assert ours.value <= target
    assert ours.method == "rdp"
    assert ours.upper_bound
    multipliers = [s.noise_multiplier for s in spends for _ in range(s.steps)]
    other = second_opinion_on_sums(64, multipliers, plan.target_delta, mesh=1e-3)
    assert 0.88 * ours.value <= other <= 1.005 * ours.value


def test_what_the_shares_sum_differs_by_from_one_draw_is_accounted_for() -> None:
    assert tau(LEAST_SHARE, 1) == 0
    assert (
        0
        < tau(0.5, 3)
        == pytest.approx(10 * (math.exp(-(math.pi**2) / 4) + math.exp(-(math.pi**2) / 3)))
    )
    # Beyond 64 shares the rest is bounded by the 64th.
    brute = 10 * sum(math.exp(-2 * math.pi**2 * k / (k + 1)) for k in range(1, 100))
    assert brute <= tau(1.0, 100) <= 1.01 * brute
    assert accounted_multiplier(2.0, 0.5, 3, 100) == pytest.approx(1 / (0.5 + tau(0.5, 3) * 10))
    assert tau(LEAST_SHARE, 2**20) * 2**20 < 1e-250
    assert accounted_multiplier(3.3, LEAST_SHARE, 13) == pytest.approx(3.3, rel=1e-15)


def test_ledger_and_plan_say_the_same_of_the_same_sums() -> None:
    plan = with_noise(PLAN)
    events = planned_events(plan, "r")
    assert [e.mechanism for e in events] == [
        "shared-gaussian-histogram",
        *["shared-gaussian-step"] * 10,
    ]
    assert events[1].parameters["honest_shops"] == 13
    from client.privacy.budget import epsilon_of as epsilon_of_events

    found = epsilon_of_events(events, plan.target_delta)["customer"]
    assert found == epsilon(plan_spends(plan), plan.target_delta)
    assert 0.998 * 8 <= found.value <= 8


def test_rounds_beside_gaussian_ones_are_bounded_by_renyi_together() -> None:
    both = [Spend(4.0, 1.0, 2), Spend(5.0, 1.0, 3, discrete=True)]
    gaussian = [Spend(4.0, 1.0, 2), Spend(5.0, 1.0, 3)]
    mixed = epsilon(both, 1e-5)
    assert mixed.method == "rdp"
    assert epsilon(gaussian, 1e-5).value <= mixed.value <= 1.12 * epsilon(gaussian, 1e-5).value
    assert fits(both, 1e-5, mixed.value)
    assert not fits(both, 1e-5, 0.99 * mixed.value)
    with pytest.raises(ConfigError, match="sampling"):
        Spend(4.0, 0.5, 1, discrete=True)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"honest_shops": 0}, "honest_shops"),
        ({"local_steps": 2}, "one sum a round"),
        ({"sample_rate": 0.5}, "one sum a round"),
        ({"local_momentum": 0.5}, "one sum a round"),
        ({"noise_steps": 4}, "noise_steps"),
        # Either share alone, and that of the release where there is nothing else.
        ({"popularity_noise_multiplier": 1e-3}, "share of the noise"),
        ({"popularity_noise_multiplier": 1e-3, "rounds": 0}, "share of the noise"),
        ({"noise_multiplier": 1e-3}, "share of the noise"),
    ],
)
def test_a_plan_of_sums_that_does_not_add_up_is_refused(
    changes: dict[str, object], match: str
) -> None:
    values = {"noise_multiplier": 3.0, "popularity_noise_multiplier": 3.0}
    check_plan(PLAN.model_copy(update=values))
    with pytest.raises(PrivacyError, match=match):
        check_plan(PLAN.model_copy(update=values | changes))


def test_a_share_is_rounded_up_never_down() -> None:
    plan = PLAN.model_copy(update={"noise_steps": 4096})
    for multiplier in np.random.default_rng(0).uniform(0.5, 30, 200):
        std = share_std(plan, float(multiplier))
        assert std**2 * 13 >= (multiplier * 4096) ** 2 * (1 - 1e-15)
        assert std == pytest.approx(multiplier * 4096 / 13**0.5, rel=1e-14)


@pytest.mark.parametrize(("honest", "steps"), [(13, 4096), (5, 5000), (20, 777)])
def test_exactly_not_one_share_falls_short_by_its_rounding(honest: int, steps: int) -> None:
    # In whole fractions: floats would round what is to be seen.
    plan = PLAN.model_copy(update={"noise_steps": steps})
    for multiplier in np.random.default_rng(0).uniform(0.5, 30, 500).tolist():
        share = Fraction(share_std(plan, multiplier, honest))
        assert honest * share**2 >= (Fraction(multiplier) * steps) ** 2


@pytest.mark.parametrize("survivors", [13, 16, 20])
def test_the_sums_noise_is_what_was_planned_for_every_number_of_survivors(survivors: int) -> None:
    """Real draws: m = 13 of 20 planned; the sum of k shares has k / m times the variance."""
    multiplier, steps, size = 3.3, 64, 2500
    plan = PLAN.model_copy(update={"noise_steps": steps})
    std = share_std(plan, multiplier)
    draws = discrete_gaussian(SystemNoise(), survivors * size, std).reshape(survivors, size)
    bound = coordinate_bound(20, size, std, steps)
    words = [to_words(np.zeros(size, np.int64), row, bound) for row in draws]
    total = from_words(np.asarray(np.sum(words, axis=0, dtype=np.uint32)))
    planned = (multiplier * steps) ** 2 * survivors / 13
    # A variance of n draws has relative spread sqrt(2 / n): five of them.
    assert abs(total.var() / planned - 1) < 5 * math.sqrt(2 / size)
    assert abs(total.mean()) < 5 * math.sqrt(planned / size)
    spread = math.sqrt(planned)
    assert (
        stats.kstest(
            (total + np.random.default_rng(1).uniform(-0.5, 0.5, size)) / spread, "norm"
        ).pvalue
        > 1e-6
    )


@pytest.mark.statistical
@pytest.mark.timeout(300)
@pytest.mark.parametrize("gone", range(9))
def test_the_noise_of_the_unmasked_sum_with_every_number_of_drop_outs(gone: int) -> None:
    """Through the protocol, m = 13 of 20: up to 7 may go, before their vectors came or after."""
    shops, honest, multiplier, steps, size = 20, 13, 3.3, 64, 4000
    plan = PLAN.model_copy(update={"noise_steps": steps, "honest_shops": honest})
    std = share_std(plan, multiplier)
    bound = coordinate_bound(shops, size, std, steps)
    draws = discrete_gaussian(SystemNoise(), shops * size, std).reshape(shops, size)
    words = [to_words(np.zeros(size, np.int64), row, bound) for row in draws]
    stages = [SHARES, MASKED]
    leaves = {shop: stages[shop % 2] for shop in range(gone)}
    if gone > shops - honest:
        with pytest.raises(SecureSumError, match="13 are needed"):
            play(words, leaves, honest=honest)
        return
    total = from_words(play(words, leaves, honest=honest).collector.sum())
    assert np.array_equal(total, draws[gone:].sum(axis=0))
    planned = (multiplier * steps) ** 2 * (shops - gone) / honest
    assert abs(total.var() / planned - 1) < 5 * math.sqrt(2 / size)
    assert abs(total.mean()) < 5 * math.sqrt(planned / size)
    # Whole numbers: held against the planned distribution in bins of ten per cent each.
    edges = np.floor(stats.norm.ppf(np.linspace(0, 1, 11)[1:-1], scale=math.sqrt(planned))) + 0.5
    chances = np.diff(np.r_[0, stats.norm.cdf(edges, scale=math.sqrt(planned)), 1])
    counts = np.bincount(np.searchsorted(edges, total), minlength=10)
    assert stats.chisquare(counts, chances * size).pvalue > 1e-6


def test_the_sampler_draws_the_discrete_gaussian() -> None:
    """A narrow one, where it differs from a rounded Gaussian: chi-square over the values."""
    std, size = 0.8, 20_000
    draws = discrete_gaussian(SystemNoise(), size, std)
    assert draws.dtype == np.int64
    expected = pmf(std, 3) * size
    counts = np.array([(draws == k).sum() for k in range(-3, 4)])
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-6
    rounded = np.diff(stats.norm.cdf(np.arange(-3.5, 4), scale=std)) * size
    assert stats.chisquare(counts, rounded * counts.sum() / rounded.sum()).pvalue < 1e-6


def test_seeded_noise_is_replayable_and_close_to_it() -> None:
    def draw() -> np.ndarray:
        return discrete_gaussian(SeededNoise(np.random.default_rng(3)), 20_000, 50.0)

    assert np.array_equal(draw(), draw())
    assert draw().var() == pytest.approx(2500, rel=0.05)
    assert not np.array_equal(
        discrete_gaussian(SystemNoise(), 50, 50.0), discrete_gaussian(SystemNoise(), 50, 50.0)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000))
@settings(max_examples=60, deadline=None)
def test_no_units_whole_numbers_are_longer_than_the_bound(seed: int, steps: int) -> None:
    stream = np.random.default_rng(seed)
    dense = stream.standard_normal((6, 9)) * (stream.random((6, 9)) < 0.6)
    norms = np.linalg.norm(dense, axis=1, keepdims=True)
    rows = sparse.csr_matrix(np.divide(dense, norms, out=np.zeros_like(dense), where=norms > 0))
    each = [whole_rows(rows[k], steps) for k in range(6)]
    for k, whole in enumerate(each):
        assert int((whole**2).sum()) <= steps**2
        assert np.abs(whole - rows[k].toarray()[0] * steps).max() <= 1 + 1e-6
    assert np.array_equal(whole_rows(rows, steps), np.sum(each, axis=0))


def test_a_row_beyond_the_bound_adds_nothing() -> None:
    # The last by one step, in one number and in two.
    beyond = [[3.0, 0.0], [1.02, 0.0], [0.72, 0.72]]
    rows = sparse.csr_matrix(np.array([*beyond, [0.0, 0.5], [0.0, 0.0], [0.71, 0.70]]))
    assert whole_rows(rows, 100).tolist() == [70, 49 + 69]


class Units:
    """Some units that read a table, one row of it twice, and a dense parameter."""

    def __init__(self, seed: int, size: int, scale: float) -> None:
        stream = np.random.default_rng(seed)
        self.ids = torch.tensor(stream.integers(-1, 7, size=(size, 5)))
        self.ids[:, 1] = self.ids[:, 0]
        self.targets = torch.tensor(stream.standard_normal((size, 3)) * scale, dtype=torch.float32)
        self.table = torch.tensor(stream.standard_normal((7, 3)), dtype=torch.float32)
        self.dense = torch.tensor(stream.standard_normal(3), dtype=torch.float32)

    def batch(self, chosen: slice) -> UnitBatch:
        ids = self.ids[chosen]
        return UnitBatch(len(ids), {"table": ids}, {"target": self.targets[chosen]})

    @staticmethod
    def loss(
        rows: dict[str, torch.Tensor], dense: dict[str, torch.Tensor], batch: UnitBatch
    ) -> torch.Tensor:
        pooled = rows["table"].sum(dim=1) * dense["dense"]
        return ((pooled - batch.data["target"]) ** 2).sum(dim=1)

    def whole(self, steps: int, batches: list[slice]) -> WholeStep:
        step = WholeStep(
            {"table": self.table, "dense": self.dense},
            tables={"table"},
            max_grad_norm=0.7,
            noise_multiplier=0.0,
            batch_normalizer=1.0,
            learning_rate=1.0,
        )
        assert isinstance(step.optimizer, WholeOptimizer)
        step.optimizer.steps = steps
        for chosen in batches:
            step.accumulate(self.loss, self.batch(chosen))
        return step


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 50, 4096]), st.sampled_from([0.01, 1.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_one_units_whole_gradient_over_all_parameters_is_within_the_bound(
    seed: int, steps: int, scale: float
) -> None:
    units = Units(seed, 1, scale)
    step = units.whole(steps, [slice(0, 1)])
    square = sum(int((step.whole(name) ** 2).sum()) for name in ("table", "dense"))
    assert square <= steps**2


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_whole_gradients_add_up_whatever_the_batches_and_follow_the_clipped_ones(
    seed: int,
) -> None:
    units, steps = Units(seed, 9, 1.0), 4096
    whole = units.whole(steps, [slice(0, 9)])
    parts = units.whole(steps, [slice(0, 4), slice(4, 4), slice(4, 9)])
    each = [units.whole(steps, [slice(k, k + 1)]) for k in range(9)]
    plain = ExactDPStep(
        {"table": units.table, "dense": units.dense},
        tables={"table"},
        max_grad_norm=0.7,
        noise_multiplier=0.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
    )
    plain.accumulate(units.loss, units.batch(slice(0, 9)))
    clipped = plain.clipped_sum()
    for name in ("table", "dense"):
        assert np.array_equal(whole.whole(name), parts.whole(name))
        assert np.array_equal(whole.whole(name), np.sum([s.whole(name) for s in each], axis=0))
        exact = clipped[name].numpy() * steps / 0.7
        # Nine units, each cut by less than one step.
        assert np.abs(whole.whole(name) - exact).max() <= 9.1


def test_a_unit_that_overflows_adds_nothing_and_an_empty_shop_is_all_zeros() -> None:
    units = Units(1, 3, 1.0)
    units.targets[1] = math.inf
    whole = units.whole(100, [slice(0, 3)])
    others = units.whole(100, [slice(0, 1), slice(2, 3)])
    for name in ("table", "dense"):
        assert np.array_equal(whole.whole(name), others.whole(name))
        assert not units.whole(100, []).whole(name).any()


def read_once_a_gradient(gradients: list[float], norm: float, steps: int) -> WholeStep:
    """A unit that reads one row as often as there are gradients of it."""
    step = WholeStep(
        {"table": torch.zeros((2, 1))},
        tables={"table"},
        max_grad_norm=norm,
        noise_multiplier=0.0,
        batch_normalizer=1.0,
        learning_rate=1.0,
    )
    assert isinstance(step.optimizer, WholeOptimizer)
    step.optimizer.steps = steps
    ids = {"table": torch.ones((1, len(gradients)), dtype=torch.int64)}
    data = {"gradient": torch.tensor(gradients, dtype=torch.float32).reshape(1, -1, 1)}
    step.accumulate(
        lambda rows, _, batch: (rows["table"] * batch.data["gradient"]).sum(dim=(1, 2)),
        UnitBatch(1, ids, data),
    )
    return step


@pytest.mark.parametrize("rest", [1e5, 2.0**34, 1e22])
def test_what_float32_cancels_within_a_unit_passes_no_bound_by_wrapping_around(rest: float) -> None:
    """A unit reads a row three times; its norm is taken of the float32 sum, which is 0.

    Of what is left in float64 the squares are 0 modulo 2^64, or it is beyond what int64 holds.
    """
    large = rest * 2.0**26
    step = read_once_a_gradient([large, rest, -large], 1.0, 4096)
    assert step.unit_norms.tolist() == [0.0]
    assert not step.whole("table").any()


def test_a_row_that_a_unit_reads_often_is_cut_to_whole_steps_once() -> None:
    """Cut read by read, four steps would be left of a sum of 0, where two are the bound."""
    step = read_once_a_gradient([1.0] * 4 + [-0.5] * 8, 2.0, 2)
    assert step.unit_norms.tolist() == [0.0]
    assert not step.whole("table").any()
    assert read_once_a_gradient([0.75] * 2, 2.0, 2).whole("table").sum() == 1
