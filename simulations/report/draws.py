"""What several draws of a training's noise say of one arm.

A private arm is trained ``run.noise_draws`` times with other noise and all else the same. The
first draw is the run's own: the models, recommendations and ledgers that are kept are its.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from common.rng import derive
from simulations.documents import Document

_CONFIDENCE = 0.95
_NOTHING = ("mean", "low", "high", "p", "sd", "mean_low", "mean_high")


def noise_seed(seed: int, draw: int) -> int:
    """Return the seed of a draw's noise; the first, 1, is the run's own."""
    if draw == 1:
        return seed
    return int(derive(seed, purpose="noise-draw", server_round=draw).integers(2**31))


def spread(values: Sequence[float]) -> Document:
    """Return ``mean``, ``sd`` (standard deviation, of K - 1) and the ``values`` of K draws."""
    found = np.asarray(values, dtype=float)
    sd = float(found.std(ddof=1)) if found.size > 1 else math.nan
    return {"mean": float(found.mean()), "sd": sd, "values": found.tolist()}


def gain_over_draws(gains: np.ndarray) -> Document:
    """Return what one more training brings, by an interval over customers and draws of noise.

    Customers and draws are crossed: each customer is served by the model of each draw, and both
    are samples. So the gain of customer i under draw k is taken as ``mean + customer_i + draw_k +
    rest_ik``, with independent terms of unknown variances ``a``, ``b`` and ``e``, estimated by the
    mean squares of the two-way analysis of variance (Searle, Casella & McCulloch 1992, Variance
    Components, ch. 4; Owen 2007, The pigeonhole bootstrap, on why such data need both). For U
    customers and K draws the mean misses

    - ``mean`` itself by a variance of ``a / U + b / K + e / (U K)``;
    - ``mean + draw_k`` of a training that is yet to come by ``b`` more: it gets one draw, not the
      mean of many.

    ``low`` to ``high`` is the interval of the second, which is what whoever trains once can count
    on; ``mean_low`` to ``mean_high`` that of the first. Both take Student's t with Satterthwaite's
    degrees of freedom (1946, Biometrics Bulletin 2), between K - 1 and U - 1. Two draws say
    little of ``b``: from three on the interval holds what it promises.

    Parameters
    ----------
    gains
        ``(K, U)`` gain of each customer under each draw; NaN in all draws for a customer without
        a target, who is left out.

    Returns
    -------
    dict
        ``mean``, 95% interval ``low`` to ``high``, two-sided ``p`` of no gain in one training;
        ``sd`` between draws and their ``values``; ``mean_low`` and ``mean_high``. NaN where there
        are too few customers.
    """
    gains = gains[:, np.isfinite(gains).all(axis=0)]
    draws, customers = gains.shape
    if not customers:
        return {**dict.fromkeys(_NOTHING, math.nan), "values": [math.nan] * draws}
    by_draw, by_customer, mean = gains.mean(axis=1), gains.mean(axis=0), float(gains.mean())
    found = {**spread(by_draw.tolist()), "mean": mean}
    if customers < 2 or draws < 2:
        return {**dict.fromkeys(_NOTHING, math.nan), **found}
    draw_square = customers * float(((by_draw - mean) ** 2).sum()) / (draws - 1)
    customer_square = draws * float(((by_customer - mean) ** 2).sum()) / (customers - 1)
    rest = gains - by_draw[:, None] - by_customer + mean
    rest_square = float((rest**2).sum()) / ((draws - 1) * (customers - 1))
    between = max(0.0, draw_square - rest_square) / customers

    def error(weight: float) -> tuple[float, float]:
        """Return standard error and degrees of freedom where ``between`` weighs so much."""
        from_customers = customer_square / (customers * draws)
        variance = from_customers + weight * between
        # The draws' share before the rest is taken off: it is the less certain by that.
        shares = (from_customers, customers - 1), (weight * draw_square / customers, draws - 1)
        below = sum(share**2 / freedom for share, freedom in shares)
        freedom = variance**2 / below if below else math.inf
        return math.sqrt(variance), min(max(freedom, draws - 1), customers - 1)

    (one, freedom), (many, more_freedom) = error(1 + 1 / draws), error(1 / draws)
    half = one * _quantile(freedom)
    more_half = many * _quantile(more_freedom)
    return {
        **found,
        "low": mean - half,
        "high": mean + half,
        "p": float(2 * stats.t.sf(abs(mean) / one, freedom)) if one else float(not mean),
        "mean_low": mean - more_half,
        "mean_high": mean + more_half,
    }


def shown(arm: Mapping[str, Any]) -> Document:
    """Return an arm of a report with the figures to show and to judge by.

    Those over all draws of the noise, where there are several; else the arm's own.
    """
    draws = arm.get("draws")
    if not draws:
        return dict(arm)
    means = {
        key: {metric: spread["mean"] for metric, spread in draws[key].items()}
        for key in ("metrics", "way")
    }
    found = {**arm, **means, "level_share": draws["level_share"] and draws["level_share"]["mean"]}
    found |= {key: draws[key] for key in ("vs_local", "vs_better", "quintiles")}
    if "per_shop" in arm:
        found["per_shop"] = {
            merchant_id: {**shop, "vs_local": shop["draws"]["vs_local"]}
            for merchant_id, shop in arm["per_shop"].items()
        }
    return found


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom))
