"""Rules that put shops' arrays together so that a few bad shops can't decide what comes out.

Arrays in, arrays out. A rule reads the *deltas* of one exchange, never whole models: distances
between models drown in what all shops share. It is given what all shops sent, in one order, and how
many of them may be bad; it returns their mean as far as it takes them for honest, float64, and not
a number in rows of which nothing is known.

Known rules, for comparison: the coordinate-wise median and trimmed mean (Yin et al. 2018,
"Byzantine-Robust Distributed Learning"), Krum and Multi-Krum (Blanchard et al. 2017, "Machine
Learning with Adversaries", section 3), and a bound on a delta's norm (Sun et al. 2019, "Can You
Really Backdoor Federated Learning?"). They take coordinates or whole deltas for their unit. In a
recommender most rows are of products that few shops have sold at all: a median of them is zero,
and a delta of honest norm can spend all of it on one row. ``tail-aware`` bounds what a shop may do
to one *product*.

Where shops send the rows alone that they stock, a row that a shop does not send is absent, and no
zero: a rule takes the row's senders for its shops, and the mean that it makes of them counts for as
many of all. A row that no shop sends that a rule takes is not known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.protocol import POPULARITY, Arrays
from server.aggregation import Contribution
from server.defence.blocks import blocks
from server.defence.directions import cut_directions


@dataclass(frozen=True)
class Sent:
    """What the shops of one exchange sent.

    Attributes
    ----------
    arrays
        One a shop, whole: 0 in rows that it does not send.
    sends
        Name -> (K, R) bool, of arrays of which some shop does not send all rows.
    noise
        Standard deviation of the noise that a rule by rows leaves in each number; 0: there is none.
    """

    arrays: list[Arrays]
    sends: dict[str, np.ndarray]
    noise: float = 0.0

    @classmethod
    def of(cls, contributions: Sequence[Contribution], noise: float = 0.0) -> "Sent":
        """Return what so many shops sent, with so much noise."""
        sends = {}
        for name in {name: None for c in contributions for name in c.rows}:
            count = contributions[0].whole_shape(name)[0]
            every = np.ones(count, dtype=bool)
            sends[name] = np.stack([c.rows.get(name, every) for c in contributions])
        return cls([_whole(c) for c in contributions], sends, noise)

    def __len__(self) -> int:
        return len(self.arrays)

    def row_norms(self, name: str) -> np.ndarray:
        """Return (K, R) float64 norms of an array's rows."""
        return np.stack([_row_norms(arrays[name]) for arrays in self.arrays])

    def usual(self, norms: dict[str, np.ndarray]) -> np.ndarray:
        """Return (K,) the norms of what shops would send if each sent the usual rows.

        Parameters
        ----------
        norms
            Name -> (K, R) norms of what each does send. Of a row's senders the median is usual, or
            what a typical shop's typical row is: most shops may have nothing to say there.
        """
        squares = np.zeros(len(self))
        for name, found in norms.items():
            sends = self.sends.get(name, np.ones(found.shape, dtype=bool))
            sent = sends.any(axis=0)
            row = np.nanmedian(np.where(sends, found, np.nan)[:, sent], axis=0)
            squares += sends[:, sent] @ np.maximum(row, _typical(found)) ** 2
        usual: np.ndarray = np.sqrt(squares)
        return usual

    def only(self, chosen: np.ndarray) -> Arrays:
        """Return the mean over some shops; of a row, over those that send it, times its senders.

        That is what all shops' mean is if the chosen ones are like the others that send the row.
        """
        mean = _scaled_mean([self.arrays[k] for k in chosen])
        for name, rows in self.sends.items():
            among = rows[chosen].sum(axis=0)
            share = rows.sum(axis=0) / len(self) * len(chosen)
            scale = np.divide(share, among, out=np.full(len(share), np.nan), where=among > 0)
            mean[name] *= scale.reshape(_along_rows(mean[name]))
        return mean


def _median(shops: Sent, bad: int) -> Arrays:
    return _by_coordinate(shops, bad, lambda block, _: np.median(block, axis=0))


def _trimmed_mean(shops: Sent, bad: int) -> Arrays:
    def trimmed(block: np.ndarray, bad: int) -> np.ndarray:
        block.sort(axis=0)
        middle: np.ndarray = block[bad : len(block) - bad].mean(axis=0)
        return middle

    return _by_coordinate(shops, bad, trimmed)


def _krum(shops: Sent, bad: int) -> Arrays:
    return shops.only(np.array([np.argmin(_krum_scores(shops, bad))]))


def _multi_krum(shops: Sent, bad: int) -> Arrays:
    order = np.argsort(_krum_scores(shops, bad), kind="stable")
    return shops.only(np.sort(order[: len(shops) - bad]))


def _norm_bound(shops: Sent, bad: int) -> Arrays:
    own = [map(_row_norms, arrays.values()) for arrays in shops.arrays]
    norms = np.sqrt([sum(float(rows @ rows) for rows in each) for each in own])
    if shops.sends:
        # Whoever sends more rows sends longer updates: a norm counts beside that of the same rows.
        beside = {name: shops.row_norms(name) for name in shops.arrays[0]}
        for name, sends in shops.sends.items():
            # Rows most of whose senders may be bad excuse twice the longest of the others at most.
            found, few = beside[name], sends.sum(axis=0) <= 2 * bad
            known = _largest_honest(found[:, ~few], bad).max(initial=_typical(found, bad))
            beside[name] = np.minimum(found, np.where(few, 2 * known, np.inf))
        norms /= np.maximum(shops.usual(beside), 1e-300)
    mean = _scaled_mean(shops.arrays, _factors(norms, np.median(norms)))
    return _without_unknown(shops, mean)


def _tail_aware(shops: Sent, bad: int) -> Arrays:
    """Bound each shop's say on each row, then its say on the whole, then in one direction.

    Of a row's norms over ``n`` shops, the ``(bad + 1)``-th largest is at most what some honest
    shop sent: no shop moves the row by more. Where fewer shops have anything to say of a product,
    that is nothing; there a shop moves a row by at most what a typical shop's typical row is, the
    median over shops of the median over the rows that each moves at all: mostly one customer's.
    Where so few shops move anything that most of these may be bad, it is the ``(bad + 1)``-th
    largest of all shops'.
    Thus bad shops can make a product look like one that a customer or so of each has bought, and
    never like one of the short head. All shops that may be bad may stock one product: a row is cut
    to the ``(bad + 1)``-th largest of its senders, however few they are.

    A count says how many lists a product may come into, a row of a table only whose. So where
    there is no noise, a table's row that few shops move is held to what all shops that may be bad
    could do to it at a typical row each: see :func:`_shared_bounds`. With noise every shop moves
    every row that it sends.

    What all shops say in one direction is bounded last: see :mod:`server.defence.directions`.
    """
    factors: list[dict[str, np.ndarray]] = [{} for _ in shops.arrays]
    squares = np.zeros(len(shops))
    cut: dict[str, np.ndarray] = {}
    bounds: dict[str, np.ndarray] = {}
    shared: dict[str, np.ndarray] = {}
    for name in shops.arrays[0]:
        norms = shops.row_norms(name)
        caps = _bounds(norms, bad)
        if shops.noise == 0 and name != POPULARITY:
            shared[name] = caps
            caps = _shared_bounds(norms, caps, bad)
        bounds[name] = caps
        kept = np.minimum(norms, caps)
        squares += (kept**2).sum(axis=1)
        cut[name] = kept
        for own, row in zip(factors, _factors(norms, caps), strict=True):
            own[name] = row
    whole = np.sqrt(squares)
    if shops.sends:
        whole /= np.maximum(shops.usual(cut), 1e-300)
    of_whole = _factors(whole, _largest_honest(whole, bad))
    for own, factor in zip(factors, of_whole, strict=True):
        for row in own.values():
            row *= factor
    return _without_unknown(shops, _cut_by_direction(shops, factors, bounds, shared, bad))


def _cut_by_direction(
    shops: Sent,
    factors: list[dict[str, np.ndarray]],
    bounds: dict[str, np.ndarray],
    shared: dict[str, np.ndarray],
    bad: int,
) -> Arrays:
    """Return the mean of rows times ``factors`` without what is too much in one direction.

    No row is longer in the end than its bound. Who says a direction with others takes part in what
    each of them says of a row, and it is cut of all: a row may come to more than it was. So rows
    share again what bad shops could do, each at its bound in ``shared`` (name -> (R,)).
    """
    names = list(shops.arrays[0])
    # Of all that the server holds of a round these are most: not in float64.
    values = np.empty((len(shops), sum(a.size for a in shops.arrays[0].values())), np.float32)
    for into, arrays, own in zip(values, shops.arrays, factors, strict=True):
        parts = [(arrays[n].reshape(len(arrays[n]), -1) * own[n][:, None]).ravel() for n in names]
        np.concatenate(parts, out=into, casting="same_kind")
    sends = None
    if shops.sends:
        every = {n: np.ones((len(shops), len(shops.arrays[0][n])), dtype=bool) for n in names}
        every |= shops.sends
        sizes = {n: shops.arrays[0][n][:1].size for n in names}
        sends = np.hstack([np.repeat(every[n], sizes[n], axis=1) for n in names])
    cut_directions(values, sends, shops.noise, bad)
    mean: Arrays = {}
    place = 0
    for name in names:
        shape = shops.arrays[0][name].shape
        part = values[:, place : place + shops.arrays[0][name].size]
        place += part.shape[1]
        into = np.zeros(shape, np.float64)
        tables = part.reshape(len(shops), *shape)
        norms = np.stack([_row_norms(own) for own in tables])
        caps = bounds[name]
        if name in shared:
            caps = np.minimum(caps, _shared_bounds(norms, shared[name], bad))
        for own, rows in zip(tables, _factors(norms, caps), strict=True):
            into += own * (rows / len(shops)).reshape(_along_rows(into))
        mean[name] = into
    return mean


#: Name -> rule.
RULES: dict[str, Callable[[Sent, int], Arrays]] = {
    "median": _median,
    "trimmed-mean": _trimmed_mean,
    "krum": _krum,
    "multi-krum": _multi_krum,
    "norm-bound": _norm_bound,
    "tail-aware": _tail_aware,
}


def _largest_honest(values: np.ndarray, bad: int) -> np.ndarray:
    """Return, over the first axis, the ``(bad + 1)``-th largest."""
    place = len(values) - 1 - bad
    found: np.ndarray = np.partition(values, place, axis=0)[place]
    return found


def _bounds(norms: np.ndarray, bad: int) -> np.ndarray:
    """Return (R,) the longest that a shop's row may be, of norms (K, R)."""
    bounds: np.ndarray = np.maximum(_largest_honest(norms, bad), _typical(norms, bad))
    return bounds


def _shared_bounds(norms: np.ndarray, bounds: np.ndarray, bad: int) -> np.ndarray:
    """Return bounds (R,), but that rows which few shops move share what bad ones could do.

    ``bad`` shops at the bound ``b`` of a row move it by ``bad b`` together. Where no more of them
    are as long as that, it is the largest bound under which the ``bad`` longest of the row come to
    no more: the fewer shops move a product, the more each may say of it.
    """
    bounds = bounds.copy()
    few = _largest_honest(norms, bad) < bounds
    longest = np.sort(norms[:, few], axis=0)[len(norms) - bad :]
    # If all but the k shortest of them are cut, to one length, this is the length.
    shortest = np.vstack([np.zeros((1, longest.shape[1])), np.cumsum(longest, axis=0)[:-1]])
    lengths = (bad * bounds[few] - shortest) / np.arange(bad, 0, -1)[:, None]
    bounds[few] = lengths.max(axis=0)
    return bounds


def _typical(norms: np.ndarray, bad: int = 0) -> float:
    """Return the median over shops of the median norm of the rows (K, R) that each moves.

    No more than the ``(bad + 1)``-th largest of them: of shops that move anything most may be bad.
    """
    own = np.array([np.median(row[row > 0]) if (row > 0).any() else 0.0 for row in norms])
    typical = np.median(own[own > 0]) if own.any() else 0.0
    return float(min(typical, _largest_honest(own, bad)))


def _factors(norms: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Return what brings norms down to a bound: 1 where they are within it."""
    factors: np.ndarray = np.minimum(1.0, bound / np.maximum(norms, 1e-300))
    return factors


def _row_norms(array: np.ndarray) -> np.ndarray:
    """Return (R,) float64 norms of an array's rows; a vector's numbers are its rows."""
    rows = array.reshape(len(array), -1)
    norms = np.empty(len(rows))
    for part in blocks(len(rows), max(rows.shape[1], 1)):
        block = rows[part].astype(np.float64)
        norms[part] = np.sqrt(np.einsum("rd,rd->r", block, block))
    return norms


def _along_rows(array: np.ndarray) -> tuple[int, ...]:
    return (len(array), *([1] * (array.ndim - 1)))


def _scaled_mean(shops: list[Arrays], factors: np.ndarray | None = None) -> Arrays:
    scales = np.ones(len(shops)) if factors is None else factors
    mean = {name: np.zeros(a.shape, np.float64) for name, a in shops[0].items()}
    for arrays, scale in zip(shops, scales, strict=True):
        for name, into in mean.items():
            into += (scale / len(shops)) * arrays[name].astype(np.float64)
    return mean


def _whole(contribution: Contribution) -> Arrays:
    """Return a shop's arrays with zeros in the rows that it does not send."""
    whole = dict(contribution.arrays)
    for name, rows in contribution.rows.items():
        whole[name] = np.zeros(contribution.whole_shape(name), whole[name].dtype)
        whole[name][rows] = contribution.arrays[name]
    return whole


def _without_unknown(shops: Sent, mean: Arrays) -> Arrays:
    """Return a mean (float64) that is not a number in rows that no shop sends."""
    for name, rows in shops.sends.items():
        mean[name][~rows.any(axis=0)] = np.nan
    return mean


def fewer(bad: int, senders: int) -> int:
    """Return how many bad ones of a row's senders a rule bears that is lost to half of them."""
    return min(bad, (senders - 1) // 2)


def _by_coordinate(shops: Sent, bad: int, rule: Callable[[np.ndarray, int], np.ndarray]) -> Arrays:
    """Apply a rule to (K, ...) blocks of all shops' values of some rows, and how many may be bad.

    Of a row that ``s`` shops send it is applied to these, and the result counts ``s / K``.
    """
    found = {}
    count = len(shops)
    for name, first in shops.arrays[0].items():
        into = np.empty(first.shape, np.float64)
        width = max(first[:1].size, 1) * count
        for part in blocks(len(first), width):
            block = np.stack([arrays[name][part] for arrays in shops.arrays]).astype(np.float64)
            if name not in shops.sends:
                into[part] = rule(block, bad)
                continue
            # Senders first: a stable sort of (not) sending.
            sends = shops.sends[name][:, part]
            order = np.argsort(~sends, axis=0, kind="stable")
            order = order.reshape(order.shape + (1,) * (block.ndim - 2))
            block = np.take_along_axis(block, order, axis=0)
            senders, some = sends.sum(axis=0), into[part]
            some[senders == 0] = np.nan
            for few in np.unique(senders[senders > 0]).tolist():
                rows = senders == few
                some[rows] = rule(block[:few, rows], fewer(bad, few)) * (few / count)
        found[name] = into
    return found


def _krum_scores(shops: Sent, bad: int) -> np.ndarray:
    """Return (K,) sums of squared distances to the ``K - bad - 2`` nearest others.

    Shops that send different rows are as far apart as in the rows that both send, in proportion.
    """
    count = len(shops)
    distances = np.zeros((count, count))
    for name, first in shops.arrays[0].items():
        one = max(first[:1].size, 1)
        for part in blocks(len(first), one * count):
            rows = [arrays[name][part].ravel() for arrays in shops.arrays]
            block = np.stack(rows).astype(np.float64)
            if name in shops.sends:
                both = shops.sends[name][:, part].astype(np.float64)
                by_row = (block**2).reshape(count, both.shape[1], one).sum(axis=2)
                common = by_row @ both.T
                distances += common + common.T - 2 * (block @ block.T)
                continue
            squares = np.einsum("kv,kv->k", block, block)
            distances += squares[:, None] + squares[None, :] - 2 * (block @ block.T)
    if shops.sends:
        distances = _per_number(shops, distances)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : count - bad - 2]
    scores: np.ndarray = nearest.sum(axis=1)
    return scores


def _per_number(shops: Sent, distances: np.ndarray) -> np.ndarray:
    """Return squared distances (K, K) by the numbers that both send; far where they share none."""
    shared = np.zeros_like(distances)
    for name, first in shops.arrays[0].items():
        sends = shops.sends.get(name)
        one = max(first[:1].size, 1)
        if sends is None:
            shared += len(first) * one
        else:
            shared += (sends.astype(np.float64) @ sends.T.astype(np.float64)) * one
    far = np.full_like(distances, np.finfo(np.float64).max / (4 * len(shops)))
    np.divide(distances, shared, out=far, where=shared > 0)
    return far
