"""Rules that put shops' arrays together so that a few bad shops can't decide what comes out.

Arrays in, arrays out, no Flower types. A rule reads the *deltas* of one exchange, never whole
models: distances between models drown in what all shops share. Its one constant, the share of
shops that may be bad, is public, and so is the rule; an attacker knows both.

Known rules, for comparison: the coordinate-wise median and trimmed mean (Yin et al. 2018,
"Byzantine-Robust Distributed Learning"), Krum and Multi-Krum (Blanchard et al. 2017, "Machine
Learning with Adversaries", section 3), and a bound on a delta's norm (Sun et al. 2019, "Can You
Really Backdoor Federated Learning?"). They take coordinates or whole deltas for their unit. In a
recommender most rows are of products that few shops have sold at all: a median of them is zero,
and a delta of honest norm can spend all of it on one row. ``tail-aware`` bounds what a shop may do
to one *product*.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import gammainc, gammaincinv

from common.errors import ProtocolError
from common.protocol import POPULARITY, Arrays
from server.aggregation import Contribution, sum_popularity, weighted_mean

DefenceName = Literal[
    "none", "median", "trimmed-mean", "krum", "multi-krum", "norm-bound", "tail-aware"
]

# Values of one block of rows of all shops that are held at a time, in float64.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Defence:
    """One rule, for updates and for the popularity release.

    Parameters
    ----------
    name
        ``none`` is the plain mean.
    bad_share
        Share of the shops in an exchange that may be bad. Of ``n`` shops ``⌈bad_share n⌉`` are held
        to be, as far as the rule can bear: fewer than half, and Krum two fewer.
    """

    name: DefenceName = "none"
    bad_share: float = 0.25

    def bad(self, shops: int) -> int:
        """Return how many of so many shops may be bad."""
        if self.name == "none":
            return 0
        most = (shops - self._spare) // 2
        return max(min(math.ceil(self.bad_share * shops), most), 0)

    def holds(self, shops: int) -> bool:
        """Return whether the rule bears a single bad one of so many shops."""
        return self.name == "none" or self.bad(shops) > 0

    @property
    def fewest(self) -> int:
        """The fewest shops that the rule takes."""
        return 1 if self.name == "none" else self._spare + 2

    @property
    def _spare(self) -> int:
        """How many more honest shops than bad ones the rule needs."""
        return 3 if self.name in ("krum", "multi-krum") else 1

    def noise(self, shops: int, width: int) -> float:
        """Return how much of the plain mean's noise variance is left in what the rule returns.

        For shops of equal noise in rows of so many numbers, where noise outweighs what they say.
        """
        bad = self.bad(shops)
        share = bad / shops
        if self.name == "krum":
            return float(shops)
        if self.name == "multi-krum":
            return shops / (shops - bad)
        if self.name == "median":
            return math.pi / 2
        if self.name == "trimmed-mean" and bad:
            return _capped_variance(1, 2 * share) / (1 - 2 * share) ** 2
        return _capped_variance(width, share) if self.name == "tail-aware" and bad else 1.0

    def update(self, contributions: Sequence[Contribution]) -> Arrays:
        """Return the mean update of one round, as far as the rule takes it for honest; float64.

        Raises
        ------
        ProtocolError
            If there are too few shops for the rule.
        """
        if self.name == "none":
            return weighted_mean(contributions)
        if not self.holds(len(contributions)):
            raise ProtocolError(
                f"defence {self.name} needs {self.fewest} shops: {len(contributions)} are too few"
            )
        # Whatever came first, the same shops stand in the same order.
        ordered = sorted(contributions, key=lambda c: c.shop)
        return _RULES[self.name]([c.arrays for c in ordered], self.bad(len(ordered)))

    def counts(self, contributions: Sequence[Contribution]) -> np.ndarray:
        """Return the sum ``(n,)`` of the shops' noisy popularity counts, by the same rule.

        ``tail-aware`` takes each count for no more than the largest, and no less than the
        smallest, of what the shops that may be honest say of the same product.

        Raises
        ------
        ProtocolError
            If there are too few shops for the rule.
        """
        if self.name == "none":
            return sum_popularity(contributions)
        total: np.ndarray = self.update(contributions)[POPULARITY] * len(contributions)
        return total


def _median(shops: list[Arrays], _bad: int) -> Arrays:
    return _by_coordinate(shops, lambda block: np.median(block, axis=0))


def _trimmed_mean(shops: list[Arrays], bad: int) -> Arrays:
    def trimmed(block: np.ndarray) -> np.ndarray:
        block.sort(axis=0)
        middle: np.ndarray = block[bad : len(block) - bad].mean(axis=0)
        return middle

    return _by_coordinate(shops, trimmed)


def _krum(shops: list[Arrays], bad: int) -> Arrays:
    best = int(np.argmin(_krum_scores(shops, bad)))
    return {name: array.astype(np.float64) for name, array in shops[best].items()}


def _multi_krum(shops: list[Arrays], bad: int) -> Arrays:
    order = np.argsort(_krum_scores(shops, bad), kind="stable")
    return _scaled_mean([shops[k] for k in np.sort(order[: len(shops) - bad])])


def _norm_bound(shops: list[Arrays], _bad: int) -> Arrays:
    norms = np.sqrt([sum(_square(a) for a in arrays.values()) for arrays in shops])
    return _scaled_mean(shops, _factors(norms, np.median(norms)))


def _tail_aware(shops: list[Arrays], bad: int) -> Arrays:
    """Bound each shop's say on each row, then its say on the whole.

    Of a row's norms over ``n`` shops, the ``(bad + 1)``-th largest is at most what some honest
    shop sent: no shop moves the row by more. Where fewer shops have anything to say of a product,
    that is nothing; there a shop moves a row by at most what a typical shop's typical row is, the
    median over shops of the median over the rows that each moves at all: mostly one customer's.
    Thus bad shops can make a product look like one that a customer or so of each has bought, and
    never like one of the short head.
    """
    factors: list[dict[str, np.ndarray]] = [{} for _ in shops]
    squares = np.zeros(len(shops))
    for name in shops[0]:
        norms = np.stack([_row_norms(arrays[name]) for arrays in shops])
        caps = np.maximum(_largest_honest(norms, bad), _typical(norms))
        kept = np.minimum(norms, caps)
        squares += (kept**2).sum(axis=1)
        for own, row in zip(factors, _factors(norms, caps), strict=True):
            own[name] = row
    whole = np.sqrt(squares)
    of_whole = _factors(whole, _largest_honest(whole, bad))
    mean = {name: np.zeros(a.shape, np.float64) for name, a in shops[0].items()}
    for arrays, own, factor in zip(shops, factors, of_whole, strict=True):
        for name, into in mean.items():
            rows = own[name] * (factor / len(shops))
            into += arrays[name].astype(np.float64) * rows.reshape(_along_rows(into))
    return mean


_RULES: dict[str, Callable[[list[Arrays], int], Arrays]] = {
    "median": _median,
    "trimmed-mean": _trimmed_mean,
    "krum": _krum,
    "multi-krum": _multi_krum,
    "norm-bound": _norm_bound,
    "tail-aware": _tail_aware,
}
#: Every rule but none at all.
DEFENCES: tuple[str, ...] = tuple(_RULES)


def _capped_variance(width: int, share: float) -> float:
    """Return the variance a number of a normal row whose norm is cut to its ``1 - share`` quantile.

    ``E min(r², c²) / d`` for ``r²`` chi-square of ``d``: ``F_{d+2}(c²) + (1 - F_d(c²)) c² / d``.
    """
    square = 2 * gammaincinv(width / 2, 1 - share)
    within = gammainc(width / 2 + 1, square / 2)
    return float(within + share * square / width)


def _largest_honest(values: np.ndarray, bad: int) -> np.ndarray:
    """Return, over the first axis, the ``(bad + 1)``-th largest."""
    place = len(values) - 1 - bad
    found: np.ndarray = np.partition(values, place, axis=0)[place]
    return found


def _typical(norms: np.ndarray) -> float:
    """Return the median over shops of the median norm of the rows (K, R) that each moves."""
    own = [np.median(row[row > 0]) for row in norms if (row > 0).any()]
    return float(np.median(own)) if own else 0.0


def _factors(norms: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Return what brings norms down to a bound: 1 where they are within it."""
    factors: np.ndarray = np.minimum(1.0, bound / np.maximum(norms, 1e-300))
    return factors


def _row_norms(array: np.ndarray) -> np.ndarray:
    """Return (R,) float64 norms of an array's rows; a vector's numbers are its rows."""
    rows = array.reshape(len(array), -1)
    norms = np.empty(len(rows))
    for part in _parts(len(rows), max(rows.shape[1], 1)):
        block = rows[part].astype(np.float64)
        norms[part] = np.sqrt(np.einsum("rd,rd->r", block, block))
    return norms


def _along_rows(array: np.ndarray) -> tuple[int, ...]:
    return (len(array), *([1] * (array.ndim - 1)))


def _square(array: np.ndarray) -> float:
    norms = _row_norms(array)
    return float(norms @ norms)


def _scaled_mean(shops: list[Arrays], factors: np.ndarray | None = None) -> Arrays:
    scales = np.ones(len(shops)) if factors is None else factors
    mean = {name: np.zeros(a.shape, np.float64) for name, a in shops[0].items()}
    for arrays, scale in zip(shops, scales, strict=True):
        for name, into in mean.items():
            into += (scale / len(shops)) * arrays[name].astype(np.float64)
    return mean


def _by_coordinate(shops: list[Arrays], rule: Callable[[np.ndarray], np.ndarray]) -> Arrays:
    """Apply a rule to (K, ...) blocks of all shops' values of some rows."""
    found = {}
    for name, first in shops[0].items():
        into = np.empty(first.shape, np.float64)
        width = max(first[:1].size, 1) * len(shops)
        for part in _parts(len(first), width):
            block = np.stack([arrays[name][part] for arrays in shops]).astype(np.float64)
            into[part] = rule(block)
        found[name] = into
    return found


def _krum_scores(shops: list[Arrays], bad: int) -> np.ndarray:
    """Return (K,) sums of squared distances to the ``K - bad - 2`` nearest others."""
    count = len(shops)
    distances = np.zeros((count, count))
    for name, first in shops[0].items():
        width = max(first[:1].size, 1) * count
        for part in _parts(len(first), width):
            block = np.stack([arrays[name][part].ravel() for arrays in shops]).astype(np.float64)
            squares = np.einsum("kv,kv->k", block, block)
            distances += squares[:, None] + squares[None, :] - 2 * (block @ block.T)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : count - bad - 2]
    scores: np.ndarray = nearest.sum(axis=1)
    return scores


def _parts(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows so that a block of so many values a row stays small."""
    size = max(1, _BLOCK // width)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
