"""Rounds what leaves to a fixed grid, so that a value's last bits say nothing of the data.

Noise added in floating point leaves gaps between the values that can come out, and which gaps
depends on the data (Mironov 2012, "On significance of the least significant bits for differential
privacy"). On a grid that is the same whatever the data, far finer than the noise and far coarser
than float32's rounding of what was added, those bits are gone. That mitigates the attack; it is no
proof: ε is still that of real numbers.
"""

import math

import numpy as np

from common.errors import PrivacyError
from common.protocol import TrainingPlan

# Steps of the grid are the noise's standard deviation over 2^10 to 2^11.
_FINER = 10
# float32 holds no step below it exactly.
_SMALLEST = -126


def popularity_step(plan: TrainingPlan) -> float:
    """Return the grid's step for the popularity release, a power of two; 0: no grid."""
    return _step(plan, plan.popularity_noise_multiplier)


def delta_step(plan: TrainingPlan, server_round: int) -> float:
    """Return the grid's step for a round's delta, a power of two; 0: no grid."""
    sensitivity = plan.clipping_norm(server_round) * plan.learning_rate / plan.batch_normalizer
    return _step(plan, plan.noise_multiplier * sensitivity * math.sqrt(plan.local_steps))


def is_swallowed(plan: TrainingPlan, server_round: int, largest: float) -> bool:
    """Return whether a round's noise may be lost beside a weight of this size.

    Where neighbouring float32 numbers lie further apart than the grid of what is released, a sum
    and its noise are rounded before the grid is: the one could then show and the other not.
    """
    return plan.private and float(np.spacing(np.float32(largest))) > delta_step(plan, server_round)


def on_grid(values: np.ndarray, step: float) -> np.ndarray:
    """Return float32 of the nearest multiples of ``step``; with step 0, of the values."""
    if not step:
        return values.astype(np.float32)
    rounded = np.asarray(values, dtype=np.float64) / step
    np.rint(rounded, out=rounded)
    rounded *= step
    return rounded.astype(np.float32)


def grid_step(std: float) -> float:
    """Return the grid's step for noise of a standard deviation, a power of two.

    Raises
    ------
    PrivacyError
        If float32 can't hold it.
    """
    exponent = math.floor(math.log2(std)) - _FINER
    if exponent < _SMALLEST:
        raise PrivacyError(
            f"noise of standard deviation {std:g} is too small for float32: raise max_grad_norm or "
            "the learning rate, or lower batch_normalizer"
        )
    return math.ldexp(1.0, exponent)


def _step(plan: TrainingPlan, std: float) -> float:
    return grid_step(std) if plan.private and std > 0 else 0.0
