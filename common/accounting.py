"""ε of a plan or of a ledger's events: the one place that calls an accountant.

Neighbouring data sets differ by one unit added or removed; subsampling is Poisson. ε is always an
upper bound: the Rényi accountant (RDP) is computed first, since it is cheap and cannot fail, and
the numerical one (PRV, Gopi et al. 2021, arXiv 2106.02848) replaces it where its grid is small
enough to be computed safely and within a second. Accountants are imported when first needed: they
are slow to load.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from common.accountants.composition import Segment, prv, rdp
from common.errors import ConfigError
from common.protocol import TrainingPlan
from common.secure_sum.noise import accounted_multiplier, share_std

_MAX_EVALUATIONS = 60
# A calibrated plan lies this far under its target, so that a cap equal to it always fits.
_AIM, _LOWEST, _HIGHEST = 0.9993, 0.9985, 0.9999
# Logarithm of the most noise that is looked at, and of one over the least.
_FARTHEST = 40.0


@dataclass(frozen=True)
class Spend:
    """``steps`` Gaussian mechanisms of sensitivity 1, each on a Poisson sample of the units.

    Attributes
    ----------
    noise_multiplier
        Standard deviation of the noise over the sensitivity.
    sample_rate
        Chance of each unit to be in one step, (0, 1].
    discrete
        Whether the noise is a sum of discrete Gaussians (:mod:`common.secure_sum.noise`) on whole
        numbers. Of it the Rényi bound is known, which is a Gaussian's; PRV's is of real numbers.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    discrete: bool = False

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and 0 < self.sample_rate <= 1 and self.steps >= 0):
            raise ConfigError(
                f"no mechanism has noise_multiplier={self.noise_multiplier}, "
                f"sample_rate={self.sample_rate}, steps={self.steps}: they are at least 0, "
                "in (0, 1] and at least 0"
            )
        if self.discrete and self.sample_rate < 1:
            raise ConfigError("noise of whole numbers is accounted for without sampling only")


@dataclass(frozen=True)
class Epsilon:
    """An ε and how it was found.

    Attributes
    ----------
    upper_bound
        True where only the looser RDP bound could be had for mechanisms that PRV would bound
        more tightly.
    """

    value: float
    method: Literal["prv", "rdp"]
    upper_bound: bool


def epsilon(spends: Iterable[Spend], delta: float) -> Epsilon:
    """Return the ε of all ``spends`` together; never less than the truth, never NaN.

    Nothing spent is ε = 0; a step without noise is ε = ∞.
    """
    _check_delta(delta)
    spends = list(spends)
    return _epsilon(_merge(spends), delta, _has_discrete(spends))


def fits(spends: Iterable[Spend], delta: float, cap: float) -> bool:
    """Return whether ``epsilon(spends, delta).value <= cap``.

    The Rényi bound is asked first: where it fits, the dearer accountant has nothing to add.
    """
    _check_delta(delta)
    spends = list(spends)
    merged = _merge(spends)
    if all(sigma > 0 for sigma, _, _ in merged) and (not merged or rdp(merged, delta) <= cap):
        return cap >= 0
    return _epsilon(merged, delta, _has_discrete(spends)).value <= cap


def calibrate(
    target_epsilon: float,
    delta: float,
    popularity_share: float,
    sample_rate: float,
    steps: int,
    *,
    discrete: bool = False,
) -> tuple[float, float]:
    """Find the noise with which a histogram and ``steps`` steps cost just ``target_epsilon``.

    Parameters
    ----------
    popularity_share
        The histogram's part of the budget, (0, 1]. At ``sample_rate`` 1 a part of Σ 1/σ², in
        which Gaussian mechanisms add up; else the histogram alone costs this part of the target.
    steps
        Steps over all rounds; 0 gives the histogram everything.
    discrete
        Whether the noise is of whole numbers; then at ``sample_rate`` 1 only.

    Returns
    -------
    tuple
        ``(popularity_noise_multiplier, noise_multiplier)``; the latter is 0 without steps. They
        cost between 99.8% and 100% of the target.

    Raises
    ------
    ConfigError
        If the target or the share is out of range.
    """
    if not (target_epsilon > 0 and math.isfinite(target_epsilon)):
        raise ConfigError(f"target_epsilon is {target_epsilon}; it must be above 0 and finite")
    if not 0 < popularity_share <= 1 or (steps > 0 and popularity_share == 1):
        raise ConfigError(
            f"popularity_share is {popularity_share}; it must lie in (0, 1), or be 1 without rounds"
        )
    return _calibrate(target_epsilon, delta, popularity_share, sample_rate, steps, discrete)


def plan_spends(plan: TrainingPlan) -> list[Spend]:
    """Return what a plan costs in all: the popularity histogram, then the steps of its rounds."""
    if not plan.private:
        return []
    spends = [_planned(plan, plan.popularity_noise_multiplier, 1.0, 1)]
    if steps := plan.rounds * plan.local_steps:
        spends.append(_planned(plan, plan.noise_multiplier, plan.sample_rate, steps))
    return spends


def _planned(plan: TrainingPlan, multiplier: float, sample_rate: float, steps: int) -> Spend:
    if plan.trust == "shop":
        return Spend(multiplier, sample_rate, steps)
    std = share_std(plan, multiplier)
    accounted = accounted_multiplier(multiplier, std, plan.honest_shops)
    return Spend(accounted, sample_rate, steps, discrete=True)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"target_delta is {delta}; it must lie between 0 and 1")


def _merge(spends: Iterable[Spend]) -> tuple[Segment, ...]:
    """Join equal segments, and all unsampled ones to one: Σ 1/σ² adds up exactly there."""
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        if spend.steps:
            key = (spend.noise_multiplier, spend.sample_rate)
            steps[key] = steps.get(key, 0) + spend.steps
    whole = [(sigma, count) for (sigma, rate), count in sorted(steps.items()) if rate == 1]
    merged = [(sigma, rate, count) for (sigma, rate), count in steps.items() if rate < 1]
    if any(sigma == 0 for sigma, _ in whole):
        merged.append((0.0, 1.0, 1))
    elif whole:
        merged.append((sum(n / sigma**2 for sigma, n in whole) ** -0.5, 1.0, 1))
    return tuple(sorted(merged))


def _has_discrete(spends: Iterable[Spend]) -> bool:
    return any(spend.discrete for spend in spends if spend.steps)


@lru_cache(maxsize=4096)
def _epsilon(segments: tuple[Segment, ...], delta: float, discrete: bool) -> Epsilon:
    if not segments:
        return Epsilon(0.0, "rdp", upper_bound=False)
    if any(sigma == 0 for sigma, _, _ in segments):
        return Epsilon(math.inf, "rdp", upper_bound=False)
    bound = rdp(segments, delta)
    tight = None if discrete else prv(segments, delta, bound)
    if tight is None:
        return Epsilon(bound, "rdp", upper_bound=True)
    # Both are bounds; where RDP is the lower one it is the tighter.
    if bound < tight:
        return Epsilon(bound, "rdp", upper_bound=False)
    return Epsilon(tight, "prv", upper_bound=False)


@lru_cache(maxsize=512)
def _calibrate(
    target: float, delta: float, share: float, sample_rate: float, steps: int, discrete: bool
) -> tuple[float, float]:
    if steps == 0:
        alone = _solve(lambda sigma: epsilon([Spend(sigma, 1.0, 1, discrete)], delta).value, target)
        return alone, 0.0
    if sample_rate == 1:
        popularity_scale, step_scale = share**-0.5, (steps / (1 - share)) ** 0.5
        sigma = _solve(
            lambda s: (
                epsilon(
                    [
                        Spend(s * popularity_scale, 1.0, 1, discrete),
                        Spend(s * step_scale, 1.0, steps, discrete),
                    ],
                    delta,
                ).value
            ),
            target,
        )
        return sigma * popularity_scale, sigma * step_scale
    histogram = Spend(
        _solve(lambda s: epsilon([Spend(s, 1.0, 1)], delta).value, share * target), 1.0, 1
    )
    sigma = _solve(
        lambda s: epsilon([histogram, Spend(s, sample_rate, steps)], delta).value, target
    )
    return histogram.noise_multiplier, sigma


def _solve(cost: Callable[[float], float], target: float) -> float:
    """Return σ with ``cost(σ)`` just under ``target``; ``cost`` falls in σ.

    Regula falsi (Illinois) on logarithms, in which ε is nearly linear: a handful of evaluations.
    """

    def excess(log_sigma: float) -> float:
        value = cost(math.exp(log_sigma))
        return (
            math.log(value / (_AIM * target))
            if 0 < value < math.inf
            else math.copysign(50.0, value - target)
        )

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    low, high = low - math.log(_AIM), high - math.log(_AIM)
    left, right = 0.0, 0.0
    f_left = f_right = excess(0.0)
    while f_left < 0 and left > -_FARTHEST:
        right, f_right = left, f_left
        left -= 0.7
        f_left = excess(left)
    while f_right > 0 and right < _FARTHEST:
        left, f_left = right, f_right
        right += 0.7
        f_right = excess(right)
    side = 0
    reached = f_left >= 0 >= f_right
    for attempt in range(_MAX_EVALUATIONS if reached else 0):
        # Every fourth point halves the bracket, lest a kink between accountants stalls it.
        middle = (left + right) / 2
        if attempt % 4 != 3 and f_left != f_right:
            middle = (f_left * right - f_right * left) / (f_left - f_right)
        value = excess(middle)
        if low <= value <= high:
            return math.exp(middle)
        if value > 0:
            left, f_left = middle, value
            f_right = f_right / 2 if side == 1 else f_right
            side = 1
        else:
            right, f_right = middle, value
            f_left = f_left / 2 if side == -1 else f_left
            side = -1
    raise ConfigError(
        f"no noise costs just epsilon {target}: choose another target, sample rate or round count"
    )
