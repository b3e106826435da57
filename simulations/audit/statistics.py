"""The statistics of audits and attacks: bounds with confidence, and what an ε allows at most."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from common.accounting import Spend, epsilon
from common.errors import ConfigError

#: Values of δ at which a promise is looked at, apart from its own.
_DELTAS = (1e-9, 1e-7, *(float(d) for d in np.geomspace(1e-6, 0.5, 24)))

# e to the power of 710 is no float.
_LARGEST = 700.0

Curve = Callable[[np.ndarray], np.ndarray]


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon_claimed: float, delta: float
) -> float:
    """Return how likely so many correct guesses are at most, if the mechanism is (ε, δ)-private.

    Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846), theorem 5.2: of ``guesses`` guesses about
    ``canaries`` fair coins, ``P[correct ≥ v] ≤ β + α m δ`` with ``W ~ Binomial(r, e^ε/(e^ε + 1))``,
    ``β = P[W ≥ v]`` and ``α = max_i 2/i · P[v > W ≥ v - i]``. It holds with any dependence between
    the guesses, for which canaries to guess may be chosen by what was released.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ConfigError(f"{correct} correct of {guesses} guesses about {canaries} canaries")
    chance = 1.0 / (1.0 + math.exp(-epsilon_claimed))
    tail = float(stats.binom.sf(correct - 1, guesses, chance))
    if delta == 0 or correct == 0:
        return min(tail, 1.0)
    steps = np.arange(1, correct + 1)
    near = np.cumsum(stats.binom.pmf(correct - steps, guesses, chance))
    return min(tail + 2.0 * float(np.max(near / steps)) * canaries * delta, 1.0)


def one_run_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the largest ε that the guesses refute with ``confidence``; 0 where they refute none.

    ``guesses`` must be fixed before the release is looked at: it is one test, not the best of many.
    """
    level = 1.0 - confidence

    def refuted(value: float) -> bool:
        return one_run_p_value(canaries, guesses, correct, value, delta) < level

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, high + 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def guess(scores: np.ndarray, inside: np.ndarray, guesses: int) -> tuple[int, int]:
    """Guess that the highest scores are inside and the lowest outside, half of the guesses each.

    Returns
    -------
    tuple
        Correct guesses, and guesses; no guess is made about the scores between (algorithm 1).
    """
    half = min(guesses, len(scores)) // 2
    order = np.argsort(scores, kind="stable")
    # Not [-half:], which is everybody where there is nobody to guess about.
    highest, lowest = order[len(order) - half :], order[:half]
    return int(np.count_nonzero(inside[highest]) + np.count_nonzero(~inside[lowest])), 2 * half


def clopper_pearson(hits: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion (Clopper & Pearson 1934).

    Counts need not be whole: those of clustered decisions are scaled to their effective number.
    """
    if trials <= 0:
        return 0.0, 1.0
    tail = (1.0 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def clustered_proportion(
    hits: np.ndarray, trials: np.ndarray, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return a proportion and its interval from the counts of clusters, ``(M,)`` each.

    Decisions about one model share its noise. Korn & Graubard 1998 ("Confidence intervals for
    proportions with small expected number of positive counts"): Clopper and Pearson's interval at
    ``n / deff``, where the design effect ``deff`` (at least 1) is how much more the proportion
    varies between clusters than independent decisions would, widened by
    ``(t_{n-1} / t_{M-1})²`` for how few clusters tell it. At a share of exactly 0 or 1 no cluster
    differs from another, and the interval is that of independent decisions: too narrow where the
    decisions of a cluster go together.
    """
    total = float(trials.sum())
    if total <= 0:
        return math.nan, 0.0, 1.0
    share = float(hits.sum()) / total
    clusters = int(np.count_nonzero(trials))
    effective = total
    if clusters > 1 and 0.0 < share < 1.0:
        residual = hits - share * trials
        between = float((residual**2).sum()) * clusters / (clusters - 1) / total**2
        design = max(between * total / (share * (1.0 - share)), 1.0)
        tail = (1.0 - confidence) / 2
        ratio = stats.t.ppf(tail, total - 1) / stats.t.ppf(tail, clusters - 1)
        effective = min(total / design * float(ratio) ** 2, total)
    low, high = clopper_pearson(share * effective, effective, confidence)
    return share, low, high


def area_under_curve(members: np.ndarray, others: np.ndarray) -> float:
    """Return the chance that a member scores above one who is none; ties count half."""
    if not (members.size and others.size):
        return math.nan
    ranks = stats.rankdata(np.concatenate([members, others]))[: members.size]
    above = float(ranks.sum()) - members.size * (members.size + 1) / 2
    return above / (members.size * others.size)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of independent ``values`` and Student's interval."""
    kept = values[np.isfinite(values)]
    if not kept.size:
        return math.nan, math.nan, math.nan
    mean = float(kept.mean())
    if kept.size == 1:
        return mean, math.nan, math.nan
    quantile = float(stats.t.ppf((1 + confidence) / 2, kept.size - 1))
    half = quantile * float(kept.std(ddof=1)) / math.sqrt(kept.size)
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Roc:
    """A ROC curve with the counts of each model, at thresholds fixed over all of them.

    Attributes
    ----------
    thresholds
        ``(T,)`` descending: a score at least as large is called a member.
    true, false
        ``(T, M)`` members and others called members.
    members, others
        ``(M,)`` how many there are.
    """

    thresholds: np.ndarray
    true: np.ndarray
    false: np.ndarray
    members: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, inside: np.ndarray, points: int = 100) -> "Roc":
        """Return the curve of ``(M, T)`` scores, NaN where a target plays no part in a model."""
        known = np.isfinite(scores)
        values = np.unique(scores[known])[::-1]
        if values.size > points:
            # Dense where few others are called members: that end is the one that hurts.
            share = np.concatenate(
                [
                    np.geomspace(1, values.size, points // 2),
                    np.linspace(1, values.size, points // 2),
                ]
            )
            values = values[np.unique(share.astype(int)) - 1]
        calls = scores[None, :, :] >= values[:, None, None]
        return cls(
            values,
            (calls & (known & inside)).sum(axis=2),
            (calls & (known & ~inside)).sum(axis=2),
            (known & inside).sum(axis=1),
            (known & ~inside).sum(axis=1),
        )


def odds(epsilon_claimed: float) -> float:
    """Return ``e^ε``; of an ε whose own is no float, one that allows as much as any."""
    return math.exp(min(epsilon_claimed, _LARGEST))


def promise_curve(spends: Iterable[Spend], claimed_epsilon: float, delta: float) -> Curve:
    """Return FPR ``(K,)`` -> the largest TPR that the promise allows.

    ``TPR ≤ e^ε FPR + δ`` and its mirror ``1 - FPR ≤ e^ε (1 - TPR) + δ`` (Kairouz, Oh & Viswanath
    2015, theorem 2.1), for the claimed pair and for every other (ε(δ), δ) that the accountant
    gives for the same ``spends``: together they are much tighter than one pair.
    """
    spent = list(spends)
    pairs = [(claimed_epsilon, delta)] + [(epsilon(spent, d).value, d) for d in _DELTAS if spent]
    pairs = [(e, d) for e, d in pairs if math.isfinite(e)]

    def largest(fpr: np.ndarray) -> np.ndarray:
        bound = np.ones_like(fpr, dtype=np.float64)
        for value, d in pairs:
            factor = odds(value)
            bound = np.minimum(bound, factor * fpr + d)
            bound = np.minimum(bound, 1.0 - (1.0 - fpr - d) / factor)
        capped: np.ndarray = np.maximum(bound, fpr)
        return capped

    return largest


def twice(curve: Curve) -> Curve:
    """Return the curve of two units' change: remove one, add another."""
    return lambda fpr: curve(curve(fpr))
