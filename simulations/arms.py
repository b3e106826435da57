"""The arms of an experiment: who may know what, and what that brings each shop.

Every arm is a mixture of parts at each shop (:class:`client.home.personalization.HomeModel`), tuned
on the validation weeks and then fitted on all training weeks. Arms differ in the parts that they
may have.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from client.data.periods import ShopPeriod
from client.home.ease import Ease, Scores
from client.home.evaluation import measure_lists
from client.home.personalization import HomeModel
from client.home.weight_search import choose_weights
from client.home_settings import HomeSettings
from common.metrics import MetricSums
from common.model import GlobalModel
from common.protocol import Arrays, ModelPlan
from common.scoring import TopLists
from simulations.pooled import ProductEase, weighed_rows
from simulations.world import Period, World

_KEPT_BYTES = 3 * 2**30


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
    others: Mapping[str, Scores]


@dataclass(frozen=True)
class OwnEases:
    """EASE of each measured shop's own customers: the same in every arm, so fitted once.

    Each is as large as the square of a shop's customers: what would be too much is fitted anew.
    """

    kept: dict[tuple[int, str, float, int], Ease] = field(default_factory=dict)

    def of(
        self, period: Period, merchant_id: str, settings: HomeSettings
    ) -> Callable[[float], Ease]:
        """Return what fits a shop's EASE with a ridge."""

        def fit(ridge: float) -> Ease:
            key = (period.reference_time, merchant_id, ridge, settings.max_customers)
            if key in self.kept:
                return self.kept[key]
            ease = Ease.fit(period.history[merchant_id], ridge, settings.max_customers)
            held = sum(known.inverse.nbytes for known in self.kept.values())
            if held + ease.inverse.nbytes <= _KEPT_BYTES:
                self.kept[key] = ease
            return ease

        return fit


def global_model(world: World, plan: ModelPlan, state: Arrays) -> GlobalModel:
    """Return a trained global model on the world's catalogue."""
    return GlobalModel(plan, world.catalogue, state)


def pooled_ease(
    world: World, period: Period, ridge: float, largest: int, power: float = 0.5
) -> Scores:
    """Return EASE over the customers of all shops together: what nobody may do in life.

    It solves a system as large as there are customers, or else products; where both are more than
    ``largest``, it takes all customers and the most popular products. ``power`` weighs what they
    have in common as it does a federation's directions: :func:`common.model.weighed`.
    """
    rows = [period.history[shop.merchant_id] for shop in world.shops]
    histories = sparse.csr_matrix(sparse.vstack(rows))
    histories = histories[np.flatnonzero(np.diff(histories.indptr))]
    if histories.shape[0] <= largest:
        if power == 0.5:
            return Ease.fit(histories, ridge, largest)
        return Ease.fit(histories[:0], ridge, largest, weighed_rows(histories, power))
    return ProductEase.fit(histories, ridge, largest, power)


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
    eases: OwnEases,
) -> Iterator[ShopOutcome]:
    """Adapt at each shop: weights from the validation weeks, then fitted on all of training.

    Parameters
    ----------
    tuning, final
        What the arm knows before the validation weeks, and before the test; called once each,
        one after the other, so that both are never held together.
    eases
        Shops' own EASE, as far as other arms have fitted it.
    """
    weights = {}
    known = tuning()
    for shop in world.measured_shops:
        period, merchant_id = world.validation, shop.merchant_id
        weights[merchant_id] = choose_weights(
            known.model,
            ShopPeriod(period.history[merchant_id], period.targets[merchant_id]),
            period.tail,
            settings,
            stock=world.stock.get(merchant_id),
            asked=world.measured[merchant_id],
            others=known.others,
            own_ease=eases.of(period, merchant_id, settings),
        )
    known = final()
    for shop in world.measured_shops:
        history = world.test.history[shop.merchant_id]
        own_ease = eases.of(world.test, shop.merchant_id, settings)
        stock = world.stock.get(shop.merchant_id)
        fitted = HomeModel.fit(known.model, history, settings, known.others, own_ease, stock)
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
    period, asked = world.test, world.asked[merchant_id]
    history = sparse.csr_matrix(period.history[merchant_id][asked])
    targets = sparse.csr_matrix(period.targets[merchant_id][asked])
    found = measure_lists(
        score, history, targets, period.tail, world.stock.get(merchant_id), period.quintiles
    )
    return ShopOutcome(merchant_id, *found, weights)
