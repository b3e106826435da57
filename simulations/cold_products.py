"""A product that nobody has bought: only its content can say who will like it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from scipy import sparse

from client.home import untrained
from client.home_settings import HomeSettings
from client.periods import ShopPeriod, customer_counts
from client.personalization import HomeModel, choose_weights
from common.features import Catalogue
from common.model import GlobalModel
from common.rng import derive
from simulations.cold_measure import Case, Models, asked_only, everyone, measure
from simulations.experiment import Experiment
from simulations.world import World

#: Share of the products that nobody is made to have bought.
SHARE = 0.1
QUESTION = "Of products that nobody has bought before, which does a customer buy next?"
#: A group's mean counts as much as so many of its products.
_SHRINK = 3.0

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


def group_popularity(values: np.ndarray, catalogue: Catalogue, known: np.ndarray) -> np.ndarray:
    """Return (n,) what products of the same content are like: means over the known ones.

    From the coarsest kind of content to the finest, each group's mean is shrunk to that of the
    coarser groups before it.

    Parameters
    ----------
    values
        (n,) popularity.
    known
        (n,) bool: products that could be bought.
    """
    estimate = np.full(len(values), float(values[known].mean()) if known.any() else 0.0)
    single = [f for f in catalogue.features if len(np.unique(f.rows)) == len(f.rows)]
    for feature in sorted(single, key=lambda f: len(f.values)):
        inside = known[feature.rows]
        rows, codes = feature.rows[inside], feature.codes[inside]
        count = np.bincount(codes, minlength=len(feature.values))
        total = np.bincount(codes, values[rows], len(feature.values))
        prior = estimate[feature.rows]
        estimate[feature.rows] = (total[feature.codes] + _SHRINK * prior) / (
            count[feature.codes] + _SHRINK
        )
    return estimate


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
    references = ("group-here", "group-everywhere")
    case = Case("product", QUESTION, references, facts={"products": int(new.sum())})
    stream = derive(experiment.run.seed, purpose="cold-products-chance")
    chance = stream.random(world.catalogue.size)
    for shop in world.measured_shops:
        merchant_id = shop.merchant_id
        stock = before.stock.get(merchant_id)
        allowed = new if stock is None else new & stock
        later = shop.since(world.split.train_until).matrix(world.catalogue.size)
        targets = sparse.csr_matrix(later @ sparse.diags_array(new.astype(np.float32)))
        targets.eliminate_zeros()
        history = _aligned(before, shop.merchant_id, shop.user_ids)
        asked = np.intersect1d(asked_only(targets), world.measured[merchant_id])
        # Whoever has no history is another case.
        asked = asked[np.diff(history.indptr)[asked] > 0]
        known, wanted = history[asked], targets[asked]
        counts = customer_counts(history).astype(np.float64)
        here = group_popularity(
            counts * (len(counts) / max(counts.sum(), 1.0)), world.catalogue, ~new
        )

        def add(name: str, words: str, score: Scores) -> None:
            case.add(
                name,
                words,
                measure(lambda rows: score(known[rows]), known, wanted, new, allowed),  # noqa: B023
            )

        case.add(
            "chance",
            "in an order drawn once",
            measure(everyone(chance), known, wanted, new, allowed),
        )
        words = "what sells of the same content at this shop"
        case.add("group-here", words, measure(everyone(here), known, wanted, new, allowed))
        local = _home(before, merchant_id, experiment.home.local, None)
        add("local", "the shop alone: the customer's content profile", local.scores)
        add(
            "local-backed-off",
            "the same, and what sells of the same content here",
            _filled(local, here, new),
        )
        first = True
        for name, models in trained.items():
            model = models.final
            everywhere = group_popularity(model.popularity_bias, world.catalogue, ~new)
            if first:
                words = "what sells of the same content at all shops, as released"
                case.add(
                    "group-everywhere",
                    words,
                    measure(everyone(everywhere), known, wanted, new, allowed),
                )
                add("content", "the customer's content profile alone", model.content_part)
                first = False
            add(f"{name}-global", "the global model as served", model.scores)
            add(
                f"{name}-global-backed-off",
                "the same, and what sells of the same content everywhere",
                _raised(model, everywhere, new),
            )
            how = experiment.home.federated_dp if models.private else experiment.home.federated
            home = _home(before, merchant_id, how, models)
            add(name, "the global model adapted at home", home.scores)
            add(
                f"{name}-backed-off",
                "the same, and what sells of the same content here",
                _filled(home, here, new),
            )
    return case


def _raised(model: GlobalModel, everywhere: np.ndarray, new: np.ndarray) -> Scores:
    """Return the global model's scores where a new product is as popular as its like are."""
    more = np.where(new, everywhere - model.popularity_bias, 0.0).astype(np.float32)
    return lambda history: model.scores(history) + more


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
        HomeModel.fit(final, before.test.history[merchant_id], how), mixing_weights=weights
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
