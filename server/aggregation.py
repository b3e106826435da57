"""Many shops' arrays into one: sums, means, the popularity release and server optimisers.

Arrays in, arrays out, no Flower types. Every sum runs in float64 over the shops in the order of
their public keys, so the result does not depend on who answered first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from common.features import Feature
from common.popularity import rates
from common.protocol import POPULARITY, Arrays, TrainingPlan
from common.stocked_rows import ByRow

OptimizerName = Literal["none", "momentum", "adam", "yogi"]

# What each optimiser remembers of an array: its first and second moment.
_SLOTS: Mapping[OptimizerName, str] = {"none": "", "momentum": "m", "adam": "mv", "yogi": "mv"}


@dataclass(frozen=True)
class Contribution:
    """One shop's reply to one exchange.

    Attributes
    ----------
    rows
        Name -> (R,) bool of the rows of a whole array that the shop sends and ``arrays`` holds;
        arrays that are not named are whole.
    """

    shop: str
    weight: float
    arrays: Arrays
    rows: ByRow = field(default_factory=dict)

    def whole_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array with the rows that the shop does not send."""
        shape = self.arrays[name].shape
        return (len(self.rows[name]), *shape[1:]) if name in self.rows else shape


def senders(contributions: Sequence[Contribution], name: str) -> np.ndarray | None:
    """Return (R,) how many shops send each row of an array; None where all send all of it."""
    if not any(name in c.rows for c in contributions):
        return None
    count = np.zeros(contributions[0].whole_shape(name)[0], np.int64)
    for contribution in contributions:
        count += contribution.rows.get(name, np.True_)
    return count


def weighted_sum(contributions: Sequence[Contribution]) -> Arrays:
    """Return ``Σ w_k x_k`` per array, in float64, whatever the order of ``contributions``.

    A row's sum is over the shops that send it; a row that none sends is 0.
    """
    ordered = sorted(contributions, key=lambda c: c.shop)
    first = ordered[0]
    total = {name: np.zeros(first.whole_shape(name), np.float64) for name in first.arrays}
    for contribution in ordered:
        for name, into in total.items():
            own = contribution.weight * contribution.arrays[name].astype(np.float64)
            if name in contribution.rows:
                into[contribution.rows[name]] += own
            else:
                into += own
    return total


def weighted_mean(contributions: Sequence[Contribution]) -> Arrays:
    """Return ``Σ w_k x_k / Σ w_k`` per array, in float64.

    The weights are public constants; with equal noise in every update, equal weights give the
    mean least noise. They are those of all shops, also in a row that only some send: what the
    others did not send is what they have of a product that they do not sell, nothing. So the mean
    is that of whole updates, with less noise. Divided by its senders, a row that few send would
    count for more than its customers.
    """
    weight = sum(c.weight for c in sorted(contributions, key=lambda c: c.shop))
    return {name: total / weight for name, total in weighted_sum(contributions).items()}


def popularity_rates(
    plan: TrainingPlan, contributions: Sequence[Contribution], features: Sequence[Feature] = ()
) -> np.ndarray:
    """Turn the shops' noisy clipped counts into public popularity rates.

    Parameters
    ----------
    plan
        Its ``popularity_noise_multiplier`` is the noise of each shop's counts, whose rows have
        norm 1 at most.
    contributions
        One ``popularity`` array ``(n,)`` a shop.
    features
        The catalogue's: what noise hides of a product is taken from its like.

    Returns
    -------
    ndarray
        ``(n,)`` float32; see :func:`common.popularity.rates`.
    """
    return summed_rates(plan, sum_popularity(contributions), len(contributions), features)


def summed_rates(
    plan: TrainingPlan,
    counts: np.ndarray,
    shops: int,
    features: Sequence[Feature],
    variances: np.ndarray | None = None,
) -> np.ndarray:
    """Turn the sum ``(n,)`` of so many shops' noisy counts into public popularity rates.

    Parameters
    ----------
    variances
        ``(n,)`` how many times the plan's noise variance is in each count, infinite where none was
        released; None: what the plan says of so many shops.

    Returns
    -------
    ndarray
        ``(n,)`` float32; see :func:`common.popularity.rates`.
    """
    if variances is not None:
        return rates(counts, np.sqrt(variances) * plan.popularity_noise_multiplier, features)
    times = plan.noise_variances(shops) if plan.private else 0.0
    return rates(counts, float(np.sqrt(times) * plan.popularity_noise_multiplier), features)


def sum_popularity(contributions: Sequence[Contribution]) -> np.ndarray:
    """Return the sum ``(n,)`` over shops of their noisy counts; weights play no part in it."""
    equal = [Contribution(c.shop, 1.0, c.arrays, c.rows) for c in contributions]
    return weighted_sum(equal)[POPULARITY]


@dataclass(frozen=True)
class ServerOptimizer:
    """A server optimiser of Reddi et al., "Adaptive Federated Optimization" (2021), Algorithm 2.

    ``none``: ``x += η Δ``. ``momentum``: ``m = β₁ m + Δ; x += η m``. ``adam``:
    ``m = β₁ m + (1 - β₁) Δ; v = β₂ v + (1 - β₂) Δ²; x += η m / (√v + τ)``. ``yogi``: as Adam,
    with ``v -= (1 - β₂) Δ² sign(v - Δ²)``. No bias correction, as in the paper; ``v`` starts at
    ``τ²``.

    The mean delta ``Δ`` plays the pseudo-gradient. What is remembered between rounds is plain
    named arrays, so that a checkpoint holds all of it.
    """

    name: OptimizerName = "none"
    learning_rate: float = 1.0
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
        """Return the memory before the first round: ``m/<name>`` and ``v/<name>``, float64."""
        fill = {"m": 0.0, "v": self.tau**2}
        return {
            f"{slot}/{name}": np.full(shape, fill[slot])
            for slot in _SLOTS[self.name]
            for name, shape in shapes.items()
        }

    def apply(
        self,
        state: Arrays,
        delta: Arrays,
        memory: Arrays,
        shops: int = 1,  # noqa: ARG002 - only optimisers that know the noise need these three
        server_round: int = 1,  # noqa: ARG002
        variances: float | None = None,  # noqa: ARG002
    ) -> tuple[Arrays, Arrays]:
        """Return the new state (float32) and memory; arrays without a delta stay as they are."""
        new_state, new_memory = dict(state), dict(memory)
        for name, change in delta.items():
            step = self._step(name, change.astype(np.float64), memory, new_memory)
            moved = state[name].astype(np.float64) + self.learning_rate * step
            new_state[name] = moved.astype(np.float32)
        return new_state, new_memory

    def _step(self, name: str, delta: np.ndarray, memory: Arrays, new: Arrays) -> np.ndarray:
        if self.name == "none":
            return delta
        share = 1.0 if self.name == "momentum" else 1 - self.beta_1
        m = new[f"m/{name}"] = self.beta_1 * memory[f"m/{name}"] + share * delta
        if self.name == "momentum":
            return m
        v, square = memory[f"v/{name}"], delta**2
        if self.name == "adam":
            v = self.beta_2 * v + (1 - self.beta_2) * square
        else:
            v = v - (1 - self.beta_2) * square * np.sign(v - square)
        new[f"v/{name}"] = v
        step: np.ndarray = m / (np.sqrt(v) + self.tau)
        return step
