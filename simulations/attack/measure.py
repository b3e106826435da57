"""What an attack did: quality, and how many customers are shown the pushed product."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.metrics import MetricSums, paired_bootstrap
from simulations.arms import OwnEases, ShopOutcome
from simulations.audit.statistics import clopper_pearson
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

    ``er@20`` of a product: of the customers with a history who have not bought it, ``asked`` of
    them, the share that has it in their top 20. ``per_customer`` holds the metrics of each.
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
        customers = world.asked[outcome.merchant_id]
        history = world.test.history[outcome.merchant_id][customers]
        for place, target in enumerate(targets):
            free = history[:, [target]].toarray().ravel() == 0
            lists = outcome.all_products.rows[free]
            asked[place] += int(free.sum())
            shown[place] += int((lists == target).any(axis=1).sum())
    summary = sums.summary()
    return {
        **{metric: summary[metric] for metric in METRICS},
        "er@20": [float(s / max(a, 1.0)) for s, a in zip(shown, asked, strict=True)],
        "asked": asked,
        "per_customer": {metric: sums.per_customer(metric) for metric in METRICS},
    }


def mean_figures(found: Sequence[Mapping[str, Any]], targets: Sequence[int]) -> Figures:
    """Return the means over runs; of run ``k`` ``er@20`` is that of target ``targets[k]``.

    ``er@20_interval`` is exact for the customers of one target: others are pushed at the same.
    """
    shown = [run["er@20"][place] for run, place in zip(found, targets, strict=True)]
    asked = float(np.mean([run["asked"][place] for run, place in zip(found, targets, strict=True)]))
    share = float(np.mean(shown))
    return {
        **{metric: float(np.mean([run[metric] for run in found])) for metric in METRICS},
        "er@20": share,
        "er@20_interval": list(clopper_pearson(share * asked, asked)) if asked else None,
        "er@20_by_target": shown,
        "per_customer": {
            metric: np.mean([_values(run, metric) for run in found], axis=0) for metric in METRICS
        },
    }


def changes(found: Mapping[str, Any], before: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the relative ``change`` of each metric, and its ``change_interval``.

    Paired over customers; what there was before is taken as it was found.
    """
    pairs = {
        metric: paired_bootstrap(_values(found, metric), _values(before, metric), seed)
        for metric in METRICS
    }
    return {
        "change": {metric: found[metric] / before[metric] - 1 for metric in METRICS},
        "change_interval": {
            metric: [pair["low"] / before[metric], pair["high"] / before[metric]]
            for metric, pair in pairs.items()
        },
    }


def _values(found: Mapping[str, Any], metric: str) -> np.ndarray:
    """Return (U,) values, NaN where a customer has none, of figures as found or as read again."""
    return np.array(found["per_customer"][metric], dtype=np.float64)
