"""From noisy counts to popularity rates: empirical Bayes along public product content.

All of it is post-processing of what was released: it costs no privacy.
"""

from collections.abc import Sequence

import numpy as np

from common.features import Feature

_FLOOR = 0.02
#: A group's mean counts as much as that of the coarser groups when it is of so many products.
_LIKE_PRIOR = 3.0


def rates(counts: np.ndarray, noise: float | np.ndarray, features: Sequence[Feature]) -> np.ndarray:
    """Return (n,) float32 popularity rates, nonnegative, summing to 1 (all 0 without any count).

    A product that few buy drowns in noise, its group does not. From the coarsest feature to the
    finest, each group's mean is shrunk to the mean of what came before, and at last each product
    to its group, by how much true spread there is beside the noise (Efron & Morris 1973, section
    2). A product's prior spread is taken proportional to its prior mean: popularity has a heavy
    tail.

    Parameters
    ----------
    counts
        (n,) sums over shops, with noise.
    noise
        Standard deviation of the noise in every count, or (n,) in each; 0 in all returns the
        counts' own shares. Where it is infinite nothing was released: the rate is 0.
    features
        Kinds of features; those with one value a product are used.
    """
    counts = counts.astype(np.float64)
    released = np.broadcast_to(np.isfinite(noise), counts.shape)
    if isinstance(noise, np.ndarray) and not released.all():
        found = np.zeros(len(counts), np.float32)
        known = [_among(feature, released) for feature in features]
        found[released] = rates(counts[released], noise[released], known)
        return found
    if np.any(noise > 0) and len(counts):
        counts = _shrunk(counts, noise, features)
    kept = np.maximum(counts, 0.0)
    shares: np.ndarray = (kept / (kept.sum() or 1.0)).astype(np.float32)
    return shares


def of_like(values: np.ndarray, known: np.ndarray, features: Sequence[Feature]) -> np.ndarray:
    """Return (n,) what products of the same content are like, in the mean over the known ones.

    From the coarsest feature to the finest, each group's mean is shrunk to that of the coarser
    groups before it, which counts as much as a few products.

    Parameters
    ----------
    values
        (n,) popularity.
    known
        (n,) bool: products of which it is known.
    features
        Kinds of features; those with one value a product are used.
    """
    estimate = np.full(len(values), float(values[known].mean()) if known.any() else 0.0)
    single = [f for f in features if len(f.rows) and len(np.unique(f.rows)) == len(f.rows)]
    for feature in sorted(single, key=lambda f: len(f.values)):
        inside = known[feature.rows]
        rows, codes = feature.rows[inside], feature.codes[inside]
        count = np.bincount(codes, minlength=len(feature.values))[feature.codes]
        total = np.bincount(codes, values[rows], len(feature.values))[feature.codes]
        prior = _LIKE_PRIOR * estimate[feature.rows]
        estimate[feature.rows] = (total + prior) / (count + _LIKE_PRIOR)
    return estimate


def _among(feature: Feature, kept: np.ndarray) -> Feature:
    """Return a feature of the products that are kept alone, by their new rows."""
    inside = kept[feature.rows]
    values, codes = np.unique(feature.codes[inside], return_inverse=True)
    rows = (np.cumsum(kept) - 1)[feature.rows[inside]]
    return Feature(feature.name, feature.values[values], rows, codes)


def _mean_variance(noise: float | np.ndarray, feature: Feature, members: np.ndarray) -> np.ndarray:
    """Return (V,) the variance of the noise in the mean count of each value's products."""
    if not isinstance(noise, np.ndarray):
        return np.asarray(noise**2 / members)
    squares = np.bincount(feature.codes, (noise**2)[feature.rows], len(members))
    return np.asarray(squares / members**2)


def _shrunk(
    counts: np.ndarray, noise: float | np.ndarray, features: Sequence[Feature]
) -> np.ndarray:
    size = len(counts)
    estimate = np.full(size, max(float(counts.mean()), 0.0))
    single = [f for f in features if len(f.rows) and len(np.unique(f.rows)) == len(f.rows)]
    for feature in sorted(single, key=lambda f: len(f.values)):
        members = np.bincount(feature.codes, minlength=len(feature.values))
        mean = np.bincount(feature.codes, counts[feature.rows], len(members)) / members
        prior = np.bincount(feature.codes, estimate[feature.rows], len(members)) / members
        variance = _mean_variance(noise, feature, members)
        spread = max(float(np.average((mean - prior) ** 2 - variance, weights=members)), 0.0)
        posterior = prior + spread / (spread + variance) * (mean - prior)
        estimate[feature.rows] = posterior[feature.codes]
    estimate = np.maximum(estimate, 1e-6)
    relative = float(np.mean((counts - estimate) ** 2 - noise**2) / np.mean(estimate**2))
    spread_of_product = max(relative, 1e-6) * estimate**2
    weight = spread_of_product / (spread_of_product + noise**2)
    posterior = estimate + weight * (counts - estimate)
    kept: np.ndarray = np.maximum(posterior, _FLOOR * estimate)
    return kept
