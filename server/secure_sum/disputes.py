"""Whose shares other shops cannot open, over the sums of a run, and who is left out for it.

That A cannot open what B sealed for it is A's word or B's doing: one of the two is bad, and nobody
can tell which. So complaints count both ways, as pairs, and what a pair tells stays true over all
sums of a run. Of ``s`` shops that share, with a threshold ``t``, whoever is in pairs with more than
``k = (s - t) // 2`` of the others is left out, the one with most of them first. While no more than
``k`` of the shops are bad, whatever they seal and say,

- no honest shop is left out: only bad ones are in a pair with it;
- the sum is unmasked: of a shop that stays, at most ``k`` of the ``s - k`` honest ones lack its
  shares, and ``s - 2 k`` are ``t`` at least.

A share with another digest than its sealer's is the giver's own making, and shares with the right
digests that are not of the committed secret are their sealer's: whoever is proven wrong like that
is left out whatever the others say.
"""

from collections import Counter
from collections.abc import Collection, Iterable

from common.secure_sum.primitives import digest

#: Why a shop is left out, as the operator is told.
DISPUTED, WRONG_SHARES = "disputed", "wrong-shares"


class Disputes:
    """What the sums of a run have shown of shares that were missing or wrong."""

    def __init__(self) -> None:
        self._pairs: set[frozenset[str]] = set()
        self._proven: set[str] = set()

    def __bool__(self) -> bool:
        """Whether anything was ever missing or wrong."""
        return bool(self._pairs or self._proven)

    def note(self, complaints: Iterable[tuple[str, str]], proven: Collection[str]) -> None:
        """Add what a sum has shown: who complains of whom, and whose shares are proven wrong."""
        self._pairs |= {frozenset(pair) for pair in complaints}
        self._proven |= set(proven)

    def left_out(self, among: Collection[str], threshold: int, turn: int) -> dict[str, str]:
        """Return shop -> why, of those of ``among`` that are to be in no sum of these shops.

        Parameters
        ----------
        turn
            Of shops in as many pairs, who goes first: another one each time, as nobody can tell.
        """
        most = max(len(among) - threshold, 0) // 2
        out = dict.fromkeys(sorted(self._proven & set(among)), WRONG_SHARES)
        there = set(among) - out.keys()
        while True:
            pairs = [pair for pair in self._pairs if pair <= there]
            degrees = Counter(shop for pair in pairs for shop in pair)
            worst = max(degrees, key=lambda shop: (degrees[shop], _lot(turn, shop)), default="")
            if degrees[worst] <= most:
                return out
            out[worst] = DISPUTED
            there.remove(worst)


def _lot(turn: int, shop: str) -> bytes:
    return digest("turn", str(turn).encode(), shop.encode())
