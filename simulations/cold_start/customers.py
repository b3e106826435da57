"""A customer with no history: what sells, and the taste of who has the same age or gender.

A segment's taste is read off the customers of the same shop, at the shop: the mean of what a model
says to them, less what it says to all. The central service keeps no such means: there attributes
count where the model has a table for them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from client.data.periods import customer_counts, histories
from client.home.adapting import fit_home
from client.home.segment_fitting import fit_segments, what_sells
from client.home.shop import HomeRecords
from client.home_settings import HomeSection
from common.metrics import evaluate
from common.model import GlobalModel
from common.rng import derive
from common.schema import ShopEvents
from common.scoring import top_lists
from simulations.cold_start.measure import Case, Models, asked_only, everyone, measure
from simulations.experiment import Experiment
from simulations.world import World

QUESTION = "What does a customer buy of whom no more is known than {names}?"
#: Each customer with attributes is hidden in one of so many trainings.
FOLDS = 2
#: A segment counts as much as the shop's mean when it has so many customers.
_SHRINK = 10.0
#: How much a segment's taste may count beside what sells, in standard deviations of both.
_STRENGTHS = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
_BLOCK = 64

Scores = Callable[[sparse.csr_matrix], np.ndarray]


def attribute_names(world: World) -> list[str]:
    """Return what is known of any customer."""
    names = {name for shop in world.shops for name, v in shop.attributes.items() if (v != "").any()}
    return sorted(names)


def described(shop: ShopEvents) -> np.ndarray:
    """Return (U,) bool: customers of whom anything is known."""
    known = np.zeros(len(shop.user_ids), dtype=bool)
    for values in shop.attributes.values():
        known |= values != ""
    return known


def hidden_customers(world: World, fold: int, seed: int) -> Mapping[str, np.ndarray]:
    """Return merchant -> numbers of the customers that one training does not see.

    They are among those who are measured, at shops that are.
    """
    hidden = {}
    for shop in world.measured_shops:
        users = np.intersect1d(np.flatnonzero(described(shop)), world.measured[shop.merchant_id])
        stream = derive(seed, purpose="cold-customers", merchant_id=shop.merchant_id)
        hidden[shop.merchant_id] = np.sort(stream.permutation(users)[fold::FOLDS])
    return hidden


def records_of(world: World, hidden: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (N,) bool: all records of these customers."""
    frame = world.dataset.tables.interactions
    merchants, users = frame["merchant_id"].cat, frame["user_id"].cat
    found = np.zeros(len(frame), dtype=bool)
    for shop in world.measured_shops:
        code = merchants.categories.get_loc(shop.merchant_id)
        names = shop.user_ids[hidden[shop.merchant_id]]
        chosen = np.isin(users.categories.to_numpy(dtype=object), names)
        found |= (merchants.codes.to_numpy() == code) & chosen[users.codes.to_numpy()]
    return found


@dataclass(frozen=True)
class Segments:
    """What a shop's segments like beyond what all its customers like.

    Attributes
    ----------
    members
        (name, value) -> (U,) float32, 1 for the customers of the segment.
    tastes
        (U, n) float32 what a model says to each customer, of spread 1.
    """

    members: Mapping[tuple[str, str], np.ndarray]
    tastes: np.ndarray

    @classmethod
    def of(cls, shop: ShopEvents, history: sparse.csr_matrix, score: Scores) -> "Segments":
        """Read them off (U, n) histories; a customer without one is in no segment."""
        active = np.diff(history.indptr) > 0
        tastes = np.zeros(history.shape, np.float32)
        for start in range(0, history.shape[0], _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, history.shape[0]))
            rows = rows[active[rows]]
            if len(rows):
                tastes[rows] = score(history[rows])
        if active.any():
            tastes[active] -= tastes[active].mean(axis=0)
            tastes /= float(tastes[active].std()) or 1.0
        members = {
            (name, str(value)): ((values == value) & active).astype(np.float32)
            for name, values in shop.attributes.items()
            for value in np.unique(values[values != ""])
        }
        return cls(members, tastes)

    def taste(self, attributes: Mapping[str, str], but: int | None = None) -> np.ndarray:
        """Return (n,) the taste of whoever has these attributes; ``but`` leaves a customer out."""
        total = np.zeros(self.tastes.shape[1], np.float32)
        for name, value in attributes.items():
            inside = self.members.get((name, value))
            if inside is None:
                continue
            weights = inside.copy()
            if but is not None:
                weights[but] = 0.0
            total += (weights @ self.tastes) / np.float32(weights.sum() + _SHRINK)
        return total


@dataclass(frozen=True)
class _Place:
    """One shop at one moment: what sells there, its segments, and whom to serve."""

    sells: np.ndarray
    segments: Mapping[str, Segments]
    people: Sequence[Mapping[str, str]]
    own_rows: Sequence[int | None]
    targets: sparse.csr_matrix
    stock: np.ndarray | None

    def tastes(self, kind: str) -> np.ndarray:
        """Return (B, n) the segment's taste of each customer."""
        found = [
            self.segments[kind].taste(person, own)
            for person, own in zip(self.people, self.own_rows, strict=True)
        ]
        return np.array(found).reshape(len(self.people), self.targets.shape[1])

    def scores(self, tastes: np.ndarray, strength: float) -> np.ndarray:
        """Return (B, n) what sells, moved by a segment's taste."""
        scale = float(self.sells.std()) or 1.0
        moved: np.ndarray = self.sells[None, :] / scale + np.float32(strength) * tastes
        return moved.astype(np.float32)


def cold_customers(
    experiment: Experiment,
    world: World,
    folds: Iterator[tuple[Mapping[str, np.ndarray], World, Mapping[str, Models]]],
) -> Case:
    """Return the case, over all folds.

    Parameters
    ----------
    folds
        Of each training: who was hidden from it, the world it saw, and its models.
    """
    names = attribute_names(world)
    words = ", ".join(names) or "an age, say"
    case = Case("customer", QUESTION.format(names=words), ("popularity", "everywhere"))
    if not names:  # nobody can be hidden, so nothing is trained for this
        case.facts = {"attributes": [], "trainings": 0, "strengths": {}}
        case.notes.append(
            "the data tell nothing of any customer, so nothing was trained or measured here: it "
            "takes a customers table with columns such as age, gender or occupation"
        )
        return case
    chosen: list[dict[str, float]] = []
    for hidden, seen, trained in folds:
        strengths = _strengths(seen, trained)
        chosen.append(strengths)
        for shop in seen.shops:
            if (users := hidden.get(shop.merchant_id)) is not None:
                _add_shop(case, experiment, world, seen, shop, users, trained, strengths)
    case.facts = {
        "attributes": names,
        "trainings": len(chosen),
        "strengths": {n: [s[n] for s in chosen] for n in (chosen[0] if chosen else {})},
    }
    return case


def _add_shop(
    case: Case,
    experiment: Experiment,
    world: World,
    seen: World,
    shop: ShopEvents,
    users: np.ndarray,
    trained: Mapping[str, Models],
    strengths: Mapping[str, float],
) -> None:
    whole = next(s for s in world.shops if s.merchant_id == shop.merchant_id)
    targets = whole.since(world.split.train_until).matrix(world.catalogue.size)[users]
    asked = asked_only(targets)
    targets, users = sparse.csr_matrix(targets[asked]), users[asked]
    nothing = sparse.csr_matrix(targets.shape, dtype=np.float32)
    people = [_person(whole, user) for user in users.tolist()]
    history = seen.test.history[shop.merchant_id]
    stock, tail = seen.stock.get(shop.merchant_id), seen.test.tail
    own = _relative(customer_counts(history))

    def add(name: str, words: str, scores: np.ndarray) -> None:
        score = everyone(scores) if scores.ndim == 1 else lambda rows: scores[rows]
        case.add(name, words, measure(score, nothing, targets, tail, stock))

    add("popularity", "what the shop's customers bought", own)
    first = True
    for name, models in trained.items():
        everywhere = models.final.popularity_part
        both = own + everywhere
        if first:
            # The service's own way: the model with an empty history.
            service = models.final.scores(sparse.csr_matrix((1, len(own)), dtype=np.float32))[0]
            add("everywhere", "what all shops' customers bought, as released: the service", service)
            add("both", "what sells here and everywhere: what a shop serves", both)
        place = _Place(
            both,
            _segments(shop, history, models.final, name, first=first),
            people,
            [None] * len(people),
            targets,
            stock,
        )
        for kind in place.segments:
            words = "the same, moved by the segment's " + _KINDS[kind.split(":")[0]]
            add(kind, words, place.scores(place.tastes(kind), strengths[kind]))
        served = _served(experiment, seen, shop, models, people)
        add(f"served:{name}", "as a shop serves it, which chooses for itself", served)
        first = False


def _served(
    experiment: Experiment,
    seen: World,
    shop: ShopEvents,
    models: Models,
    people: Sequence[Mapping[str, str]],
) -> np.ndarray:
    """Return (B, n) what ``python -m client serve`` scores for people of whom only this is known.

    As ``python -m client adapt`` fits it, on all that came before the test weeks.
    """
    how = experiment.home.of_plan(models.plan)
    past = shop.before(seen.split.train_until)
    if not len(past):  # Nothing sells here yet, and there is nothing to adapt to.
        return np.tile(models.final.popularity_part, (len(people), 1))
    records = HomeRecords(past, seen.stock.get(shop.merchant_id))
    begin, half_life = seen.split.validation_from, seen.half_life_days
    most = HomeSection().validation_customers
    end = records.span[1] + 1
    home, _ = fit_home(models.final, half_life, records, how, most, begin, end)
    segments = fit_segments(models.final, half_life, records, home, how, most, begin)
    scores = np.tile(what_sells(home), (len(people), 1))
    if segments is not None:
        for row, person in enumerate(people):
            for taste in segments.parts(person).values():
                scores[row] += taste
    return scores


_KINDS = {
    "segment-purchases": "purchases at this shop",
    "segment-taste": "taste: what the global model says to its customers here",
}


def _segments(
    shop: ShopEvents, history: sparse.csr_matrix, model: GlobalModel, name: str, *, first: bool
) -> dict[str, Segments]:
    found = {}
    if first:
        found["segment-purchases"] = Segments.of(shop, history, _bought)
    found[f"segment-taste:{name}"] = Segments.of(shop, history, model.scores)
    return found


def _bought(history: sparse.csr_matrix) -> np.ndarray:
    """Return (B, n) each customer's own purchases, which sum to 1."""
    ones = (history > 0).astype(np.float32)
    shares = sparse.diags_array(1.0 / np.maximum(np.diff(history.indptr), 1)) @ ones
    return np.asarray(shares.todense(), dtype=np.float32)


def _strengths(seen: World, trained: Mapping[str, Models]) -> dict[str, float]:
    """Choose how much a segment's taste counts: on the validation weeks, over all shops together.

    The customers that training sees are served as if nothing but their attributes were known, and
    each is left out of its own segments.
    """
    split, size = seen.split, seen.catalogue.size
    values: dict[str, dict[float, list[np.ndarray]]] = {}
    for shop in seen.shops:
        past = split.fit(shop)
        history = histories(past, size, seen.half_life_days, split.validation_from)
        bought = split.validation(shop).matrix(size)
        users = np.intersect1d(asked_only(bought), np.flatnonzero(described(shop)))
        if not len(users):
            continue
        own = _relative(customer_counts(history))
        people = [_person(shop, user) for user in users.tolist()]
        targets = sparse.csr_matrix(bought[users])
        first = True
        for name, models in trained.items():
            segments = _segments(shop, history, models.tuning, name, first=first)
            sells = own + models.tuning.popularity_part
            stock = seen.stock.get(shop.merchant_id)
            place = _Place(sells, segments, people, users.tolist(), targets, stock)
            for kind in segments:
                tastes = place.tastes(kind)
                for strength in _STRENGTHS:
                    found = _ndcg(place, place.scores(tastes, strength), seen.validation.tail)
                    values.setdefault(kind, {}).setdefault(strength, []).append(found)
            first = False
    chosen = {f"segment-taste:{name}": 0.0 for name in trained} | {"segment-purchases": 0.0}
    for kind, by_strength in values.items():
        means = {s: float(np.nanmean(np.concatenate(v))) for s, v in by_strength.items()}
        chosen[kind] = max(means, key=lambda s: means[s])
    return chosen


def _ndcg(place: _Place, scores: np.ndarray, tail: np.ndarray) -> np.ndarray:
    (lists,) = top_lists(
        lambda rows: scores[rows], len(scores), scores.shape[1], 20, allowed=(place.stock,)
    )
    return evaluate(lists.rows, lists.rows, place.targets, tail).ndcg


def _person(shop: ShopEvents, user: int) -> dict[str, str]:
    return {name: str(v[user]) for name, v in shop.attributes.items() if v[user] != ""}


def _relative(counts: np.ndarray) -> np.ndarray:
    """Return (n,) float32 popularity: 1 for an average product."""
    relative: np.ndarray = (counts * (len(counts) / max(float(counts.sum()), 1.0))).astype(
        np.float32
    )
    return relative
