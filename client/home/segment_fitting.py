"""What a shop's segments like: how who is known by age or occupation alone is served.

A segment's taste is the mean of what the shop's own mixture says to its customers of that age, less
what it says to all of whom anything is known. It moves what sells. How far, the validation weeks
say: there customers are served as if nothing but their attributes were known, each left out of the
segments. Where nothing is gained beyond doubt, nothing is kept. All of it stays at the shop.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from client.data.periods import histories
from client.home.personalization import HomeModel
from client.home.segments import Segments
from client.home.shop import HomeRecords, Tail
from client.home_settings import HomeSettings
from common.metrics import CUTOFF, evaluate
from common.model import GlobalModel
from common.rng import derive
from common.schema import ShopEvents
from common.scoring import top_lists

#: A smaller segment is a person or two: it is not kept.
LEAST_MEMBERS = 5
#: A segment counts as much as the mean of all when it has so many customers.
_SHRINK = 10.0
#: How far a taste may move what sells, in standard deviations of both.
_STRENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
_MOST_ASKED = 500
_BLOCK = 64
# Of the tastes of all segments, and of the scores that strengths are tried on.
_BYTES = 2**28


@dataclass(frozen=True)
class _Sums:
    """What a mixture says to the customers of each segment, added up.

    Attributes
    ----------
    names, sums, counts
        (S,) segments, (S, n) what is said to their customers, (S,) how many they are.
    heard
        (U,) bool: whose scores are in the sums.
    mean, spread
        (n,) and the standard deviation, over all of those.
    """

    names: tuple[tuple[str, str], ...]
    sums: np.ndarray
    counts: np.ndarray
    heard: np.ndarray
    mean: np.ndarray
    spread: float

    @classmethod
    def of(
        cls, home: HomeModel, events: ShopEvents, history: sparse.csr_matrix, most: int
    ) -> "_Sums":
        """Add up over (U, n) histories, of ``most`` customers drawn by chance at most."""
        active = np.diff(history.indptr) > 0
        known = np.zeros(len(active), bool)
        for values in events.attributes.values():
            known |= values != ""
        stream = derive(0, purpose="segments", merchant_id=events.merchant_id)
        users = np.sort(stream.permutation(np.flatnonzero(active & known))[:most])
        heard = np.zeros(len(active), bool)
        heard[users] = True
        names = _segments(events, heard, _BYTES // (4 * history.shape[1]))
        members = np.array([events.attributes[n][users] == v for n, v in names], np.float32)
        members = members.reshape(len(names), len(users))
        sums = np.zeros((len(names), history.shape[1]), np.float32)
        total, squares = np.zeros(history.shape[1]), np.zeros(history.shape[1])
        for start in range(0, len(users), _BLOCK):
            said = home.scores(history[users[start : start + _BLOCK]])
            sums += members[:, start : start + _BLOCK] @ said
            total += said.sum(axis=0, dtype=np.float64)
            squares += np.square(said, dtype=np.float64).sum(axis=0)
        count = max(len(users), 1)
        variance = float(np.mean(squares / count - (total / count) ** 2))
        mean = (total / count).astype(np.float32)
        return cls(names, sums, members.sum(axis=1), heard, mean, max(variance, 0.0) ** 0.5 or 1.0)

    def tastes(self) -> np.ndarray:
        """Return (S, n) float32 tastes in units of the spread."""
        less = self.sums - self.counts[:, None] * self.mean
        shrunk: np.ndarray = less / ((self.counts[:, None] + _SHRINK) * self.spread)
        return shrunk.astype(np.float32)

    def taste_of_others(self, events: ShopEvents, user: int, own: np.ndarray) -> np.ndarray:
        """Return (n,) the taste of a customer's segments without that customer, who is told own."""
        out = float(self.heard[user])
        total = np.zeros(len(self.mean), np.float32)
        for place, (name, value) in enumerate(self.names):
            if events.attributes[name][user] == value:
                count = self.counts[place] - out
                less = self.sums[place] - np.float32(out) * own - count * self.mean
                total += less / np.float32((count + _SHRINK) * self.spread)
        return total


def fit_segments(
    model: GlobalModel,
    half_life: float,
    records: HomeRecords,
    fitted: HomeModel,
    settings: HomeSettings,
    most: int,
    begin: int,
) -> Segments | None:
    """Choose on the records from ``begin`` on how far tastes count, and read them off all.

    Parameters
    ----------
    model
        The global model as it came. That of ``fitted`` has its groups dealt by what all records
        say, those that are asked for among them.
    half_life
        Of a record's weight, in days; 0 forgets nothing.
    fitted
        The shop's mixture around it, fitted on all records with these settings.
    most
        The mixture is heard on so many customers at most.

    Returns
    -------
    Segments or None
        None where the shop knows nothing of its customers, or it brings nothing.
    """
    events = records.events
    n, end = model.catalogue.size, records.span[1] + 1
    if not any((values != "").any() for values in events.attributes.values()):
        return None
    before = events.before(begin)
    history = histories(before, n, half_life, begin)
    past = replace(
        HomeModel.fit(model, history, settings, stock=records.stock),
        mixing_weights=dict(fitted.mixing_weights),
    )
    sums = _Sums.of(past, before, history, most)
    strength = _strength(past, sums, before, history, events.since(begin), records.stock, settings)
    if not strength:
        return None
    final = _Sums.of(fitted, events, histories(events, n, half_life, end), most)
    scale = np.float32(strength * float(what_sells(fitted).std()))
    return Segments(final.names, scale * final.tastes())


def what_sells(home: HomeModel) -> np.ndarray:
    """Return (n,) float32 what who has no history is served: what sells, here and everywhere."""
    sells: np.ndarray = home.own_popularity[0] + home.model.popularity_part
    return sells


def _strength(
    past: HomeModel,
    sums: _Sums,
    before: ShopEvents,
    history: sparse.csr_matrix,
    after: ShopEvents,
    stock: np.ndarray | None,
    settings: HomeSettings,
) -> float:
    """Return how far a taste moves what sells; 0 where it gains nothing beyond doubt."""
    bought = after.matrix(history.shape[1])
    named = np.zeros(history.shape[0], bool)
    for name, value in sums.names:
        named |= before.attributes[name] == value
    users = np.flatnonzero(named & (np.diff(bought.indptr) > 0))
    stream = derive(1, purpose="segments", merchant_id=before.merchant_id)
    most = max(1, min(_MOST_ASKED, _BYTES // (4 * history.shape[1])))
    users = np.sort(stream.permutation(users)[:most])
    if len(users) < 2:
        return 0.0
    tastes = _tastes_of_others(past, sums, before, history, users)
    sells, tail = what_sells(past), Tail(past.model, before).mask
    targets = sparse.csr_matrix(bought[users])

    def reached(strength: float) -> np.ndarray:
        scale = np.float32(strength * float(sells.std()))
        (lists,) = top_lists(
            lambda rows: sells + scale * tastes[rows],
            len(users),
            history.shape[1],
            CUTOFF,
            allowed=(stock,),
        )
        return evaluate(lists.rows, lists.rows, targets, tail).ndcg

    alone, best, chosen = reached(0.0), 0.0, 0.0
    for strength in _STRENGTHS:
        gain = reached(strength) - alone
        sure = settings.confidence * float(gain.std()) / len(gain) ** 0.5
        if gain.mean() > max(best, sure):
            best, chosen = float(gain.mean()), strength
    return chosen


def _tastes_of_others(
    past: HomeModel, sums: _Sums, before: ShopEvents, history: sparse.csr_matrix, users: np.ndarray
) -> np.ndarray:
    """Return (B, n) what the segments of each user like without that user."""
    tastes = np.zeros((len(users), history.shape[1]), np.float32)
    for start in range(0, len(users), _BLOCK):
        rows = users[start : start + _BLOCK]
        for place, own in enumerate(past.scores(history[rows]), start):
            tastes[place] = sums.taste_of_others(before, int(users[place]), own)
    return tastes


def _segments(events: ShopEvents, heard: np.ndarray, most: int) -> tuple[tuple[str, str], ...]:
    """Return the segments with members enough, the largest first, at most so many."""
    found = []
    for name, values in sorted(events.attributes.items()):
        distinct, counts = np.unique(values[heard & (values != "")], return_counts=True)
        found += [
            (-int(count), name, str(value))
            for value, count in zip(distinct, counts, strict=True)
            if count >= LEAST_MEMBERS
        ]
    return tuple((name, value) for _, name, value in sorted(found)[: max(1, most)])
