"""The arms of an experiment: who may know what, and what that brings each shop.

Every arm is a mixture of parts at each shop (:class:`client.personalization.HomeModel`), tuned on
the validation weeks and then fitted on all training weeks. Arms differ in the parts they may have.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from client.personalization import Ease, HomeModel, HomeSettings, tune
from common.metrics import MetricSums, evaluate
from common.model import GlobalModel, initial_state
from common.protocol import Arrays, ModelPlan
from common.scoring import TopLists, top_lists
from simulations.world import Period, World

K = 20


@dataclass(frozen=True)
class ShopOutcome:
    """What one arm gives one shop: its metrics, its lists, and how it mixed."""

    merchant_id: str
    sums: MetricSums
    all_products: TopLists
    tail_products: TopLists
    weights: Mapping[str, float] | None


@dataclass(frozen=True)
class Knowledge:
    """What an arm knows beyond a shop's own records, at one moment.

    Attributes
    ----------
    model
        A global model; untrained where nothing was federated.
    others
        Further parts, such as pooled EASE.
    """

    model: GlobalModel
    others: Mapping[str, Ease]


def untrained(world: World) -> GlobalModel:
    """Return the global model before any shop has sent anything: public content alone."""
    plan = ModelPlan(dimension=1, learned_items=1)
    return GlobalModel(plan, world.catalogue, initial_state(plan, world.catalogue.size))


def global_model(world: World, plan: ModelPlan, state: Arrays) -> GlobalModel:
    """Return a trained global model on the world's catalogue."""
    return GlobalModel(plan, world.catalogue, state)


def pooled_ease(world: World, period: Period, ridge: float, max_customers: int) -> Ease:
    """Return EASE over the customers of all shops together: what nobody may do in life."""
    rows = [period.history[shop.merchant_id] for shop in world.shops]
    return Ease.fit(sparse.csr_matrix(sparse.vstack(rows)), ridge, max_customers)


def own_popularity(world: World, merchant_id: str) -> np.ndarray:
    """Return (n,) customers of each product of one shop."""
    history = world.test.history[merchant_id]
    return np.asarray((history > 0).sum(axis=0), dtype=np.float32).ravel()


def by_popularity(world: World) -> Iterator[ShopOutcome]:
    """Recommend what most customers of the same shop have bought."""
    for shop in world.measured_shops:
        counts = own_popularity(world, shop.merchant_id)[None, :]

        def score(history: sparse.csr_matrix, counts: np.ndarray = counts) -> np.ndarray:
            return np.repeat(counts, history.shape[0], axis=0)

        yield measure(world, shop.merchant_id, score, None)


def by_global_model(world: World, model: GlobalModel) -> Iterator[ShopOutcome]:
    """Recommend by the global model alone, without anything that a shop learned."""
    for shop in world.measured_shops:
        yield measure(world, shop.merchant_id, model.scores, None)


def at_home(
    world: World,
    settings: HomeSettings,
    tuning: Callable[[], Knowledge],
    final: Callable[[], Knowledge],
) -> Iterator[ShopOutcome]:
    """Adapt at each shop: weights from the validation weeks, then fitted on all of training.

    Parameters
    ----------
    tuning, final
        What the arm knows before the validation weeks, and before the test; called once each,
        one after the other, so that both are never held together.
    """
    weights = {}
    known = tuning()
    for shop in world.measured_shops:
        history = world.validation.history[shop.merchant_id]
        home = HomeModel.fit(known.model, history, settings, known.others)
        asked = world.measured[shop.merchant_id]
        targets = world.validation.targets[shop.merchant_id][asked]
        stock = world.stock.get(shop.merchant_id)
        tail = world.validation.tail
        weights[shop.merchant_id] = tune(home, history[asked], targets, tail, settings, stock)
    known = final()
    for shop in world.measured_shops:
        history = world.test.history[shop.merchant_id]
        fitted = HomeModel.fit(known.model, history, settings, known.others)
        home = replace(fitted, mixing_weights=weights[shop.merchant_id])
        yield measure(world, shop.merchant_id, home.scores, weights[shop.merchant_id])


def measure(
    world: World,
    merchant_id: str,
    score: Callable[[sparse.csr_matrix], np.ndarray],
    weights: Mapping[str, float] | None,
) -> ShopOutcome:
    """Rank for every measured customer with a history; hold the lists against the test weeks.

    ``score`` returns the (B, n) scores of (B, n) histories.
    """
    period, asked = world.test, world.measured[merchant_id]
    history = sparse.csr_matrix(period.history[merchant_id][asked])
    targets = sparse.csr_matrix(period.targets[merchant_id][asked])
    stock = world.stock.get(merchant_id)
    tail = period.tail if stock is None else period.tail & stock
    everything, tails = top_lists(
        lambda rows: score(history[rows]),
        history.shape[0],
        history.shape[1],
        K,
        exclude=history,
        allowed=(stock, tail),
    )
    known = np.diff(history.indptr) > 0
    lists = [
        replace(found, rows=np.where(known[:, None], found.rows, -1))
        for found in (everything, tails)
    ]
    sums = evaluate(lists[0].rows, lists[1].rows, targets, period.tail, period.quintiles)
    return ShopOutcome(merchant_id, sums, lists[0], lists[1], weights)
