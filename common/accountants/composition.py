"""Two bounds on the ε of Poisson-sampled Gaussian steps together: Rényi's, and PRV's where it runs.

:func:`rdp` is cheap and cannot fail. :func:`prv` (Gopi et al. 2021, "Numerical Composition of
Differential Privacy", arXiv 2106.02848) is tight, on a grid that is checked beforehand. What one
step does comes from Opacus, by way of :mod:`common.accountants.opacus_analysis`.
"""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np

from common.accountants.opacus_analysis import domain_module, prv_module, rdp_module

logger = logging.getLogger(__name__)

#: (noise multiplier, sample rate, steps).
Segment = tuple[float, float, int]

#: PRV's time and memory grow with its grid: it is coarsened towards this many points (4 MB an
#: array), and above so many over all segments RDP has to do.
GRID_POINTS = 1 << 19
MAX_GRID_POINTS = 1 << 22
# Below this δ the float64 convolution of PRV is not to be trusted.
MIN_PRV_DELTA = 1e-10
# PRV's answer lies at most twice its error above the truth: (share of ε, at least) of the fine and
# the coarse grid.
_ERRORS = ((0.001, 5e-4), (0.004, 4e-3))
_ULPS = 8
# Beyond so many σ there is less mass than float64 tells from none, and no density at all.
_FAR, _REACH, _MEAN_POINTS = 10.0, 38.0, 20_001
# Large orders matter for small ε, small and fractional ones for large ε.
ORDERS = np.array(
    [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [80, 96, 128, 192, 256, 512]
)


def rdp(segments: Sequence[Segment], delta: float) -> float:
    """Return an upper bound by Rényi differential privacy; infinite where there is none."""
    total = sum((_rdp_of_step(sigma, rate) * n for sigma, rate, n in segments), np.zeros(1))
    usable = np.isfinite(total)
    if not usable.any():
        return math.inf
    with _quiet():
        value, _ = rdp_module().get_privacy_spent(
            orders=ORDERS[usable], rdp=total[usable], delta=delta
        )
    # The conversion goes below 0 where there is next to nothing to convert.
    return max(0.0, float(value)) if math.isfinite(value) else math.inf


@lru_cache(maxsize=4096)
def _rdp_of_step(sigma: float, rate: float) -> np.ndarray:
    """Return the Rényi divergence of one step at each of ``ORDERS``.

    A sampled step has none at fractional orders: their series is slow, and may not converge.
    """
    values = np.full(ORDERS.shape, np.inf)
    usable = (np.mod(ORDERS, 1) == 0) | (rate == 1)
    orders = [float(order) for order in ORDERS[usable]]
    with _quiet():
        values[usable] = rdp_module().compute_rdp(
            q=rate, noise_multiplier=sigma, steps=1, orders=orders
        )
    return values


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what an accountant says of its own grids: the results are checked instead."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # The best Rényi order is the first or last of those tried: still a bound, only looser.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield


def prv(segments: Sequence[Segment], delta: float, bound: float) -> float | None:
    """Return PRV's upper bound, or None where it cannot be computed safely.

    Gopi et al. 2021, algorithm 1: the grid's half width is that of remark 5.6 (Rényi tail bounds),
    its mesh that of theorem 5.5, both for the error that the answer may have.

    Of sampled steps a unit added and a unit removed are not the same, and that one of the two costs
    more in every composition is only conjectured (Lebeda et al. 2024, arXiv 2405.20769): both are
    composed. Of their Rényi divergences removal's is proven to be the larger (Mironov et al. 2019,
    arXiv 1908.10530), so :func:`rdp`, and the grid that follows from it, do for both.
    """
    total_steps = sum(steps for _, _, steps in segments)
    if delta < MIN_PRV_DELTA or not math.isfinite(bound):
        return None
    tail = delta / 1000
    width = rdp(segments, tail / 4)
    for sigma, rate, _ in segments:
        width = max(width, rdp([(sigma, rate, 1)], tail / (8 * total_steps)))
    width += 3
    # Points are 2 · width / mesh, and the mesh is proportional to the error: where the grid would
    # be large, a larger error does, as long as it is small beside ε.
    density = math.sqrt(total_steps * math.log(12 / tail) / 2)
    fine, coarse = (max(bound * share, least) for share, least in _ERRORS)
    error = max(fine, min(coarse, 2 * width * density / GRID_POINTS))
    points = 2 * width * density / error
    if not points * len(segments) <= MAX_GRID_POINTS:
        return None
    grid = (error, error / density, math.ceil(points))
    try:
        found = _prv_on_grid(segments, delta, *grid)
        if found is None or all(rate == 1 for _, rate, _ in segments):
            return found
        added = _prv_on_grid(segments, delta, *grid, added=True)
        return None if added is None else max(found, added)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError, IndexError) as failure:
        logger.info("accountant=prv failed=%s fallback=rdp", type(failure).__name__)
        return None


def _prv_on_grid(
    segments: Sequence[Segment],
    delta: float,
    error: float,
    mesh: float,
    points: int,
    *,
    added: bool = False,
) -> float | None:
    """Compose all segments by one product of Fourier transforms on ``points`` points or more.

    The losses are those of outputs with the unit there, over without; ``added``: the other way.

    A length that suits the transform, and one transform a segment: 5 segments of 10,000 steps
    together take 0.4 s, where composing them pair by pair takes 2 s.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    of_step = prv_module().PoissonSubsampledGaussianPRV
    half = next_fast_len(points // 2 + 2, real=True)
    # Zero is on the grid, at half - 1: rolling the circular convolution below relies on it.
    domain = domain_module().Domain(-(half - 1) * mesh, half * mesh, 2 * half)
    edges = (np.arange(2 * half + 1) - (half - 0.5)) * mesh
    spectrum: np.ndarray = np.ones(half + 1, dtype=np.complex128)
    total_steps, shift = 0, 0.0
    with _quiet():
        for sigma, rate, steps in segments:
            # One step's loss lies in a small part of the grid; beyond it float64 sees no mass.
            ends = _loss(np.array([-_FAR * sigma, 1 + _FAR * sigma]), sigma, rate)
            first, last = np.searchsorted(edges, -ends[::-1] if added else ends)
            below, inside = np.zeros(len(edges)), edges[first:last]
            below[first:last] = (
                _below_if_added(inside, sigma, rate) if added else of_step(rate, sigma).cdf(inside)
            )
            below[last:] = 1.0
            mass = np.diff(below)
            # What rounding a loss to the grid does to its mean, which is made good exactly.
            moved = _mean_loss(sigma, rate, added) - float(np.dot(domain.ts, mass))
            if not abs(moved) < mesh / 2:
                return None
            spectrum *= _power(rfft(mass), steps)
            total_steps, shift = total_steps + steps, shift + steps * moved
        mass = irfft(spectrum, 2 * half)
        mass = np.roll(mass, total_steps - 1 + (half if total_steps % 2 == 0 else 0))
        # Rounding in the transforms, a few ulp a step of each coefficient, over the whole grid.
        rounding = float(
            _ULPS * total_steps * np.finfo(float).eps * (2 * half) ** 0.5 * np.linalg.norm(mass)
        )
        if not rounding < delta / 10:
            return None
        composed = prv_module().DiscretePRV(pmf=mass, domain=domain.shift_right(shift))
        slack = delta / 1000 + rounding
        value = float(composed.compute_epsilon(delta, slack, error)[2])
    return value if math.isfinite(value) and value >= 0 else None


def _power(values: np.ndarray, exponent: int) -> np.ndarray:
    """Return ``values ** exponent`` by squaring: ten times faster than numpy's for complex ones."""
    result, square = np.ones_like(values), values
    while exponent:
        if exponent & 1:
            result = result * square
        square, exponent = square * square, exponent >> 1
    return result


def _loss(x: np.ndarray, sigma: float, rate: float) -> np.ndarray:
    """Return the privacy loss of one step at outputs ``x``; it rises in ``x``."""
    exponent = (2 * x - 1) / (2 * sigma**2)
    if rate == 1:
        return exponent
    loss: np.ndarray = np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)
    return loss


def _below_if_added(t: np.ndarray, sigma: float, rate: float) -> np.ndarray:
    """Return how likely a step's loss is at most ``t`` where outputs are without the unit.

    The loss is minus :func:`_loss` then, at outputs of N(0, σ²), and at most ``-log(1 - q)``.
    """
    from scipy.special import ndtr

    ratio = (np.expm1(-t) + rate) / rate
    least = np.where(ratio > 0, sigma**2 * np.log(np.where(ratio > 0, ratio, 1.0)) + 0.5, -np.inf)
    return np.asarray(ndtr(-least / sigma))


def _mean_loss(sigma: float, rate: float, added: bool) -> float:
    """Return the mean privacy loss of one step: KL of (1-q) N(0, σ²) + q N(1, σ²) from N(0, σ²).

    ``added``: that of N(0, σ²) from the mixture.

    By the trapezoidal rule, which converges geometrically for analytic functions that vanish at
    both ends. Cutting the loss off at the grid's ends only lowers it.
    """
    reach = _REACH * sigma
    x, spacing = np.linspace(-reach, 1 + reach, _MEAN_POINTS, retstep=True)
    # With nobody there the loss is minus what it is with somebody.
    there = 0.0 if added else rate
    density = (1 - there) * np.exp(-((x / sigma) ** 2) / 2)
    density += there * np.exp(-(((x - 1) / sigma) ** 2) / 2)
    losses = -_loss(x, sigma, rate) if added else _loss(x, sigma, rate)
    mean = np.dot(density, losses) * spacing / (sigma * math.sqrt(2 * math.pi))
    return float(mean)
