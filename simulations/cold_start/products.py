"""A product that nobody has bought: only its content can say who will like it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from client.data.periods import ShopPeriod, customer_counts
from client.home.personalization import HomeModel
from client.home.shop import untrained
from client.home.weight_search import choose_weights
from client.home_settings import HomeSettings
from common.catalogue.catalogue_versions import with_popularity
from common.metrics import CUTOFF, MetricSums
from common.model import GlobalModel
from common.popularity import of_like
from common.protocol import POPULARITY
from common.rng import derive
from common.schema import ShopEvents
from common.wording import counted
from simulations.cold_start.measure import Case, Models, asked_only, everyone, measure
from simulations.experiment import Experiment
from simulations.world import World

#: Share of the products that nobody is made to have bought.
SHARE = 0.1
QUESTION = "Of products that nobody has bought before, which does a customer buy next?"

Scores = Callable[[sparse.csr_matrix], np.ndarray]


def new_products(world: World, seed: int) -> np.ndarray:
    """Return (n,) bool: products drawn by seed, whatever was bought."""
    stream = derive(seed, purpose="cold-products")
    count = max(1, round(SHARE * world.catalogue.size))
    new = np.zeros(world.catalogue.size, dtype=bool)
    new[stream.permutation(world.catalogue.size)[:count]] = True
    return new


def records_of(world: World, new: np.ndarray) -> np.ndarray:
    """Return (N,) bool: the records of these products in training."""
    frame = world.dataset.tables.interactions
    rows = world.catalogue.rows(frame["item_id"].cat.categories.to_numpy(dtype=object))
    inside = np.where(rows >= 0, new[rows], False)[frame["item_id"].cat.codes.to_numpy()]
    found: np.ndarray = inside & (frame["timestamp"].to_numpy() < world.split.train_until)
    return found


def cold_products(
    experiment: Experiment,
    world: World,
    before: World,
    new: np.ndarray,
    trained: Mapping[str, Models],
) -> Case:
    """Return the case.

    Parameters
    ----------
    world, before
        With the products' sales, and as it was trained on: without those in training.
    new
        (n,) bool.
    """
    case = Case("product", QUESTION, ("group-here", "group-everywhere"))
    case.facts = {"products": int(new.sum())}
    if new.sum() <= CUTOFF:
        case.notes.append(
            f"new: only {counted(int(new.sum()), 'product')}, and a list of {CUTOFF} holds all, so "
            f"that recall@{CUTOFF} is 1 in any order"
        )
    stream = derive(experiment.run.seed, purpose="cold-products-chance")
    chance = stream.random(world.catalogue.size)
    there = {shop.merchant_id for shop in before.shops}
    # A shop that has nothing but these sales, or none at all, has no customer to ask.
    for shop in (shop for shop in world.measured_shops if shop.merchant_id in there):
        asked = _Asked.of(world, before, shop, new)

        def add(name: str, words: str, score: Scores | np.ndarray, asked: _Asked = asked) -> None:
            case.add(name, words, asked.measured(score, new))

        add("chance", "in an order drawn once", chance)
        add("group-here", "what sells of the same content at this shop", asked.here)
        local = _home(before, shop.merchant_id, experiment.home.local, None)
        add("local", "the shop alone: the customer's content profile", local.scores)
        words = "the same, and what sells of the same content here"
        add("local-backed-off", words, _filled(local, asked.here, new))
        for number, (name, models) in enumerate(trained.items()):
            model = _added(models.final, new)
            if not number:
                words = "what sells of the same content at all shops, as released"
                add("group-everywhere", words, model.popularity_of_like)
                add("content", "the customer's content profile alone", model.content_part)
            add(f"{name}-taste", "the global model without popularity", _by_taste(model))
            words = "the global model as served: what sells of the same content is in it"
            add(f"{name}-global", words, model.scores)
            how = experiment.home.of_plan(models.plan)
            home = _home(before, shop.merchant_id, how, replace(models, final=model))
            add(name, "the same adapted at home, as served", home.scores)
    return case


@dataclass(frozen=True)
class _Asked:
    """A shop's customers with a history who bought any of the new products.

    Attributes
    ----------
    history, targets
        (U, n).
    here
        (n,) what sells of a product's content at this shop.
    allowed
        (n,) bool: new products that the shop stocks.
    """

    history: sparse.csr_matrix
    targets: sparse.csr_matrix
    here: np.ndarray
    allowed: np.ndarray

    @classmethod
    def of(cls, world: World, before: World, shop: ShopEvents, new: np.ndarray) -> "_Asked":
        stock = before.stock.get(shop.merchant_id)
        later = shop.since(world.split.train_until).matrix(world.catalogue.size)
        targets = sparse.csr_matrix(later @ sparse.diags_array(new.astype(np.float32)))
        targets.eliminate_zeros()
        history = _aligned(before, shop.merchant_id, shop.user_ids)
        asked = np.intersect1d(asked_only(targets), world.measured[shop.merchant_id])
        # Whoever has no history is another case.
        asked = asked[np.diff(history.indptr)[asked] > 0]
        counts = customer_counts(history).astype(np.float64)
        popularity = counts * (len(counts) / max(counts.sum(), 1.0))
        here = of_like(popularity, ~new, world.catalogue.features)
        allowed = new if stock is None else new & stock
        return cls(history[asked], targets[asked], here, allowed)

    def measured(self, score: Scores | np.ndarray, new: np.ndarray) -> MetricSums:
        """Return the figures of scores of histories, or of one order for everybody."""
        rows = (
            everyone(score)
            if isinstance(score, np.ndarray)
            else lambda customers: score(self.history[customers])
        )
        return measure(rows, self.history, self.targets, new, self.allowed)


def _added(model: GlobalModel, new: np.ndarray) -> GlobalModel:
    """Return the model as it serves products that are added after its training."""
    popularity = np.where(new, np.float32(0), model.state[POPULARITY])
    state = with_popularity(dict(model.state), popularity, model.catalogue, model.plan)
    return replace(model, state=state)


def _by_taste(model: GlobalModel) -> Scores:
    """Return what a model says of a customer's taste, without popularity."""
    return lambda history: model.scores(history) - model.popularity_part


def _filled(home: HomeModel, here: np.ndarray, new: np.ndarray) -> Scores:
    """Return the scores of a shop that takes a new product to sell as its like do."""
    own = np.where(new, here, home.own_popularity[0]).astype(np.float32)
    return replace(home, own_popularity=own[None, :]).scores


def _home(
    before: World,
    merchant_id: str,
    how: HomeSettings,
    models: Models | None,
) -> HomeModel:
    alone: GlobalModel = untrained(before.catalogue)
    period = before.validation
    weights = choose_weights(
        alone if models is None else models.tuning,
        ShopPeriod(period.history[merchant_id], period.targets[merchant_id]),
        period.tail,
        how,
        stock=before.stock.get(merchant_id),
    )
    final = alone if models is None else models.final
    return replace(
        HomeModel.fit(
            final, before.test.history[merchant_id], how, stock=before.stock.get(merchant_id)
        ),
        mixing_weights=weights,
    )


def _aligned(before: World, merchant_id: str, user_ids: np.ndarray) -> sparse.csr_matrix:
    """Return (U, n) histories in the order of ``user_ids``; empty for who is not there."""
    shop = next(shop for shop in before.shops if shop.merchant_id == merchant_id)
    places = {user: row for row, user in enumerate(shop.user_ids.tolist())}
    rows = np.array([places.get(user, -1) for user in user_ids.tolist()])
    there = np.flatnonzero(rows >= 0)
    pick = sparse.csr_matrix(
        (np.ones(len(there), np.float32), (there, rows[there])),
        shape=(len(user_ids), len(shop.user_ids)),
    )
    return sparse.csr_matrix(pick @ before.test.history[merchant_id])
