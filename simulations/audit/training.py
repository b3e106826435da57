"""Train one model of an audit, and show an attack what left the shops on the way.

The shops' side is ``release_popularity`` of :mod:`client.rounds.popularity_release` and
``train_round`` of :mod:`client.training` as they are deployed, the server's its own aggregation and
optimiser; what lies between them in a deployment (messages, ledgers, checkpoints) moves arrays and
changes none, and is left out: an audit trains dozens of models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from client.privacy.noise import SeededNoise
from client.rounds.popularity_release import release_popularity
from client.training import train_round
from common.features import Catalogue
from common.model import initial_state, state_spec, trained_names
from common.protocol import POPULARITY, Arrays, TrainingPlan
from common.rng import derive
from common.schema import ShopEvents
from server.aggregation import Contribution, ServerOptimizer, popularity_rates, weighted_mean
from server.subspace import SubspaceOptimizer

Optimizer = ServerOptimizer | SubspaceOptimizer


@dataclass(frozen=True)
class Release:
    """What left the shops in one exchange.

    Attributes
    ----------
    server_round
        0 is the popularity histograms'.
    state
        The released global state that the shops read; empty in round 0.
    updates
        Merchant id -> arrays.
    """

    server_round: int
    state: Arrays
    updates: Mapping[str, Arrays]


def train(
    plan: TrainingPlan,
    optimizer: Optimizer,
    shops: Sequence[ShopEvents],
    catalogue: Catalogue,
    seed: int,
    show: Callable[[Release], object] = lambda _: None,
) -> Arrays:
    """Return the global state after the plan's last round.

    Parameters
    ----------
    seed
        Of the noise and the samples, by shop and round.
    show
        Called with every release, in order.
    """

    def stream(purpose: str, shop: ShopEvents, server_round: int) -> np.random.Generator:
        merchant_id = shop.merchant_id
        return derive(seed, purpose=purpose, merchant_id=merchant_id, server_round=server_round)

    def noise(shop: ShopEvents, server_round: int) -> SeededNoise:
        return SeededNoise(stream("audit-noise", shop, server_round))

    size = catalogue.size
    updates = {s.merchant_id: release_popularity(plan, s, size, noise(s, 0)) for s in shops}
    show(Release(0, {}, updates))
    state = initial_state(plan.model, size)
    state[POPULARITY] = popularity_rates(plan, _contributions(updates), catalogue.features)
    shapes = state_spec(plan.model, size)
    memory = optimizer.start({name: shapes[name] for name in trained_names(plan)})
    for server_round in range(1, plan.rounds + 1):
        updates = {
            shop.merchant_id: train_round(
                plan,
                server_round,
                state,
                shop,
                catalogue,
                noise(shop, server_round),
                stream("audit-sampling", shop, server_round),
            )
            for shop in shops
        }
        show(Release(server_round, state, updates))
        mean = weighted_mean(_contributions(updates))
        state, memory = optimizer.apply(state, mean, memory, len(shops), server_round)
    return state


def only(events: ShopEvents, kept: np.ndarray) -> ShopEvents:
    """Return a shop that has only the customers ``kept``, (U,) bool, and never had others."""
    number = np.cumsum(kept) - 1
    rows = kept[events.users]
    chosen = events.select(rows)
    return replace(
        chosen,
        user_ids=events.user_ids[kept],
        users=number[chosen.users].astype(np.int32),
        attributes={name: values[kept] for name, values in events.attributes.items()},
    )


def _contributions(updates: Mapping[str, Arrays]) -> list[Contribution]:
    return [Contribution(shop, 1.0, arrays) for shop, arrays in updates.items()]
