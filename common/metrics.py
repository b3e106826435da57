"""Ranking metrics as mergeable sums: of a customer, a shop, or all shops together.

Every figure is at cut-off 20. A customer's lists are ranked over the products that they had not
bought in training; *targets* are what they bought in the test period.

- ``ndcg@20``: sum over hits of ``1 / log2(rank + 1)``, rank from 1, divided by the same sum for
  ``min(targets, 20)`` hits at the top (Järvelin & Kekäläinen 2002, with binary gains).
- ``recall@20``: hits divided by ``min(targets, 20)``.
- ``tail_ndcg@20``, ``tail_recall@20``: the same on the list of tail products only, counting tail
  targets only.
- ``coverage@20``: share of the catalogue in at least one customer's list.
- ``tail_share@20``: share of all recommendations that are tail products.
- ``gini@20``: Gini coefficient of the exposure counts of all products, 0 (even) to 1.

The first four are means over the customers with at least one (tail) target; the last three are
over every customer who has a list, and merge as exposure vectors.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import numpy as np
import scipy.sparse as sp

from common.errors import InputError
from common.rng import derive

CUTOFF = 20
QUINTILES = 5
PER_CUSTOMER = ("ndcg", "recall", "tail_ndcg", "tail_recall")
METRICS = (
    *(f"{name}@{CUTOFF}" for name in PER_CUSTOMER),
    "coverage@20",
    "tail_share@20",
    "gini@20",
)

#: From this many customers on a mean's bootstrap distribution is normal to far below its own
#: Monte Carlo error, and is drawn as such.
_BOOTSTRAP_LIMIT = 20_000
_BOOTSTRAP_CHUNK = 4_000_000


@dataclass(frozen=True)
class MetricSums:
    """What the metrics of some customers are made of.

    Parameters
    ----------
    ndcg, recall, tail_ndcg, tail_recall
        ``(U,)`` float64, in customer order; NaN for a customer without a (tail) target.
    targets
        ``(U,)`` int64, targets of each customer.
    exposure
        ``(n,)`` int64, how many lists hold each product of the catalogue.
    tail_recommended
        How many places in all lists went to tail products.
    quintile_ndcg, quintile_recall
        ``(5,)`` float64 sums over the customers that ``quintile_customers`` counts; first the
        fifth of products with the fewest customers in training, last the short head.
    quintile_customers
        ``(5,)`` int64, customers with at least one target in that fifth.
    """

    ndcg: np.ndarray
    recall: np.ndarray
    tail_ndcg: np.ndarray
    tail_recall: np.ndarray
    targets: np.ndarray
    exposure: np.ndarray
    tail_recommended: int
    quintile_ndcg: np.ndarray
    quintile_recall: np.ndarray
    quintile_customers: np.ndarray

    @classmethod
    def empty(cls, n_items: int) -> "MetricSums":
        """Return the sums of no customers: merging them changes nothing."""
        none, fifths = np.empty(0), np.zeros(QUINTILES)
        return cls(
            ndcg=none,
            recall=none,
            tail_ndcg=none,
            tail_recall=none,
            targets=np.empty(0, np.int64),
            exposure=np.zeros(n_items, np.int64),
            tail_recommended=0,
            quintile_ndcg=fifths,
            quintile_recall=fifths,
            quintile_customers=np.zeros(QUINTILES, np.int64),
        )

    def merge(self, other: "MetricSums") -> "MetricSums":
        """Return the sums of both sets of customers, these first.

        Raises
        ------
        InputError
            If the two are over catalogues of different size.
        """
        if self.exposure.shape != other.exposure.shape:
            raise InputError(
                f"metrics over {self.exposure.size} and {other.exposure.size} products cannot be "
                "merged: evaluate both on one catalogue"
            )
        customers = {*PER_CUSTOMER, "targets"}
        merged: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            mine, others = getattr(self, name), getattr(other, name)
            merged[name] = np.concatenate([mine, others]) if name in customers else mine + others
        return MetricSums(**merged)

    def per_customer(self, metric: str) -> np.ndarray:
        """Return ``(U,)`` values of a per-customer metric, such as ``tail_ndcg@20``.

        Raises
        ------
        InputError
            If it is no per-customer metric.
        """
        name = metric.removesuffix(f"@{CUTOFF}")
        if name not in PER_CUSTOMER:
            raise InputError(f"{metric!r} is no per-customer metric; there are {PER_CUSTOMER}")
        values: np.ndarray = getattr(self, name)
        return values

    def summary(self) -> dict[str, float]:
        """Return every metric by name; NaN where no customer has a target or a list."""
        recommended = int(self.exposure.sum())
        values = {f"{name}@{CUTOFF}": _mean(getattr(self, name)) for name in PER_CUSTOMER}
        values["coverage@20"] = _ratio(np.count_nonzero(self.exposure), self.exposure.size)
        values["tail_share@20"] = _ratio(self.tail_recommended, recommended)
        values["gini@20"] = gini(self.exposure)
        return values

    def by_quintile(self) -> dict[str, list[float]]:
        """Return ``ndcg@20`` and ``recall@20`` by popularity fifth of the target, rarest first.

        For one customer and one fifth, only targets in it count, where the list of *all* products
        has them: hits keep the rank they have there, and the ideal is ``min(targets in it, 20)``.
        Means over the customers with at least one target in the fifth.
        """
        pairs = {"ndcg@20": self.quintile_ndcg, "recall@20": self.quintile_recall}
        return {
            name: [_ratio(s, n) for s, n in zip(sums, self.quintile_customers, strict=True)]
            for name, sums in pairs.items()
        }


def merge_all(parts: Iterable[MetricSums], n_items: int) -> MetricSums:
    """Return the sums of all parts, in their order."""
    return reduce(MetricSums.merge, parts, MetricSums.empty(n_items))


def evaluate(
    top_all: np.ndarray,
    top_tail: np.ndarray,
    targets: sp.csr_matrix,
    tail: np.ndarray,
    quintiles: np.ndarray | None = None,
) -> MetricSums:
    """Measure ranked lists against targets.

    Parameters
    ----------
    top_all, top_tail
        ``(B, k <= 20)`` int catalogue rows, best first, -1 where a list is shorter; over all
        products and over tail products.
    targets
        ``(B, n)``; a stored non-zero is a target.
    tail
        ``(n,)`` bool, see :func:`tail_mask`.
    quintiles
        ``(n,)`` int from 0, see :func:`popularity_quintiles`; without it the sums by fifth are 0.

    Raises
    ------
    InputError
        If shapes do not fit together, or a list is longer than 20.
    """
    n_customers, n_items = targets.shape
    if top_all.shape[0] != n_customers or top_tail.shape[0] != n_customers:
        raise InputError(
            f"{top_all.shape[0]} and {top_tail.shape[0]} lists for {n_customers} customers"
        )
    if max(top_all.shape[1], top_tail.shape[1]) > CUTOFF or tail.shape != (n_items,):
        raise InputError(
            f"lists hold {CUTOFF} products at most (got {top_all.shape[1]}, {top_tail.shape[1]}) "
            f"and the tail mask one value for each of {n_items} products (got {tail.shape})"
        )
    customers, products = targets.nonzero()
    keys = np.sort(customers.astype(np.int64) * n_items + products)
    hits = _hits(top_all, keys, n_items)
    tail_hits = _hits(top_tail, keys, n_items) & tail[top_tail]
    n_targets = np.bincount(customers, minlength=n_customers)
    n_tail = np.bincount(customers[tail[products]], minlength=n_customers)
    ndcg, recall = _quality(hits, n_targets)
    tail_ndcg, tail_recall = _quality(tail_hits, n_tail)
    shown = top_all[top_all >= 0]
    by_fifth = np.zeros((3, QUINTILES))
    for fifth in range(QUINTILES if quintiles is not None else 0):
        inside = np.asarray(quintiles) == fifth
        n_inside = np.bincount(customers[inside[products]], minlength=n_customers)
        quality = _quality(hits & inside[top_all], n_inside)
        by_fifth[:, fifth] = (*map(np.nansum, quality), np.count_nonzero(n_inside))
    return MetricSums(
        ndcg=ndcg,
        recall=recall,
        tail_ndcg=tail_ndcg,
        tail_recall=tail_recall,
        targets=n_targets,
        exposure=np.bincount(shown, minlength=n_items),
        tail_recommended=int(tail[shown].sum()),
        quintile_ndcg=by_fifth[0],
        quintile_recall=by_fifth[1],
        quintile_customers=by_fifth[2].astype(np.int64),
    )


def tail_mask(counts: np.ndarray) -> np.ndarray:
    """Return ``(n,)`` bool: True outside the short head.

    The short head is the fifth of the products with the most customers in training; of equals,
    the earlier row is in it first.

    Parameters
    ----------
    counts
        ``(n,)`` customers of each product in training, or its popularity by another measure.
    """
    tail = np.ones(counts.size, bool)
    tail[np.argsort(-counts, kind="stable")[: round(counts.size / QUINTILES)]] = False
    return tail


def popularity_quintiles(counts: np.ndarray) -> np.ndarray:
    """Return ``(n,)`` int8, 0 (fewest customers) to 4: fifths of equally many products.

    Fifth 4 is the short head of :func:`tail_mask`.
    """
    n = counts.size
    order = np.argsort(-counts, kind="stable")
    cuts = [round(n * fifth / QUINTILES) for fifth in range(1, QUINTILES)]
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    fifths = QUINTILES - 1 - np.searchsorted(cuts, place, side="right")
    return np.asarray(fifths, np.int8)


def gini(exposure: np.ndarray) -> float:
    """Return the Gini coefficient of ``(n,)`` counts; NaN when nothing was shown."""
    total = float(exposure.sum())
    if not total:
        return float("nan")
    n = exposure.size
    ranks = np.arange(1, n + 1)
    return float((2 * ranks - n - 1) @ np.sort(exposure) / (n * total))


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, seed: int, draws: int = 2000
) -> dict[str, float]:
    """Return how much better ``a`` is than ``b`` for the same customers.

    Customers are drawn with replacement (Efron & Tibshirani 1993, ch. 13: percentile interval).
    Those without a value in either are left out.

    Parameters
    ----------
    a, b
        ``(U,)`` values of the same customers in the same order; NaN where there is none.

    Returns
    -------
    dict
        ``mean`` difference, 95% interval ``low`` to ``high``, two-sided ``p`` of no difference;
        all NaN without customers, and all but the mean with a single one, of whom every draw is
        the same.
    """
    difference = a - b
    difference = difference[np.isfinite(difference)]
    n = difference.size
    mean = float(difference.mean()) if n else float("nan")
    if n < 2:
        return {"mean": mean, **dict.fromkeys(("low", "high", "p"), float("nan"))}
    generator = derive(seed, purpose="paired-bootstrap")
    if n > _BOOTSTRAP_LIMIT:
        means = generator.normal(mean, difference.std() / np.sqrt(n), draws)
    else:
        step = max(1, _BOOTSTRAP_CHUNK // n)
        sizes = [min(step, draws - start) for start in range(0, draws, step)]
        chunks = [
            difference[generator.integers(0, n, (size, n), dtype=np.int32)].mean(axis=1)
            for size in sizes
        ]
        means = np.concatenate(chunks)
    low, high = np.quantile(means, [0.025, 0.975])
    extreme = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    p = min(1.0, 2 * (extreme + 1) / (draws + 1))
    return {"mean": mean, "low": float(low), "high": float(high), "p": p}


def _hits(top: np.ndarray, keys: np.ndarray, n_items: int) -> np.ndarray:
    """Return ``(B, k)`` bool: which places hold a target; ``keys`` are sorted row * n + item."""
    if not keys.size:
        return np.zeros(top.shape, bool)
    wanted = np.arange(top.shape[0], dtype=np.int64)[:, None] * n_items + top
    found = keys[np.minimum(np.searchsorted(keys, wanted), keys.size - 1)] == wanted
    return np.asarray(found & (top >= 0))


def _quality(hits: np.ndarray, n_targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(B,)`` ndcg and recall; NaN where ``n_targets`` is 0."""
    gains = 1 / np.log2(np.arange(CUTOFF) + 2)
    possible = np.minimum(n_targets, CUTOFF)
    ideal = np.concatenate([[np.nan], np.cumsum(gains)])[possible]
    ndcg = hits @ gains[: hits.shape[1]] / ideal
    return ndcg, hits.sum(axis=1) / np.where(possible, possible, np.nan)


def _mean(values: np.ndarray) -> float:
    return _ratio(np.nansum(values), np.count_nonzero(np.isfinite(values)))


def _ratio(part: float | np.number[Any], whole: int | np.integer[Any]) -> float:
    return float(part / whole) if whole else float("nan")
