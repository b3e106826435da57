"""ε of a plan or of a ledger's events: the one place that calls an accountant.

Neighbouring data sets differ by one unit added or removed; subsampling is Poisson. ε is always an
upper bound: the Rényi accountant (RDP) is computed first, since it is cheap and cannot fail, and
the numerical one (PRV, Gopi et al. 2021, arXiv 2106.02848) replaces it where its grid is small
enough to be computed safely. Accountants are imported when first needed: they are slow to load.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from common.errors import ConfigError
from common.protocol import TrainingPlan

logger = logging.getLogger(__name__)

Segment = tuple[float, float, int]

#: PRV's memory grows with its grid; above this many points (128 MB an array) RDP has to do.
MAX_GRID_POINTS = 1 << 24
MAX_PRV_STEPS = 10_000
MAX_PRV_SEGMENTS = 40
# Below this δ the float64 convolution of PRV is not to be trusted.
MIN_PRV_DELTA = 1e-10
# PRV's answer lies at most twice its error above the truth.
_RELATIVE_ERROR = 0.002
_ERROR_BOUNDS = (5e-4, 1e-2)
_LARGEST_EPSILON_FOR_PLD = 30.0
_MAX_PLD_SEGMENTS = 8
# Large orders matter for small ε, small and fractional ones for large ε.
_ORDERS = np.array(
    [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [80, 96, 128, 192, 256, 512]
)
_MAX_EVALUATIONS = 60
# A calibrated plan lies this far under its target, so that a cap equal to it always fits.
_AIM, _LOWEST, _HIGHEST = 0.9993, 0.9985, 0.9999


@dataclass(frozen=True)
class Spend:
    """``steps`` Gaussian mechanisms of sensitivity 1, each on a Poisson sample of the units.

    Attributes
    ----------
    noise_multiplier
        Standard deviation of the noise over the sensitivity.
    sample_rate
        Chance of each unit to be in one step, (0, 1].
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier >= 0 and 0 < self.sample_rate <= 1 and self.steps >= 0):
            raise ConfigError(
                f"no mechanism has noise_multiplier={self.noise_multiplier}, "
                f"sample_rate={self.sample_rate}, steps={self.steps}: they are at least 0, "
                "in (0, 1] and at least 0"
            )


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
    if not 0 < delta < 1:
        raise ConfigError(f"target_delta is {delta}; it must lie between 0 and 1")
    return _epsilon(_merge(spends), delta)


def calibrate(
    target_epsilon: float,
    delta: float,
    popularity_share: float,
    sample_rate: float,
    steps: int,
) -> tuple[float, float]:
    """Find the noise with which a histogram and ``steps`` steps cost just ``target_epsilon``.

    Parameters
    ----------
    popularity_share
        The histogram's part of the budget, (0, 1]. At ``sample_rate`` 1 a part of Σ 1/σ², in
        which Gaussian mechanisms add up; else the histogram alone costs this part of the target.
    steps
        Steps over all rounds; 0 gives the histogram everything.

    Returns
    -------
    tuple
        ``(popularity_noise_multiplier, noise_multiplier)``; the latter is 0 without steps. They
        cost between 99.8% and 100% of the target.
    """
    if not (target_epsilon > 0 and math.isfinite(target_epsilon)):
        raise ConfigError(f"target_epsilon is {target_epsilon}; it must be above 0 and finite")
    if not 0 < popularity_share <= 1 or (steps > 0 and popularity_share == 1):
        raise ConfigError(
            f"popularity_share is {popularity_share}; it must lie in (0, 1), or be 1 without rounds"
        )
    return _calibrate(target_epsilon, delta, popularity_share, sample_rate, steps)


def plan_spends(plan: TrainingPlan) -> list[Spend]:
    """Return what a plan costs in all: the popularity histogram, then the steps of its rounds."""
    if not plan.private:
        return []
    spends = [Spend(plan.popularity_noise_multiplier, 1.0, 1)]
    if steps := plan.rounds * plan.local_steps:
        spends.append(Spend(plan.noise_multiplier, plan.sample_rate, steps))
    return spends


def second_opinion(spends: Iterable[Spend], delta: float) -> float:
    """Return ε by another library (Google's ``dp-accounting``): PLD, RDP where PLD is too slow."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    def ask(accountant: PLDAccountant | RdpAccountant) -> float:
        for sigma, rate, steps in segments:
            gaussian = GaussianDpEvent(sigma)
            accountant.compose(
                gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), steps
            )
        return float(accountant.get_epsilon(delta))

    segments = _merge(spends)
    if not segments:
        return 0.0
    if len(segments) > _MAX_PLD_SEGMENTS or not _rdp(segments, delta) <= _LARGEST_EPSILON_FOR_PLD:
        return ask(RdpAccountant(orders=[float(order) for order in _ORDERS if order % 1 == 0]))
    return ask(PLDAccountant(value_discretization_interval=1e-4))


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


@lru_cache(maxsize=4096)
def _epsilon(segments: tuple[Segment, ...], delta: float) -> Epsilon:
    if not segments:
        return Epsilon(0.0, "rdp", upper_bound=False)
    if any(sigma == 0 for sigma, _, _ in segments):
        return Epsilon(math.inf, "rdp", upper_bound=False)
    bound = _rdp(segments, delta)
    tight = _prv(segments, delta, bound)
    if tight is None:
        return Epsilon(bound, "rdp", upper_bound=True)
    # Both are bounds; where RDP is the lower one it is the tighter.
    if bound < tight:
        return Epsilon(bound, "rdp", upper_bound=False)
    return Epsilon(tight, "prv", upper_bound=False)


def _rdp(segments: Sequence[Segment], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = sum((_rdp_of_step(sigma, rate) * n for sigma, rate, n in segments), np.zeros(1))
    usable = np.isfinite(total)
    if not usable.any():
        return math.inf
    with _quiet():
        value, _ = get_privacy_spent(orders=_ORDERS[usable], rdp=total[usable], delta=delta)
    # The conversion goes below 0 where there is next to nothing to convert.
    return max(0.0, float(value)) if math.isfinite(value) else math.inf


@lru_cache(maxsize=4096)
def _rdp_of_step(sigma: float, rate: float) -> np.ndarray:
    """Return the Rényi divergence of one step at each of ``_ORDERS``.

    A sampled step has none at fractional orders: their series is slow, and may not converge.
    """
    from opacus.accountants.analysis.rdp import compute_rdp

    values = np.full(_ORDERS.shape, np.inf)
    usable = (np.mod(_ORDERS, 1) == 0) | (rate == 1)
    orders = [float(order) for order in _ORDERS[usable]]
    with _quiet():
        values[usable] = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders)
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what an accountant says of its own grids: the results are checked instead."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # The best Rényi order is the first or last of those tried: still a bound, only looser.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def _prv(segments: Sequence[Segment], delta: float, bound: float) -> float | None:
    """Return PRV's upper bound, or None where it cannot be computed safely."""
    total_steps = sum(steps for _, _, steps in segments)
    if (
        total_steps > MAX_PRV_STEPS
        or len(segments) > MAX_PRV_SEGMENTS
        or delta < MIN_PRV_DELTA
        or not math.isfinite(bound)
    ):
        return None
    low, high = _ERROR_BOUNDS
    wanted = min(max(bound * _RELATIVE_ERROR, low), high)
    # The grid's half width as Opacus takes it (Gopi et al., remark 5.6): RDP tail bounds.
    tail = delta / 1000
    width = _rdp(segments, tail / 4)
    for sigma, rate, _ in segments:
        width = max(width, _rdp([(sigma, rate, 1)], tail / (8 * total_steps)))
    width += 3
    # Points are 2 · width / mesh, and the mesh is proportional to the error.
    density = math.sqrt(total_steps * math.log(12 / tail) / 2)
    error = max(wanted, 2 * width * density / MAX_GRID_POINTS)
    if not error <= high:
        return None
    try:
        return _prv_on_grid(segments, delta, error, width, error / density)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError, IndexError) as failure:
        logger.info("accountant=prv failed=%s fallback=rdp", type(failure).__name__)
        return None


def _prv_on_grid(
    segments: Sequence[Segment], delta: float, error: float, width: float, mesh: float
) -> float | None:
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain

    class BoundedPRVAccountant(PRVAccountant):  # type: ignore[misc] # Opacus has no types.
        """Opacus' accountant on a grid whose size was checked beforehand."""

        def _get_domain(self, **_: object) -> Domain:
            return Domain.create_aligned(-width, width, mesh)

    accountant = BoundedPRVAccountant()
    accountant.history = list(segments)
    with _quiet():
        value = float(accountant.get_epsilon(delta=delta, eps_error=error))
    return value if math.isfinite(value) and value >= 0 else None


@lru_cache(maxsize=512)
def _calibrate(
    target: float, delta: float, share: float, sample_rate: float, steps: int
) -> tuple[float, float]:
    if steps == 0:
        alone = _solve(lambda sigma: epsilon([Spend(sigma, 1.0, 1)], delta).value, target)
        return alone, 0.0
    if sample_rate == 1:
        popularity_scale, step_scale = share**-0.5, (steps / (1 - share)) ** 0.5
        sigma = _solve(
            lambda s: (
                epsilon(
                    [Spend(s * popularity_scale, 1.0, 1), Spend(s * step_scale, 1.0, steps)], delta
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
    while f_left < 0:
        right, f_right = left, f_left
        left -= 0.7
        f_left = excess(left)
    while f_right > 0:
        left, f_left = right, f_right
        right += 0.7
        f_right = excess(right)
    side = 0
    for attempt in range(_MAX_EVALUATIONS):
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
