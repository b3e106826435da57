"""What a model is asked and what it answers, at the federation's service and at a shop's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from common.explanation import Explanation
from common.queries.filters import Filters
from common.scoring import re_rank

# Beyond it floats hold no longer every whole number.
_EXACT = 2.0**53


@dataclass(frozen=True)
class Query:
    """Whom to recommend to, and what.

    Attributes
    ----------
    history
        item_id -> weight of what the customer did; products that the catalogue does not hold are
        told back and do not count.
    attributes
        Name -> value of what is known of the customer.
    k
        Length of the list.
    tail_dial
        0: by score alone; 1: what is rarely shown first.
    user_id
        A customer of the shop, whose history the shop itself knows; only a shop's own service
        takes one. What ``history`` names counts as well.
    reasons
        Whether to take every score apart.
    """

    history: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    k: int = 20
    tail_dial: float = 0.0
    filters: Filters = field(default_factory=Filters)
    user_id: str | None = None
    reasons: bool = False


class TakenApart(Sequence[Explanation]):
    """What the scores of (m,) rows are sums of, each made when it is asked for and not kept.

    A history of thousands has as many parts for every product: not all of them are held at once.
    """

    def __init__(self, rows: np.ndarray, explained: Callable[[int], Explanation]) -> None:
        self._rows, self._explained = rows, explained

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:  # noqa: ANN401 - one, or those of a slice
        if isinstance(place, slice):
            return TakenApart(self._rows[place], self._explained)
        return self._explained(int(self._rows[place]))


@dataclass(frozen=True)
class Answer:
    """A ranked list and what stands behind it.

    Attributes
    ----------
    item_ids, scores
        (m,) best first, m at most k.
    tail_share, tail_share_undialled
        Share of tail products in this list, and in the list by score alone.
    score_kept
        Sum of the scores above the lowest candidate's, relative to the list by score alone: what
        the dial cost.
    unknown
        Products of the history that the catalogue does not hold.
    reasons
        (m,) what each score is the sum of; empty where nobody asked.
    own_item_ids
        (m,) the shop's own numbers of each product; empty where they are the catalogue's.
    outside_catalogue
        (m,) whether it is a product of the shop's own; empty where the catalogue holds all.
    known_customer
        Whether the shop has records of the customer; None where none was named.
    notes
        What whoever asked should know.
    """

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    tail: tuple[bool, ...]
    tail_share: float
    tail_share_undialled: float
    score_kept: float
    unknown: tuple[str, ...]
    reasons: Sequence[Explanation] = ()
    own_item_ids: tuple[tuple[str, ...], ...] = ()
    outside_catalogue: tuple[bool, ...] = ()
    known_customer: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranking:
    """The list that is shown, out of its candidates.

    Attributes
    ----------
    rows, scores
        (m,) best first.
    tail
        (m,) bool.
    """

    rows: np.ndarray
    scores: np.ndarray
    tail: np.ndarray
    tail_share: float
    tail_share_undialled: float
    score_kept: float

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        scores: np.ndarray,
        query: Query,
        exposure: np.ndarray,
        tail: np.ndarray,
    ) -> "Ranking":
        """Choose from (c,) candidates, best first, as the tail dial says.

        Parameters
        ----------
        exposure
            (n,) how often each product is shown; not negative.
        tail
            (n,) bool.
        """
        chosen, kept = rows[: query.k], scores[: query.k]
        plain_tail, plain_sum = tail[chosen], float(kept.sum(dtype=np.float64))
        floor = float(scores[-1]) * len(chosen) if len(scores) else 0.0
        if query.tail_dial:
            dialled = re_rank(rows[None, :], scores[None, :], query.k, query.tail_dial, exposure)
            chosen, kept = dialled[0][0], dialled[1][0]
        above = plain_sum - floor
        lost = (plain_sum - float(kept.sum(dtype=np.float64))) / above if above > 0 else 0.0
        shown = tail[chosen]
        return cls(
            rows=chosen,
            scores=kept,
            tail=shown,
            tail_share=float(shown.mean()) if len(shown) else 0.0,
            tail_share_undialled=float(plain_tail.mean()) if len(plain_tail) else 0.0,
            score_kept=1.0 - lost,
        )

    def answer(self, item_ids: np.ndarray, unknown: tuple[str, ...], **more: Any) -> Answer:  # noqa: ANN401 - fields of an Answer
        """Return it as an answer, with the (n,) names of all products."""
        return Answer(
            item_ids=tuple(str(item) for item in item_ids[self.rows]),
            scores=tuple(float(score) for score in self.scores),
            tail=tuple(bool(flag) for flag in self.tail),
            tail_share=self.tail_share,
            tail_share_undialled=self.tail_share_undialled,
            score_kept=self.score_kept,
            unknown=unknown,
            **more,
        )


def public_columns(products: pd.DataFrame) -> dict[str, list[Any]]:
    """Return column -> (n,) Python values of a catalogue's products, None where unknown.

    Whole numbers are ints: pandas makes floats of them in a column that lacks some.
    """
    found = {}
    for name in products.columns:
        if name == "item_id":
            continue
        column = products[name]
        values = column.astype(object).where(column.notna(), None).tolist()
        if pd.api.types.is_float_dtype(column):
            values = [_whole(value) for value in values]
        found[str(name)] = values
    return found


def _whole(value: float | None) -> float | int | None:
    """Return a float of no fraction as an int, where floats hold every int of its size."""
    if value is None or not abs(value) < _EXACT or value != int(value):
        return value
    return int(value)
