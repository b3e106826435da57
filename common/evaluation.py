"""A shop's released figures of the global model: what the numbers are, and how to read them.

A shop that allows it releases one vector: over its customers, sums of how well the global model and
plain popularity foresee what they took last, with noise. Every customer adds a vector of norm 1 at
most. Counts are weighed less than figures: an error in a count moves a mean by the mean only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import ProtocolError

#: Name of the released array, and of its entries.
EVALUATION = "evaluation"
EVALUATION_NAMES = (
    "customers",
    "tail_customers",
    "ndcg@20",
    "tail_ndcg@20",
    "popularity_ndcg@20",
    "popularity_tail_ndcg@20",
)
_COUNT, _FIGURE = 0.3, 0.45
#: (K,) what one customer's entries, each from 0 to 1, are multiplied with: Σ scale² is at most 1.
EVALUATION_SCALES = np.array([_COUNT, _COUNT, *[_FIGURE] * 4])
#: Fewer customers than so many standard deviations of the noise in their count are not told from
#: none.
_CLEAR = 3.0


@dataclass(frozen=True)
class ReleasedEvaluation:
    """One shop's release: the (K,) noisy sums, and the noise's standard deviation in each."""

    sums: np.ndarray
    noise_multiplier: float


def check_evaluation(array: np.ndarray) -> None:
    """Refuse what is no released vector.

    Raises
    ------
    ProtocolError
        If the shape, the type or a value is wrong.
    """
    if array.shape != (len(EVALUATION_NAMES),) or array.dtype != np.float32:
        raise ProtocolError(
            f"released figures are {len(EVALUATION_NAMES)} float32 numbers, not "
            f"{array.dtype} {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ProtocolError("released figures hold values that are not finite")


def read_evaluation(releases: Sequence[ReleasedEvaluation]) -> dict[str, Any]:
    """Return what one shop's release says, or those of several shops together.

    Returns
    -------
    dict
        ``shops``; ``customers`` and ``customers_error``; ``figures``: for each of
        ``EVALUATION_NAMES`` after the counts ``mean``, ``noise_error`` (one standard deviation, of
        the noise alone) and ``error`` (at most so much with the customers' own spread: values from
        0 to 1 of mean m vary by ``m (1 - m)`` at most). None where the noise hides how many
        customers there are.
    """
    k = len(EVALUATION_NAMES)
    sums, variances = np.zeros(k), np.zeros(k)
    for release in releases:
        check_evaluation(np.asarray(release.sums))
        sums += np.asarray(release.sums, np.float64) / EVALUATION_SCALES
        variances += (release.noise_multiplier / EVALUATION_SCALES) ** 2
    values = dict(zip(EVALUATION_NAMES, sums.tolist(), strict=True))
    spread = dict(zip(EVALUATION_NAMES, variances.tolist(), strict=True))
    figures = {
        name: _mean(name, values, spread) for name in EVALUATION_NAMES if name.endswith("@20")
    }
    return {
        "shops": len(releases),
        "customers": max(values["customers"], 0.0),
        "customers_error": math.sqrt(spread["customers"]),
        "figures": figures,
    }


def _mean(
    name: str, values: dict[str, float], variances: dict[str, float]
) -> dict[str, float] | None:
    counted = "tail_customers" if "tail_" in name else "customers"
    count = values[counted]
    if count <= _CLEAR * math.sqrt(variances[counted]) or count <= 0:
        return None
    ratio = values[name] / count
    mean = min(max(ratio, 0.0), 1.0)
    # First order: d(s / n) = (ds - mean dn) / n.
    noise = (variances[name] + mean**2 * variances[counted]) / count**2
    return {
        "mean": mean,
        "noise_error": math.sqrt(noise),
        "error": math.sqrt(noise + mean * (1.0 - mean) / count),
    }
