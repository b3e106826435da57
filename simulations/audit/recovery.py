"""What a server reads off one update of a small shop: the products of its customers.

The server has sent a state of its choice and sees one shop's popularity histogram and its update of
one round. It knows how many customers the shop has and what customers of other shops buy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from client.privacy.noise import SeededNoise
from client.rounds.popularity_release import release_popularity
from client.training import train_round
from common.blocks import GroupBlock, block_of
from common.features import Catalogue
from common.model import initial_state
from common.protocol import ITEMS, POPULARITY, Arrays, TrainingPlan
from common.rng import derive
from common.schema import ShopEvents
from simulations.audit.decoding import decodes_rounds
from simulations.audit.statistics import mean_interval
from simulations.audit.training import only
from simulations.documents import Document

# Rows of one customer's products differ in length, not in direction; float32 bends them a little.
_SAME_DIRECTION = 1 - 1e-5
# A share in a row below this part of the customer's largest is rounding.
_NOTHING = 1e-3
_RARE = 1e-4


@dataclass(frozen=True)
class Knowledge:
    """What the server knows without the shop.

    Attributes
    ----------
    prior
        ``(n,)`` share of other shops' customers who have bought each product.
    products
        How many different ones a customer buys, on average.
    """

    prior: np.ndarray
    products: int

    @classmethod
    def of(cls, others: Sequence[ShopEvents], size: int) -> "Knowledge":
        """Return what the records of other shops tell."""
        bought = sparse.vstack([shop.matrix(size) for shop in others])
        prior = np.asarray(bought.mean(axis=0)).ravel()
        return cls(np.maximum(prior, _RARE), max(round(float(prior.sum())), 1))

    def favourites(self) -> np.ndarray:
        """Return the products that a server would guess of anyone."""
        return _top(self.prior, self.products)


def recovery(
    arm: str,
    plan: TrainingPlan,
    shops: Sequence[ShopEvents],
    catalogue: Catalogue,
    *,
    customers: int,
    trials: int,
    seed: int,
    progress: Callable[[str], object] = lambda _: None,
) -> Document:
    """Attack ``trials`` shops of so many customers, drawn from ``shops``; return one record.

    At least two shops must have customers, and one so many.

    Precision and recall are means over a shop's customers, each held against the best matching of
    the attacker's guesses, and intervals are over shops. ``prior_*``: the same for a server that
    guesses every customer's products by popularity elsewhere. ``gain_*``: precision over that.
    """
    # The same shops for every arm; what is drawn for an arm comes from streams of its own.
    stream = derive(seed, purpose=f"audit-recovery-{customers}")
    large = [k for k, shop in enumerate(shops) if len(active_customers(shop)) >= customers]
    found, guessed = [], []
    for trial in range(trials):
        place = int(stream.choice(large))
        known = Knowledge.of(
            [s for number, s in enumerate(shops) if number != place], catalogue.size
        )
        chosen = np.zeros(len(shops[place].user_ids), dtype=bool)
        chosen[stream.choice(active_customers(shops[place]), size=customers, replace=False)] = True
        shop = only(shops[place], chosen)
        own = derive(seed, purpose=f"audit-recovery-{arm}-{customers}", server_round=trial)
        noise = SeededNoise(own)
        state = initial_state(plan.model, catalogue.size)
        state[POPULARITY] = (known.prior / known.prior.sum()).astype(np.float32)
        histogram = release_popularity(plan, shop, catalogue.size, noise)
        update: Arrays = {}
        if plan.rounds:
            update = train_round(plan, 1, state, shop, catalogue, noise, own)
        guesses = recover(plan, state, histogram, update, customers, known, catalogue)
        truth = shop.matrix(catalogue.size)
        found.append(_matched(truth, guesses))
        guessed.append(_matched(truth, [known.favourites()] * customers))
        progress(f"shop {trial + 1} of {trials}")
    precision, recall = np.array(found).T
    return {
        "arm": arm,
        "epsilon": plan.target_epsilon if plan.private else None,
        "customers": customers,
        "shops": trials,
        **_interval("precision", precision),
        **_interval("recall", recall),
        **_interval("prior_precision", np.array(guessed)[:, 0]),
        **_interval("prior_recall", np.array(guessed)[:, 1]),
        **_interval("gain_precision", precision - np.array(guessed)[:, 0]),
    }


def active_customers(shop: ShopEvents) -> np.ndarray:
    """Return the places of the customers who have records."""
    return np.flatnonzero(np.diff(shop.offsets) > 0)


def recover(
    plan: TrainingPlan,
    state: Arrays,
    histogram: Arrays,
    update: Arrays,
    customers: int,
    known: Knowledge,
    catalogue: Catalogue,
) -> list[np.ndarray]:
    """Return catalogue rows for each customer: what the server thinks that they bought."""
    if plan.private:
        scores = _evidence(plan, state, histogram, update, customers, known, catalogue)
        return [_top(scores, known.products)] * customers
    union = np.flatnonzero(histogram[POPULARITY] > 0)
    block = block_of(plan.model, state[POPULARITY], catalogue)
    if isinstance(block, GroupBlock) or not (update and decodes_rounds(plan)):
        return [union] * customers
    return _come_apart(update[ITEMS].astype(np.float64), block.rows, union, customers)


def _come_apart(
    update: np.ndarray, rows: np.ndarray, union: np.ndarray, customers: int
) -> list[np.ndarray]:
    """Take an update ``Σ_c x_c ⊗ w_c`` apart: rows of what only one customer bought lie along w_c.

    The most common directions are the customers'; every row is a nonnegative sum of them.
    """
    places = np.flatnonzero(np.linalg.norm(update, axis=1) > 0)
    values = update[places]
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    alike = (values / lengths) @ (values / lengths).T > _SAME_DIRECTION
    directions: list[np.ndarray] = []
    free = np.ones(len(places), dtype=bool)
    while free.any() and len(directions) < customers:
        largest = int(np.argmax((alike & free).sum(axis=1) * free))
        members = alike[largest] & free
        directions.append((values[members] / lengths[members]).mean(axis=0))
        free &= ~members
    if not directions:
        return [union] * customers
    basis = np.stack(directions).T
    shares = np.array([optimize.nnls(basis, row)[0] for row in values])
    bought = shares > _NOTHING * shares.max(axis=0)
    found = [rows[places[bought[:, number]]] for number in range(len(directions))]
    return found + [union] * (customers - len(found))


def _evidence(
    plan: TrainingPlan,
    state: Arrays,
    histogram: Arrays,
    update: Arrays,
    customers: int,
    known: Knowledge,
    catalogue: Catalogue,
) -> np.ndarray:
    """Return (n,) log-odds that one customer of the shop bought each product.

    Products are taken as independent. A histogram entry is ``N(a (bought + others), σ²)``, with
    ``a`` the entry of a history of usual length. A group's row of the update counts along the one
    direction that most of the update lies in, for all products of the group.
    """
    odds: np.ndarray = np.log(known.prior) - np.log1p(-np.minimum(known.prior, 1 - _RARE))
    entry = known.products**-0.5
    expected = (customers - 1) * known.prior * entry
    residual = histogram[POPULARITY].astype(np.float64) - expected - entry / 2
    odds += entry * residual / plan.popularity_noise_multiplier**2
    if not (update and decodes_rounds(plan)):
        return odds
    block = block_of(plan.model, state[POPULARITY], catalogue)
    usual = np.asarray(block.project(sparse.csr_matrix(known.prior[None, :])).todense()).ravel()
    clip = plan.clipping_norm(1)
    y = update[ITEMS].astype(np.float64) * (plan.batch_normalizer / plan.learning_rate / clip)
    along = y @ np.linalg.svd(y, full_matrices=False)[2][0]
    along *= np.sign(along @ usual) or 1.0
    length = max(float(np.linalg.norm(usual)), 1e-12)
    signal = np.abs(usual) / length
    evidence = signal * (along - customers * signal / 2) / plan.noise_multiplier**2
    odds += block.lift(evidence[:, None].astype(np.float32), catalogue.size).ravel()
    return odds


def _matched(truth: sparse.csr_matrix, guesses: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return mean precision and recall of guesses dealt to customers as well as they fit."""
    guess = np.zeros((len(guesses), truth.shape[1]), dtype=np.float32)
    for number, rows in enumerate(guesses):
        guess[number, rows] = 1.0
    hits = np.asarray(truth @ guess.T)
    bought = np.asarray(truth.sum(axis=1)).ravel()
    precision = hits / np.maximum(guess.sum(axis=1), 1.0)[None, :]
    recall = hits / np.maximum(bought, 1.0)[:, None]
    pairs = optimize.linear_sum_assignment(precision + recall, maximize=True)
    return float(precision[pairs].mean()), float(recall[pairs].mean())


def _interval(name: str, values: np.ndarray) -> Document:
    mean, low, high = mean_interval(values)
    least = -1.0 if name.startswith("gain") else 0.0
    return {name: mean, f"{name}_low": max(low, least), f"{name}_high": min(high, 1.0)}


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    best: np.ndarray = np.argsort(-scores, kind="stable")[:count]
    return best
