"""Membership inference against what leaves: who is a customer, and who bought one product.

Every model is trained on shops in which each candidate's records are present with chance one half.
Level ``customer``: all records of a customer. Level ``interaction``: those of one product that the
customer bought, drawn once; the attacker knows all the rest of the history.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from common.accounting import plan_spends
from common.features import Catalogue
from common.protocol import TrainingPlan
from common.rng import derive
from common.schema import ShopEvents
from simulations.audit.decoding import Candidates, UpdateAttack, calibrated, model_statistics
from simulations.audit.statistics import (
    Curve,
    Roc,
    area_under_curve,
    clustered_proportion,
    mean_interval,
    odds,
    promise_curve,
    twice,
)
from simulations.audit.training import Optimizer, Release, only, train
from simulations.documents import Document

Level = Literal["customer", "interaction"]
LEVELS: tuple[Level, ...] = ("customer", "interaction")

_FPR = 0.01


@dataclass(frozen=True)
class Trial:
    """What one kind of training is attacked as: an arm's plan, and how the server runs it."""

    arm: str
    plan: TrainingPlan
    optimizer: Optimizer


def membership(
    trial: Trial,
    level: Level,
    shops: Sequence[ShopEvents],
    catalogue: Catalogue,
    *,
    models: int,
    seed: int,
    progress: Callable[[str], object] = lambda _: None,
) -> list[Document]:
    """Train ``models`` models and attack each; return a record for each surface.

    ``updates``: all that one shop sent, against that shop's candidates. ``model``: the released
    model alone, against all candidates.

    Parameters
    ----------
    shops
        Training records.
    """
    candidates = [Candidates(shop, _questioned(shop, level, seed)) for shop in shops]
    updates, figures, inside = [], [], []
    for number in range(models):
        bits = [_bits(shop, number, seed) for shop in shops]
        data = [_present(c.data(b)) for c, b in zip(candidates, bits, strict=True)]
        attacks = [UpdateAttack(trial.plan, catalogue, c) for c in candidates]

        def show(release: Release, attacks: list[UpdateAttack] = attacks) -> None:
            for attack in attacks:
                attack.see(release)

        state = train(trial.plan, trial.optimizer, data, catalogue, _seed_of(seed, number), show)
        updates.append(np.concatenate([attack.decoder.scores() for attack in attacks]))
        figures.append(model_statistics(trial.plan, state, candidates, catalogue))
        inside.append(np.concatenate(bits))
        progress(f"model {number + 1} of {models}")
    bits_of = np.stack(inside)
    surfaces = {"updates": np.stack(updates), "model": calibrated(np.stack(figures), bits_of)}
    return [
        {"arm": trial.arm, "level": level, "surface": surface}
        | judge(scores, bits_of, trial.plan, level)
        for surface, scores in surfaces.items()
    ]


def judge(scores: np.ndarray, inside: np.ndarray, plan: TrainingPlan, level: Level) -> Document:
    """Return what ``(M, T)`` scores say of the bits, and whether they keep to the plan's promise.

    Models are the clusters of every interval: within one, candidates share the noise and each
    other; between models, bits and noise are drawn anew.
    """
    roc = Roc.of(scores, inside)
    areas = np.array(
        [
            area_under_curve(s[np.isfinite(s) & b], s[np.isfinite(s) & ~b])
            for s, b in _rows(scores, inside)
        ]
    )
    auc, low, high = mean_interval(areas)
    members, others = int(roc.members.sum()), int(roc.others.sum())
    share = roc.false.sum(axis=1) / max(others, 1)
    allowed = np.flatnonzero(share <= _FPR)
    strict = (
        clustered_proportion(roc.true[allowed[-1]], roc.members)
        if allowed.size
        else (0.0, *clustered_proportion(np.zeros(len(inside)), roc.members)[1:])
    )
    points = list(_points(roc))
    found: Document = {
        "auc": auc,
        "auc_low": max(low, 0.0),
        "auc_high": min(high, 1.0),
        "tpr_at_1_fpr": strict[0],
        "tpr_at_1_fpr_low": strict[1],
        "tpr_at_1_fpr_high": strict[2],
        "roc": [[point["fpr"], point["tpr"]] for point in points],
        "intervals": points,
        "models": len(inside),
        "members": members,
        "others": others,
        "rounds": plan.rounds,
        "epsilon": None,
        "delta": None,
    }
    return found | (promised(points, plan, level) if plan.private else {})


def promised(points: Sequence[Document], plan: TrainingPlan, level: Level) -> Document:
    """Hold the points of a ROC curve against what the plan promises.

    The plan's unit is a customer, added or removed. To change one product in a history is to remove
    one customer and add another: the promise holds twice, ``(2ε, (1 + e^ε) δ)``.

    Returns
    -------
    dict
        ``epsilon, delta`` of the promise at this level; ``bound_violations``: points whose
        intervals lie above it, so that it is refuted; ``bound_crossings``: points whose intervals
        do not lie under it from end to end, if only for being wide; ``curve_violations``: points
        whose intervals lie above what the accountant's whole privacy profile allows, which is a
        much tighter bound.
    """
    epsilon, delta = plan.target_epsilon, plan.target_delta
    curve = promise_curve(plan_spends(plan), epsilon, delta)
    if level == "interaction":
        curve = twice(curve)
        epsilon, delta = 2 * epsilon, (1 + odds(epsilon)) * delta
    pair = promise_curve([], epsilon, delta)
    grid = np.linspace(0.0, 1.0, 101) ** 2
    return {
        "epsilon": epsilon,
        "delta": delta,
        "bound": _curve(pair, grid),
        "curve": _curve(curve, grid),
        "bound_violations": sum(_above(p, pair) for p in points),
        "bound_crossings": sum(not _under(p, epsilon, delta) for p in points),
        "curve_violations": sum(_above(p, curve) for p in points),
    }


def _above(point: Document, curve: Curve) -> bool:
    return bool(point["tpr_low"] > float(curve(np.array([point["fpr_high"]]))[0]))


def _under(point: Document, epsilon: float, delta: float) -> bool:
    """Whether a point's intervals stay under ``TPR ≤ e^ε FPR + δ`` and its mirror.

    The end of one interval is held against the same end of the other.
    """
    factor = odds(epsilon)
    return bool(
        point["tpr_high"] <= factor * point["fpr_high"] + delta
        and 1 - point["fpr_low"] <= factor * (1 - point["tpr_low"]) + delta
    )


def _points(roc: Roc) -> Iterator[Document]:
    for true, false in zip(roc.true, roc.false, strict=True):
        tpr, fpr = clustered_proportion(true, roc.members), clustered_proportion(false, roc.others)
        yield {
            "fpr": fpr[0],
            "fpr_low": fpr[1],
            "fpr_high": fpr[2],
            "tpr": tpr[0],
            "tpr_low": tpr[1],
            "tpr_high": tpr[2],
        }


def _curve(curve: Curve, grid: np.ndarray) -> list[list[float]]:
    return [[float(x), float(y)] for x, y in zip(grid, curve(grid), strict=True)]


def _rows(scores: np.ndarray, inside: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(scores, inside, strict=True)


def _questioned(shop: ShopEvents, level: Level, seed: int) -> np.ndarray:
    """Return (N,) bool: the records that a customer's bit decides about."""
    if level == "customer":
        return np.ones(len(shop), dtype=bool)
    stream = derive(seed, purpose="audit-products", merchant_id=shop.merchant_id)
    chosen = np.full(len(shop.user_ids), -1)
    for user in range(len(shop.user_ids)):
        bought = np.unique(shop.items[shop.offsets[user] : shop.offsets[user + 1]])
        if bought.size:
            chosen[user] = stream.choice(bought)
    questioned: np.ndarray = shop.items == chosen[shop.users]
    return questioned


def _bits(shop: ShopEvents, number: int, seed: int) -> np.ndarray:
    stream = derive(seed, purpose="audit-bits", merchant_id=shop.merchant_id, server_round=number)
    return stream.random(len(shop.user_ids)) < 0.5


def _present(events: ShopEvents) -> ShopEvents:
    """Return the shop without the customers who have no record left: it never had them."""
    return only(events, np.bincount(events.users, minlength=len(events.user_ids)) > 0)


def _seed_of(seed: int, number: int) -> int:
    return int(derive(seed, purpose="audit-model", server_round=number).integers(2**31))
