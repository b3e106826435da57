"""Which weights a shop's mixture has: those that serve its validation weeks best.

The model that a shop tunes with has not seen those weeks, where its plan has rounds to tune on
(``tuning_share``); else what was released of them is in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from client.data.periods import ShopPeriod
from client.home.ease import Ease, Scores
from client.home.personalization import HomeModel, mix
from client.home_settings import HomeSettings
from common.metrics import CUTOFF, evaluate
from common.model import GlobalModel
from common.protocol import Arrays
from common.scoring import top_k

# Of scores held at a time, while candidates are looked for.
_POOL_BYTES = 2**28


@dataclass(frozen=True)
class Candidates:
    """The products that could reach anyone's list while weights are tried.

    For each customer the best of every part, of all and of tail products: trying a mixture then
    costs the pool, not the catalogue.

    Attributes
    ----------
    rows
        (B, C) catalogue rows.
    parts
        Part -> (B, C) float32, ``-inf``-free.
    listed
        (B, C) bool: not bought, not a duplicate.
    tail
        (B, C) bool: a tail product.
    """

    rows: np.ndarray
    parts: Arrays
    listed: np.ndarray
    tail: np.ndarray

    @classmethod
    def of(
        cls,
        parts: Arrays,
        history: sparse.csr_matrix,
        tail: np.ndarray,
        depth: int = 150,
        stock: np.ndarray | None = None,
    ) -> "Candidates":
        """Return the pool of (B, n) parts; ``stock`` (n,) bool is what may be listed."""
        stocked_tail = tail if stock is None else tail & stock
        full = {name: np.broadcast_to(part, history.shape) for name, part in parts.items()}
        pools = [
            top_k(part, depth, exclude=history, allowed=allowed)[0]
            for part in full.values()
            for allowed in (stock, stocked_tail)
        ]
        rows = np.sort(np.concatenate(pools, axis=1), axis=1)
        listed = rows >= 0
        listed[:, 1:] &= rows[:, 1:] != rows[:, :-1]
        rows = np.maximum(rows, 0)
        taken = {name: np.take_along_axis(part, rows, axis=1) for name, part in full.items()}
        return cls(rows, taken, listed, tail[rows])

    def lists(
        self, weights: Mapping[str, float], scales: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (B, 20) rows of the best products, and of the best tail products."""
        scores = mix(self.parts, weights, scales, self.rows.shape)
        return self._best(scores, self.listed), self._best(scores, self.listed & self.tail)

    def _best(self, scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        places, _ = top_k(np.where(allowed, scores, -np.inf), CUTOFF)
        rows = np.take_along_axis(self.rows, np.maximum(places, 0), axis=1)
        best: np.ndarray = np.where(places >= 0, rows, -1)
        return best


def tune(
    home: HomeModel,
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
    settings: HomeSettings,
    stock: np.ndarray | None = None,
) -> dict[str, float]:
    """Return the mixing weights that serve the validation weeks best.

    Coordinate search from ``settings.start``: each weight in turn is multiplied with each factor
    and keeps what raises the objective, the mean of ndcg@20 and tail_ndcg@20, each over
    ``settings.reference``. A shop whose customers bought nothing new keeps the start. A part that
    is the same for all products gets the weight 0.

    Parameters
    ----------
    home
        Fitted on records before the validation weeks.
    history, targets
        (U, n) histories, and what was first bought in the validation weeks.
    tail
        (n,) bool.
    stock
        (n,) bool of what the shop may recommend; without it, everything.
    """
    weights = dict(settings.start)
    asked = np.flatnonzero(np.diff(targets.indptr))
    if not len(asked):
        return weights
    history, targets = history[asked], targets[asked]
    pool, silent = _pool(home, history, tail, list(weights), stock)
    # A part that says nothing yet, such as a model whose noise hides all it has learned, can't be
    # judged: what it says later, no validation week has seen.
    weights |= dict.fromkeys(silent, 0.0)

    def objective(tried: Mapping[str, float]) -> np.ndarray:
        """Return (B,) what each customer adds to the mean objective."""
        sums = evaluate(*pool.lists(tried, home.part_scales), targets, tail)
        values = np.zeros(len(asked))
        for metric, reference in settings.reference.items():
            own = sums.per_customer(metric)
            asked_for = ~np.isnan(own)
            share = len(own) / max(int(asked_for.sum()), 1)
            values[asked_for] += own[asked_for] * share / reference
        return values

    best = objective(weights)
    for _ in range(settings.rounds):
        for name in settings.start:
            start = weights[name]
            for factor in settings.factors:
                tried = {**weights, name: start * factor}
                values = objective(tried)
                gain = values - best
                error = float(gain.std()) / max(len(gain), 1) ** 0.5
                if gain.mean() > settings.confidence * error and len(gain) > 1:
                    best, weights = values, tried
    return weights


def _pool(
    home: HomeModel,
    history: sparse.csr_matrix,
    tail: np.ndarray,
    names: Sequence[str],
    stock: np.ndarray | None,
) -> tuple[Candidates, list[str]]:
    """Return everyone's candidates, and the parts that are the same for all of them.

    In blocks of customers: all parts of all products are never in memory for everyone.
    """
    size = max(1, _POOL_BYTES // (4 * max(1, history.shape[1]) * max(1, len(names))))
    pools, ranges = [], []
    for start in range(0, history.shape[0], size):
        block = history[start : start + size]
        parts = home.parts(block, names)
        pools.append(Candidates.of(parts, block, tail, stock=stock))
        sized = [part if part.size else np.zeros(1) for part in parts.values()]
        ranges.append([(part.min(), part.max()) for part in sized])
    spread = np.array(ranges)
    silent = spread[:, :, 0].min(axis=0) == spread[:, :, 1].max(axis=0)
    whole = Candidates(
        np.concatenate([pool.rows for pool in pools]),
        {name: np.concatenate([pool.parts[name] for pool in pools]) for name in names},
        np.concatenate([pool.listed for pool in pools]),
        np.concatenate([pool.tail for pool in pools]),
    )
    return whole, [name for name, same in zip(names, silent, strict=True) if same]


def choose_weights(
    model: GlobalModel,
    period: ShopPeriod,
    tail: np.ndarray,
    settings: HomeSettings,
    *,
    stock: np.ndarray | None = None,
    asked: np.ndarray | None = None,
    others: Mapping[str, Scores] | None = None,
    own_ease: Callable[[float], Ease] | None = None,
) -> dict[str, float]:
    """Fit before a shop's validation weeks and return the weights that serve those best.

    Parameters
    ----------
    period
        At the beginning of the validation weeks.
    tail, stock
        See :func:`tune`.
    asked
        Numbers of the customers to tune on; default: all.
    others, own_ease
        See :meth:`HomeModel.fit`.
    """
    home = HomeModel.fit(model, period.history, settings, others, own_ease, stock)
    rows = np.arange(period.history.shape[0]) if asked is None else asked
    history, targets = period.history[rows], period.targets[rows]
    return tune(home, history, targets, tail, settings, stock)
