"""A shop that has just joined: the others' model, and a few days of its own records."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from client.data.periods import ShopPeriod, customer_counts, histories
from client.home.personalization import HomeModel
from client.home.segment_fitting import what_sells
from client.home.shop import untrained
from client.home.weight_search import choose_weights
from client.home_settings import HomeSettings
from common.model import GlobalModel
from common.schema import ShopEvents
from common.scoring import ScoreFunction
from simulations.cold_start.measure import Case, Models, asked_only, everyone, measure
from simulations.experiment import Experiment
from simulations.world import World

_DAY = 86_400
#: Days of its own records that a new shop has; -1: all there are.
DAYS = (0, 7, 28, -1)
#: One shop in so many is new.
ONE_IN = 4
QUESTION = "What does a shop that has just joined, with {days} of its own records, recommend?"


def new_shops(world: World) -> list[str]:
    """Return the merchants that are left out of training: spread evenly over the shops' sizes."""
    shops = [shop for shop in world.measured_shops if len(shop)]
    by_size = sorted(shops, key=lambda shop: (len(shop.user_ids), shop.merchant_id))
    count = max(1, len(by_size) // ONE_IN)
    places = ((np.arange(count) + 0.5) * len(by_size) / count).astype(np.int64)
    return sorted(by_size[place].merchant_id for place in places)


def cold_shops(
    experiment: Experiment, world: World, others: World, trained: Mapping[str, Models]
) -> Iterator[Case]:
    """Yield one case for each number of days.

    Parameters
    ----------
    world, others
        With the new shops, and as it was trained on: without them.
    """
    known = {shop.merchant_id for shop in others.shops}
    new = [shop for shop in world.measured_shops if len(shop) and shop.merchant_id not in known]
    for days in DAYS:
        words = {0: "no day", -1: "all"}.get(days, f"{days} days")
        references = ("everywhere",) if not days else ("everywhere", "popularity", "local")
        case = Case(f"shop-{days if days >= 0 else 'all'}", QUESTION.format(days=words), references)
        case.facts = {"days": days, "shops": len(new), "shops_trained": len(others.shops)}
        for shop in new:
            _add_shop(case, experiment, world, others, shop, days, trained)
        yield case


@dataclass(frozen=True)
class _Window:
    """What a new shop knows, and what its customers buy next."""

    records: ShopEvents
    begin: int
    end: int
    half_life_days: float
    n_items: int

    @classmethod
    def of(cls, world: World, shop: ShopEvents, days: int) -> "_Window":
        end = world.split.train_until
        past = shop.before(end)
        begin = int(past.timestamps.min()) if len(past) else end
        if days >= 0:
            begin = max(begin, end - days * _DAY)
        return cls(past.since(begin), begin, end, world.half_life_days, world.catalogue.size)

    def history(self) -> sparse.csr_matrix:
        """Return (U, n) what each customer did in these days."""
        return histories(self.records, self.n_items, self.half_life_days, self.end)

    def tuning(self, share: float) -> ShopPeriod:
        """Return the window cut in time: what weights are chosen on."""
        cut = self.end - max(1, round(share * (self.end - self.begin)))
        before, after = self.records.before(cut), self.records.since(cut)
        return ShopPeriod.of(before, after, self.n_items, self.half_life_days, cut)


def _add_shop(
    case: Case,
    experiment: Experiment,
    world: World,
    others: World,
    shop: ShopEvents,
    days: int,
    trained: Mapping[str, Models],
) -> None:
    window = _Window.of(world, shop, days)
    history = window.history()
    later = shop.since(world.split.train_until).matrix(world.catalogue.size)
    targets = sparse.csr_matrix(later - later.multiply(history > 0))
    targets.eliminate_zeros()
    asked = np.intersect1d(asked_only(targets), world.measured[shop.merchant_id])
    tail, stock = others.test.tail, world.stock.get(shop.merchant_id)
    own_counts = customer_counts(history).astype(np.float32)
    known, targets = history[asked], targets[asked]

    def add(name: str, words: str, score: ScoreFunction) -> None:
        case.add(name, words, measure(score, known, targets, tail, stock))

    def adapt(model: GlobalModel, tuning: GlobalModel, how: HomeSettings) -> HomeModel:
        weights = choose_weights(
            tuning, window.tuning(experiment.split.validation_share), tail, how, stock=stock
        )
        fitted = HomeModel.fit(model, history, how, stock=stock)
        return replace(fitted, mixing_weights=weights)

    if days:
        add("popularity", "what its own customers bought", everyone(own_counts))
        alone = untrained(world.catalogue)
        home = adapt(alone, alone, experiment.home.local)
        add("local", "the best that it can do alone", _rows(home, known))
    share = experiment.split.validation_share
    first = True
    for name, models in trained.items():
        model = models.final
        if first:
            words = "what the other shops' customers bought, as released"
            add("everywhere", words, everyone(model.popularity_bias))
            first = False
        add(
            f"{name}-global",
            "the other shops' model, and each customer's own days",
            _rows(model, known),
        )
        if days:
            how = experiment.home.of_plan(models.plan)
            home = adapt(model, models.tuning, how)
            add(f"{name}", "the same, adapted at home on these days", _rows(home, known))
            served = _served(home, known)
            words = "the same; a customer without a history gets what sells here and everywhere"
            add(f"{name}-served", words, served)
            better = _adapting_pays(window, models.tuning, how, home, tail, stock, share)
            add(
                f"{name}-chosen",
                "served so only once that does better than the global model on its last days",
                served if better else _rows(model, known),
            )
            case.facts.setdefault("adapted", {}).setdefault(name, []).append(better)


def _adapting_pays(
    window: _Window,
    tuning: GlobalModel,
    how: HomeSettings,
    home: HomeModel,
    tail: np.ndarray,
    stock: np.ndarray | None,
    share: float,
) -> bool:
    """Whether a mixture fitted before the window's last days serves these better.

    Ordinary customers are asked, so that what decides is ndcg@20; both see the same history.
    """
    period = window.tuning(share)
    asked = asked_only(period.targets)
    if not len(asked):
        return False
    before = replace(
        HomeModel.fit(tuning, period.history, how, stock=stock),
        mixing_weights=home.mixing_weights,
    )
    history, targets = period.history[asked], sparse.csr_matrix(period.targets[asked])
    adapted, plain = (
        measure(_rows(model, history), history, targets, tail, stock).summary()["ndcg@20"]
        for model in (before, tuning)
    )
    return adapted > plain


def _rows(home: HomeModel | GlobalModel, history: sparse.csr_matrix) -> ScoreFunction:
    return lambda rows: home.scores(history[rows])


def _served(home: HomeModel, history: sparse.csr_matrix) -> ScoreFunction:
    """Return the scores that a shop serves: see :mod:`client.home.recommending`."""
    sells = what_sells(home)

    def score(rows: slice) -> np.ndarray:
        found = home.scores(history[rows])
        cold = np.diff(history[rows].indptr) == 0
        found[cold] = sells
        return found

    return score
