"""Which rule puts shops' arrays together, how many bad shops it bears, and what noise it leaves.

Arrays in, arrays out, no Flower types. The one constant of a rule, the share of shops that may be
bad, is public, and so is the rule; an attacker knows both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from scipy.special import gammainc, gammaincinv

from common.errors import ProtocolError
from common.protocol import POPULARITY, Arrays
from server.aggregation import Contribution, sum_popularity, weighted_mean
from server.defence.rules import RULES, Sent, fewer

DefenceName = Literal[
    "none", "median", "trimmed-mean", "krum", "multi-krum", "norm-bound", "tail-aware"
]


def share_of(share: float, count: int) -> int:
    """Return the fewest of ``count`` that are the share, as it is written: .56 of 25 are 14.

    As a float .56 * 25 is a little above 14, and one too many would be asked for.
    """
    return math.ceil(Fraction(str(share)) * count)


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
        return max(min(share_of(self.bad_share, shops), most), 0)

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

    def noise(self, shops: int, width: int, senders: int | None = None) -> float:
        """Return how much of the plain mean's noise variance is left in what the rule returns.

        For shops of equal noise in rows of so many numbers, where noise outweighs what they say and
        the rule is told of it; in a row that only ``senders`` of the shops send, how much of that
        of the mean over these.
        """
        bad = self.bad(shops)
        if senders is not None and self.name == "trimmed-mean":
            shops, bad = senders, fewer(bad, senders)
        share = bad / shops
        if senders is not None and self.name == "tail-aware":
            # Below the typical row, half of all, no row is cut.
            share = min(bad / senders, 0.5)
        if self.name == "krum":
            return float(shops if senders is None else senders)
        if self.name == "multi-krum":
            return shops / (shops - bad)
        if self.name == "median":
            return 1.0 if senders in (1, 2) else math.pi / 2
        if self.name == "trimmed-mean" and bad:
            return _capped_variance(1, 2 * share) / (1 - 2 * share) ** 2
        return _capped_variance(width, share) if self.name == "tail-aware" and bad else 1.0

    def update(self, contributions: Sequence[Contribution], noise: float = 0.0) -> Arrays:
        """Return the mean update of one round, as far as the rule takes it for honest; float64.

        ``noise`` is the standard deviation of the noise that the plan puts into each number that a
        shop sends, 0 where it puts in none. ``tail-aware`` bounds by it what a shop says in one
        direction.

        Raises
        ------
        ProtocolError
            If there are too few shops for the rule.
        """
        if self.name == "none":
            return weighted_mean(contributions)
        # A row of which nothing is known stays as it is.
        return {
            n: np.where(np.isnan(a), 0.0, a) for n, a in self._ruled(contributions, noise).items()
        }

    def counts(self, contributions: Sequence[Contribution], noise: float = 0.0) -> np.ndarray:
        """Return the sum ``(n,)`` of the shops' noisy popularity counts, by the same rule.

        ``tail-aware`` takes each count for no more than the largest, and no less than the
        smallest, of what the shops that may be honest say of the same product. Not a number where
        the rule takes none of the shops that send it. ``noise`` as in :meth:`update`.

        Raises
        ------
        ProtocolError
            If there are too few shops for the rule.
        """
        if self.name == "none":
            return sum_popularity(contributions)
        total: np.ndarray = self._ruled(contributions, noise)[POPULARITY] * len(contributions)
        return total

    def row_variances(self, shops: int, width: int, senders: np.ndarray) -> np.ndarray:
        """Return how many times one shop's noise variance is in each row (R,) of the sum.

        Parameters
        ----------
        senders
            (R,) how many of the shops send each row.
        """
        times = np.zeros(len(senders))
        for count in np.unique(senders[senders > 0]).tolist():
            times[senders == count] = count * self.noise(shops, width, count)
        return times

    def _ruled(self, contributions: Sequence[Contribution], noise: float) -> Arrays:
        """Return the mean by the rule; not a number in rows of which nothing is known."""
        if not self.holds(len(contributions)):
            raise ProtocolError(
                f"defence {self.name} needs {self.fewest} shops: {len(contributions)} are too few"
            )
        # Whatever came first, the same shops stand in the same order.
        ordered = sorted(contributions, key=lambda c: c.shop)
        shops = len(ordered)
        widths = {max(math.prod(a.shape[1:]), 1) for a in ordered[0].arrays.values()}
        left = max(self.noise(shops, width) for width in widths) ** 0.5
        return RULES[self.name](Sent.of(ordered, noise * left), self.bad(shops))


def _capped_variance(width: int, share: float) -> float:
    """Return the variance a number of a normal row whose norm is cut to its ``1 - share`` quantile.

    ``E min(r², c²) / d`` for ``r²`` chi-square of ``d``: ``F_{d+2}(c²) + (1 - F_d(c²)) c² / d``.
    """
    square = 2 * gammaincinv(width / 2, 1 - share)
    within = gammainc(width / 2 + 1, square / 2)
    return float(within + share * square / width)
