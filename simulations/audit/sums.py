"""A one-run audit of sums with shared noise: canaries among the customers of one shop of many.

The observer sees what the plan lets it see at most: a sum in which the fewest honest shops that the
plan allows have added their shares, the canaries' shop among them, with all that the others added
known and taken off. The other honest shops have no customers. Masks are left out: the masked sum is
the plain sum to the last bit, which tests of their own hold.
"""

import math
from collections.abc import Callable

import numpy as np

from client.privacy.discrete import discrete_gaussian
from client.privacy.noise import SeededNoise
from client.rounds.popularity_release import whole_popularity
from client.training import whole_gradients
from common.accounting import epsilon, plan_spends
from common.features import Catalogue
from common.model import initial_state, trained_spec
from common.planning import with_noise
from common.protocol import ITEMS, POPULARITY, PUBLIC_WEIGHT, TrainingPlan
from common.rng import derive
from common.schema import ShopEvents
from common.secure_sum.encoding import (
    as_arrays,
    as_vector,
    coordinate_bound,
    from_words,
    to_words,
    vector_length,
)
from common.secure_sum.noise import share_std
from server.aggregation import Contribution, ServerOptimizer, summed_rates
from server.rounds.exchange import Exchange
from server.secure_sum.rounds import Summed, counts, mean_update
from simulations.audit.canaries import (
    Claim,
    audited_plan,
    canary_record,
    plant,
    with_room,
)
from simulations.audit.decoding import Outer, gradients, histogram_rows
from simulations.audit.settings import AuditSection
from simulations.audit.training import only
from simulations.documents import Document

#: Members of the roster, and honest survivors whose shares are in the sum: few of many, so that a
#: share for all of them is far too small.
MEMBERS, HONEST = 20, 5
# A release whose scores vary less than this part of what a canary adds has no noise to speak of.
_LEAST = 1e-6


def _deployed(plan: TrainingPlan, multiplier: float, _: int) -> float:
    return share_std(plan, multiplier)


def _for_all(plan: TrainingPlan, multiplier: float, _: int) -> float:
    return multiplier * plan.noise_steps / math.sqrt(MEMBERS)


def _of_deviation(plan: TrainingPlan, multiplier: float, _: int) -> float:
    return multiplier * plan.noise_steps / plan.honest_shops


def _not_of_popularity(plan: TrainingPlan, multiplier: float, server_round: int) -> float:
    return share_std(plan, multiplier) if server_round else 0.0


#: How a shop finds the standard deviation of its share, in whole steps, of a plan, a noise
#: multiplier and a round: as deployed, then with a mistake: shares of the variance for all members,
#: whoever survives; shares of the standard deviation; no noise in one of the tables.
SHARES: dict[str, Callable[[TrainingPlan, float, int], float]] = {
    "shared": _deployed,
    "shares-for-all": _for_all,
    "shares-of-deviation": _of_deviation,
    "table-of-sums-without-noise": _not_of_popularity,
}


def audit_sums(
    way: str,
    claimed: float,
    shop: ShopEvents,
    catalogue: Catalogue,
    settings: AuditSection,
    seed: int,
    progress: Callable[[str], object] = lambda _: None,
) -> Document:
    """Audit all sums of one plan under trust ``federation``.

    Each canary buys one product that no customer of the shop has bought.

    Parameters
    ----------
    way
        One of :data:`SHARES`.
    claimed
        The noise is what this ε needs; what is claimed is what the accountant says of it.
    """
    shop, free = with_room(shop, catalogue, settings)
    inside = derive(seed, purpose=f"audit-coins-{claimed}-{way}").random(len(free)) < 0.5
    base = audited_plan(claimed, settings.claimed_delta)
    plan = with_noise(base.model_copy(update={"trust": "federation", "honest_shops": HONEST}))
    planted = plant(shop, free)
    everyone = np.concatenate([np.ones(len(shop.user_ids), dtype=bool), inside])
    sums = _Sums(plan, way, only(planted, everyone), catalogue, seed)
    canaries = slice(len(shop.user_ids), None)
    size = catalogue.size

    summed = sums.of(0, {POPULARITY: (size,)}, {})
    found = counts(plan, summed)
    scores = _weighed(histogram_rows(plan, planted, catalogue), found[:, None], 1.0, canaries)
    state = initial_state(plan.model, size)
    state[POPULARITY] = summed_rates(plan, found, HONEST, catalogue.features)
    shapes = trained_spec(plan.model, size)
    optimizer = ServerOptimizer()
    memory = optimizer.start(shapes)
    for server_round in range(1, plan.rounds + 1):
        summed = sums.of(server_round, shapes, state)
        clip = plan.clipping_norm(server_round)
        expected = gradients(plan, server_round, state, planted, catalogue)
        y = summed.arrays[ITEMS] * (clip / plan.noise_steps)
        scores += _weighed(expected, y, clip, canaries)
        update = mean_update(plan, server_round, summed)
        state, memory = optimizer.apply(state, update, memory, HONEST, server_round)
        progress(f"round {server_round} of {plan.rounds}")
    delta = settings.claimed_delta
    claim = Claim(epsilon(plan_spends(plan), delta).value, delta)
    return canary_record(way, claim, scores, inside, settings)


class _Sums:
    """What the observer is left with of the sums of one plan."""

    def __init__(
        self, plan: TrainingPlan, way: str, shop: ShopEvents, catalogue: Catalogue, seed: int
    ) -> None:
        self._plan, self._way, self._shop = plan, way, shop
        self._catalogue, self._seed = catalogue, seed

    def of(
        self,
        server_round: int,
        shapes: dict[str, tuple[int, ...]],
        state: dict[str, np.ndarray],
    ) -> Summed:
        """Return the sum of a round: what the shops' own functions make of it, and their shares."""
        plan, length = self._plan, vector_length(shapes)
        if server_round:
            sampling = self._stream("sampling", server_round, 0)
            whole = as_vector(
                whole_gradients(plan, server_round, state, self._shop, self._catalogue, sampling),
                shapes,
            )
        else:
            whole = whole_popularity(plan, self._shop, self._catalogue.size)
        multiplier = plan.noise_multiplier if server_round else plan.popularity_noise_multiplier
        std = SHARES[self._way](plan, multiplier, server_round)
        bound = coordinate_bound(MEMBERS, length, std, plan.noise_steps)
        total = np.zeros(length, np.uint32)
        for number in range(plan.honest_shops):
            source = SeededNoise(self._stream("noise", server_round, number))
            noise = discrete_gaussian(source, length, std)
            total += to_words(whole if number == 0 else np.zeros_like(whole), noise, bound)
        there = [Contribution(str(k), PUBLIC_WEIGHT, {}) for k in range(plan.honest_shops)]
        exchange = Exchange(asked=MEMBERS, contributions=there)
        return Summed(exchange, as_arrays(from_words(total), shapes))

    def _stream(self, what: str, server_round: int, shop: int) -> np.random.Generator:
        purpose = f"audit-{what}-{self._plan.target_epsilon}-{self._way}"
        return derive(self._seed, purpose=purpose, merchant_id=str(shop), server_round=server_round)


def _weighed(expected: Outer, y: np.ndarray, norm: float, canaries: slice) -> np.ndarray:
    """Return (C,) evidence on the canaries' coins in one release.

    Parameters
    ----------
    expected
        What each customer adds if it is in.
    y
        What was released, of which a canary that is in makes ``norm``² of evidence.
    norm
        Of a canary's contribution.

    A release counts by how little it varies beyond the coins: a function of what was released, so
    the theorem allows it, and it finds one that has less noise than the others.
    """
    found = expected.against(y.astype(np.float64))[canaries]
    signal = norm**2
    noise = max(float(found.var()) - signal**2 / 4, _LEAST * signal**2)
    weighed: np.ndarray = found * (signal / noise)
    return weighed
