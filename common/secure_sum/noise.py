"""How much noise each shop adds to a sum, and what the sum's noise costs.

Each shop adds discrete Gaussian noise N_Z(0, σ₁²) to every coordinate, with σ₁² a share ``1 / m``
of the planned variance, ``m`` the plan's number of honest survivors. The sum of ``m`` of them is no
discrete Gaussian, but as good as one: Kairouz, Liu & Steinke 2021 (arXiv 2102.06387), proposition
14, bounds the Rényi divergence of order α between the sum and its shift by whole numbers Δ by
``α/2 (‖Δ‖₂ / (σ₁ √m) + τ √d)²``, with ``τ = 10 Σ_{k=1}^{m-1} exp(-2π² σ₁² k / (k+1))``. That is
the divergence of a Gaussian mechanism with a noise multiplier that is smaller by :func:`tau`'s
part. With σ₁ of :data:`LEAST_SHARE` or more that part is below 10^-250 for any vector that fits a
machine: :func:`accounted_multiplier` subtracts it all the same. More noise than that, from other
survivors, only helps; what colluding shops add is not counted.

Rows that only some shops stock have fewer sure honest survivors, ``m_r < m``, and larger shares,
``σ² / m_r`` (:mod:`common.secure_sum.layout`). The bound is a sum over coordinates, and ``τ`` falls
with fewer and larger shares: what holds for ``m`` in every coordinate holds for any mixture.
"""

import math

from common.errors import PrivacyError
from common.protocol import TrainingPlan

#: Least σ₁, in whole steps.
LEAST_SHARE = 8.0
# More coordinates than any vector has.
_MOST_COORDINATES = 2**40


def share_std(plan: TrainingPlan, multiplier: float, honest: int | None = None) -> float:
    """Return σ₁ in whole steps, of noise that is ``multiplier`` times the clipping norm in all.

    Parameters
    ----------
    honest
        Honest survivors that are sure to add to a number; None: those of the plan.

    Raises
    ------
    PrivacyError
        If it is so small that a sum of shares is not as good as one draw.
    """
    if plan.honest_shops < 1:
        raise PrivacyError(
            'trust = "federation" needs honest_shops: how many survivors of every exchange do not '
            "collude with the observer"
        )
    shares = plan.honest_shops if honest is None else honest
    std = multiplier * plan.noise_steps / math.sqrt(shares)
    if not LEAST_SHARE <= std <= 2.0**30:
        raise PrivacyError(
            f"a shop's share of the noise has a standard deviation of {std:.4g} steps; at least "
            f"{LEAST_SHARE:g} are needed, and 2^30 at most: choose another noise_steps"
        )
    # Rounded up, past what three roundings may have taken: never less noise than is accounted for.
    return std * (1 + 2.0**-50)


def tau(std: float, shares: int) -> float:
    """Return τ of the proposition for ``shares`` draws of standard deviation ``std`` each."""
    return 10 * sum(
        math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in range(1, min(shares, 64))
    ) + 10 * max(shares - 64, 0) * math.exp(-2 * math.pi**2 * std**2 * 64 / 65)


def accounted_multiplier(
    multiplier: float, std: float, shares: int, coordinates: int = _MOST_COORDINATES
) -> float:
    """Return the noise multiplier of the Gaussian mechanism that costs what the sum costs."""
    return 1 / (1 / multiplier + tau(std, shares) * math.sqrt(coordinates))
