"""Which shop sends which rows of a secure sum, and how many honest shops are sure to be in each.

A vector is rows of numbers, one after the other: a row for each product of a table that has one,
and one for each whole array that all shops send. With ``S_r`` the members that stock row ``r``,
``s_r`` of ``n``: of ``t`` survivors, the threshold, at least ``t - (n - s_r)`` are in ``S_r``,
whoever dropped out, and at most ``c`` of them collude. So

    m_r = min(m, t - c - (n - s_r))

honest survivors have added to the row whenever anything is unmasked; a row that all send has
``m``. Each sender of row ``r`` adds noise of variance ``σ² / m_r``: every row of a sum has ``σ²``
of honest noise at least. Where ``m_r`` is less than the plan's ``honest_stockers``, the row
travels from all members, from as many more as it takes, or from none.

All of it follows from the plan, the roster, the published stock table and, in a round of training,
the released popularity: nobody sends row numbers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.catalogue.stock import Stock
from common.protocol import TrainingPlan
from common.secure_sum.members import threshold
from common.secure_sum.primitives import add_keystream
from common.stocked_rows import Shapes, row_products, stocked_among

#: Numbers of a vector: all of them, or those where (n,) bools say so.
Where = slice | np.ndarray
EVERYWHERE = slice(None)
# Rows of a large catalogue that are worked on at a time.
_PART = 1 << 14


@dataclass(frozen=True)
class Layout:
    """Who sends which rows.

    Attributes
    ----------
    members
        Public names, in the roster's order.
    widths
        (R,) numbers in each row.
    sends
        (n, R) bool.
    """

    members: tuple[str, ...]
    widths: np.ndarray
    sends: np.ndarray

    @cached_property
    def length(self) -> int:
        """Numbers in the whole vector."""
        return int(self.widths.sum())

    @cached_property
    def senders(self) -> np.ndarray:
        """(R,) how many members send each row: 0 for one that does not travel."""
        return np.asarray(np.count_nonzero(self.sends, axis=0))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {shop: place for place, shop in enumerate(self.members)}

    def length_of(self, shop: str) -> int:
        """Return how many numbers a shop sends."""
        return int(self.widths[self._rows(shop)].sum())

    def where(self, *shops: str) -> Where:
        """Return the numbers of the whole vector that all of ``shops`` send."""
        rows = self._rows(*shops)
        return EVERYWHERE if rows.all() else np.repeat(rows, self.widths)

    def within(self, shop: str, other: str) -> Where:
        """Return the numbers of a shop's own vector that another sends, too."""
        own = self._rows(shop)
        both = self._rows(other)[own]
        return EVERYWHERE if both.all() else np.repeat(both, self.widths[own])

    def senders_of(self, shop: str) -> np.ndarray:
        """Return (k,) how many members send each number of a shop's own vector."""
        own = self._rows(shop)
        return np.repeat(self.senders[own], self.widths[own])

    def variances(self, plan: TrainingPlan, survivors: Collection[str]) -> np.ndarray:
        """Return how many times the planned noise variance is in each number of the sum: (n,).

        It is infinite in what does not travel: nothing is known there.
        """
        there = np.isin(self.members, list(survivors))
        shares = np.count_nonzero(self.sends[there], axis=0)
        honest = honest_senders(plan, len(self.members), self.senders)
        times = np.full(len(shares), np.inf)
        np.divide(shares, honest, out=times, where=self.senders > 0)
        return np.repeat(times, self.widths)

    def _rows(self, *shops: str) -> np.ndarray:
        places = [self._places[shop] for shop in shops]
        return np.asarray(self.sends[places].all(axis=0))


def whole_layout(members: Sequence[str], length: int) -> Layout:
    """Return the layout where every member sends everything."""
    return Layout(tuple(members), np.array([length]), np.ones((len(members), 1), dtype=bool))


def layout_of(
    plan: TrainingPlan,
    members: Sequence[str],
    shapes: Shapes,
    stock: Stock | None,
    learned: np.ndarray | None = None,
) -> Layout:
    """Return the layout of one sum.

    Parameters
    ----------
    members
        Public names, in the roster's order.
    shapes
        Name -> shape of what is summed, in its order.
    stock
        What was published; None: every shop stocks everything.
    learned
        (L,) catalogue rows of the products that have learned rows, in a round of training.
    """
    widths: list[np.ndarray] = []
    sends: list[np.ndarray] = []
    for name, shape in shapes.items():
        products = None if stock is None else row_products(plan, name, shape, learned)
        if stock is None or products is None:
            widths.append(np.array([np.prod(shape, dtype=np.int64)]))
            sends.append(np.ones((len(members), 1), dtype=bool))
            continue
        widths.append(np.full(shape[0], np.prod(shape[1:], dtype=np.int64)))
        sends.append(_senders(plan, members, stock, products))
    return Layout(tuple(members), np.concatenate(widths), np.concatenate(sends, axis=1))


def honest_senders(plan: TrainingPlan, members: int, senders: int | np.ndarray) -> np.ndarray:
    """Return ``m_r``: the honest survivors that are sure to be among so many senders of a row."""
    sure = threshold(members, plan.honest_shops, plan.colluding_shops) - plan.colluding_shops
    return np.asarray(np.minimum(plan.honest_shops, sure - (members - np.asarray(senders))))


def add_mask(total: np.ndarray, where: Where, key: bytes, *, subtract: bool) -> None:
    """Add the keystream of ``key`` to the numbers ``where`` of (n,) uint32, in place."""
    if isinstance(where, slice):
        add_keystream(total[where], key, subtract=subtract)
        return
    part = total[where]
    add_keystream(part, key, subtract=subtract)
    total[where] = part


def everywhere(_: str) -> Where:
    """Return all numbers, whoever the other shop is."""
    return EVERYWHERE


Within = Callable[[str], Where]


def _senders(
    plan: TrainingPlan, members: Sequence[str], stock: Stock, products: np.ndarray
) -> np.ndarray:
    """Return (n, R) bool: who sends each row, rare ones as the plan says."""
    sends = np.ones((len(members), len(products)), dtype=bool)
    for place, shop in enumerate(members):
        if (rows := stock.rows.get(shop)) is not None:
            sends[place] = stocked_among(products, rows)
    count = np.count_nonzero(sends, axis=0)
    least = max(plan.honest_stockers, 1)
    rare = (honest_senders(plan, len(members), count) < least) & (count < len(members))
    if plan.rare_rows == "enough":
        sends[:, rare] |= _helpers(plan, sends[:, rare], products[rare], least)
    else:
        sends[:, rare] = plan.rare_rows == "all"
    return sends


def _helpers(plan: TrainingPlan, sends: np.ndarray, products: np.ndarray, least: int) -> np.ndarray:
    """Return (n, R) bool: who else sends these rows, so that ``least`` honest ones are sure.

    Those that follow the product's own number in the roster, around it: all shops help as often.
    """
    shops = len(sends)
    counts = np.arange(shops + 1)
    enough = np.flatnonzero(honest_senders(plan, shops, counts) >= least)
    needed = int(enough[0]) if len(enough) else shops
    lacking = needed - np.count_nonzero(sends, axis=0)
    helping = np.zeros_like(sends)
    for start in range(0, len(products), _PART):
        part = slice(start, start + _PART)
        turn = (np.arange(shops)[:, None] - products[part]) % shops
        turn[sends[:, part]] = shops
        last = np.take_along_axis(np.sort(turn, axis=0), lacking[None, part] - 1, axis=0)
        helping[:, part] = turn <= last
    return helping
