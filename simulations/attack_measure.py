"""What an attack did: quality, and how many customers are shown the pushed product."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import MetricSums
from simulations.arms import OwnEases, ShopOutcome
from simulations.evaluating import arm_outcomes
from simulations.experiment import Experiment
from simulations.federating import Trained
from simulations.world import World

Figures = dict[str, Any]

#: Of each federation: how a model is used, and the arm that uses it so.
USES = {
    "federated": {"home": "federated", "global": "federated-global"},
    "federated-dp": {"home": "federated-dp", "global": "federated-dp-global"},
}
METRICS = ("ndcg@20", "tail_ndcg@20")


def measure_model(
    experiment: Experiment,
    world: World,
    trained: Trained,
    arms: Mapping[str, str],
    targets: Sequence[int],
    eases: OwnEases,
) -> dict[str, Figures]:
    """Return, of each use of a trained model, its metrics and ``er@20`` of each target.

    ``arms`` names the arm of each use.

    ``er@20`` of a product: of the customers with a history who have not bought it, the share that
    has it in their top 20.
    """
    return {
        use: _figures(world, list(arm_outcomes(experiment, world, arm, trained, eases)), targets)
        for use, arm in arms.items()
    }


def _figures(world: World, outcomes: Sequence[ShopOutcome], targets: Sequence[int]) -> Figures:
    sums = MetricSums.empty(world.catalogue.size)
    shown, asked = np.zeros(len(targets)), np.zeros(len(targets))
    for outcome in outcomes:
        sums = sums.merge(outcome.sums)
        customers = world.measured[outcome.merchant_id]
        history = world.test.history[outcome.merchant_id][customers]
        known = np.diff(history.indptr) > 0
        for place, target in enumerate(targets):
            free = known & (history[:, [target]].toarray().ravel() == 0)
            lists = outcome.all_products.rows[free]
            asked[place] += int(free.sum())
            shown[place] += int((lists == target).any(axis=1).sum())
    summary = sums.summary()
    return {
        **{metric: summary[metric] for metric in METRICS},
        "er@20": [float(s / max(a, 1.0)) for s, a in zip(shown, asked, strict=True)],
    }


def mean_figures(found: Sequence[Mapping[str, Any]], targets: Sequence[int]) -> Figures:
    """Return the means over runs; of run ``k`` ``er@20`` is that of target ``targets[k]``."""
    shown = [run["er@20"][place] for run, place in zip(found, targets, strict=True)]
    return {
        **{metric: float(np.mean([run[metric] for run in found])) for metric in METRICS},
        "er@20": float(np.mean(shown)),
        "er@20_by_target": shown,
    }
