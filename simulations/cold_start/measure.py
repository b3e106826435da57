"""How cold cases are measured: like all others, and customers without a history count too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from common.metrics import CUTOFF, MetricSums, evaluate, merge_all, paired_bootstrap
from common.model import GlobalModel
from common.protocol import TrainingPlan
from common.schema import encode_shops
from common.scoring import ScoreFunction, top_lists
from simulations.arms import global_model
from simulations.evaluating import who_was_away
from simulations.experiment import Experiment
from simulations.federating import Federator
from simulations.progress import Watcher
from simulations.world import World

COMPARED = (f"ndcg@{CUTOFF}", f"recall@{CUTOFF}", f"tail_ndcg@{CUTOFF}")
#: Bytes of the widest row that scoring makes besides the scores: a content profile.
_CONTENT_WIDTH = 2**15


@dataclass
class Arm:
    """One way to answer a cold case; measured shop by shop."""

    words: str
    sums: list[MetricSums] = field(default_factory=list)


@dataclass
class Case:
    """One cold case: who or what is cold, and each way to answer it.

    Attributes
    ----------
    references
        Names of the arms that the others are held against.
    facts
        Numbers that belong beside the figures.
    """

    name: str
    question: str
    references: tuple[str, ...]
    arms: dict[str, Arm] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, words: str, sums: MetricSums) -> None:
        """Take what one arm gave one shop; every arm is given the same shops in the same order."""
        self.arms.setdefault(name, Arm(words)).sums.append(sums)

    def document(self, n_items: int, seed: int) -> dict[str, Any]:
        """Return the case as JSON values, with paired bootstrap intervals over customers."""
        merged = {name: merge_all(arm.sums, n_items) for name, arm in self.arms.items()}
        asked = next(iter(merged.values()), MetricSums.empty(n_items))
        return {
            "case": self.name,
            "question": self.question,
            "customers": int(np.count_nonzero(asked.targets)),
            **self.facts,
            "references": list(self.references),
            "arms": {
                name: {
                    "words": arm.words,
                    "metrics": merged[name].summary(),
                    "vs": {
                        against: {
                            m: _versus(merged[name], merged[against], m, seed) for m in COMPARED
                        }
                        for against in self.references
                        if against != name and against in merged
                    },
                }
                for name, arm in self.arms.items()
            },
            "notes": self.notes,
        }


def _versus(sums: MetricSums, other: MetricSums, metric: str, seed: int) -> dict[str, float]:
    return paired_bootstrap(sums.per_customer(metric), other.per_customer(metric), seed)


def measure(
    score: ScoreFunction,
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
    allowed: np.ndarray | None = None,
) -> MetricSums:
    """Rank for every customer, with a history or without, and count what came next.

    Parameters
    ----------
    score
        Returns the (B, n) scores of the customers in a slice.
    history, targets
        (U, n); what a customer has bought is not listed.
    tail, allowed
        (n,) bool.
    """
    lists = top_lists(
        score,
        history.shape[0],
        max(history.shape[1], _CONTENT_WIDTH),
        CUTOFF,
        exclude=history,
        allowed=(allowed, tail if allowed is None else tail & allowed),
    )
    return evaluate(lists[0].rows, lists[1].rows, targets, tail)


def everyone(row: np.ndarray) -> ScoreFunction:
    """Return the score of what is the same for all customers: (n,) repeated."""

    def score(customers: slice) -> np.ndarray:
        return np.repeat(row[None, :].astype(np.float32), customers.stop - customers.start, axis=0)

    return score


def asked_only(targets: sparse.csr_matrix) -> np.ndarray:
    """Return the numbers of the customers with any target."""
    return np.flatnonzero(np.diff(targets.indptr))


def without(world: World, experiment: Experiment, left_out: np.ndarray) -> World:
    """Return the world as it is where some records never were: same catalogue, same moments.

    Parameters
    ----------
    left_out
        (N,) bool over all interactions. A merchant that is left without any is none.
    """
    tables = world.dataset.tables
    kept = tables.interactions[~left_out].reset_index(drop=True)
    names = set(kept["merchant_id"].astype(str).unique())
    smaller = replace(
        tables,
        interactions=kept,
        customers=_of_merchants(tables.customers, names),
        stock=_of_merchants(tables.stock, names),
    )
    data = experiment.data
    items = world.catalogue.item_ids
    shops = tuple(encode_shops(smaller, items, data.behaviors, data.rating_scale))
    return replace(
        world,
        dataset=replace(world.dataset, tables=smaller),
        shops=shops,
        stock={name: mask for name, mask in world.stock.items() if name in names},
        measured={shop.merchant_id: np.arange(len(shop.user_ids)) for shop in shops},
    )


def _of_merchants(table: Any, names: set[str]) -> Any:  # noqa: ANN401 - a frame or None
    if table is None or "merchant_id" not in table:
        return table
    return table[table["merchant_id"].astype(str).isin(names)]


@dataclass(frozen=True)
class Models:
    """A federation's model at the end, and as it was before it saw the validation weeks.

    Attributes
    ----------
    away
        Who took no part in it, in words; "" where all did.
    """

    final: GlobalModel
    tuning: GlobalModel
    plan: TrainingPlan
    away: str


def train(
    experiment: Experiment, world: World, folder: Path, watcher: Watcher, arms: Sequence[str]
) -> Mapping[str, Models]:
    """Train federated arms on a world, by the same server and clients as ``simulations run``."""
    folder.mkdir(parents=True, exist_ok=True)
    federator = Federator(experiment, world, folder, watcher)
    for name in arms:
        federator.plan(name)
    found = {}
    for name in arms:
        trained = federator.federate(name)
        plan = trained.plan
        final, tuning = (
            global_model(world, plan.model, trained.checkpoint(number).state)
            for number in (plan.rounds, plan.tuning_round)
        )
        found[name] = Models(final, tuning, plan, who_was_away(world, trained))
    return found
