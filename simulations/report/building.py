"""``report.json`` and ``report.html``: what a run found, from plain results.

:func:`build_report` turns :class:`RunResult` into one JSON document; the page, the terminal's
table and ``compare`` all read that document and nothing else.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.metrics import (
    CUTOFF,
    PER_CUSTOMER,
    MetricSums,
    merge_all,
    paired_bootstrap,
)
from simulations.documents import Document, plain, to_json, write_text
from simulations.report.answer import answer
from simulations.report.draws import gain_over_draws, spread

FORMAT_VERSION = 1
REPORT = "report.json"

#: A shop is level with another arm if its ndcg@20 is at most this much lower.
LEVEL = 0.001
COMPARED = tuple(f"{name}@{CUTOFF}" for name in PER_CUSTOMER)


@dataclass(frozen=True)
class ShopPart:
    """A shop's part in a training, whether it is measured or not.

    Parameters
    ----------
    epsilon
        What its ledger says it has spent; None where nothing private was released.
    took_part, reason
        Whether it trained; if not, or if there is something to say (no customers), why.
    """

    epsilon: float | None = None
    took_part: bool = True
    reason: str = ""


@dataclass(frozen=True)
class ShopResult:
    """One shop in one arm.

    Parameters
    ----------
    sums
        Metrics of its customers, in the same order in every arm.
    home_weights
        What home adaptation gave each of its parts (``content``, ``own_ease``, ...).
    """

    sums: MetricSums
    part: ShopPart = ShopPart()
    home_weights: Mapping[str, float] | None = None


@dataclass(frozen=True)
class ArmPrivacy:
    """The setting of a private arm; ``statement`` is its privacy statement."""

    delta: float
    unit: str
    trust: str
    statement: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmResult:
    """One arm of a run.

    Parameters
    ----------
    shops
        Merchant id -> result.
    privacy
        None where the arm promises none.
    seconds, peak_mb
        What it took.
    rounds
        By round: ``round`` and any of the metrics and ``epsilon``; empty for an arm without.
    further_draws
        Of the noise, after the first one, which ``shops`` and all else are of: merchant id ->
        metrics of the same customers.
    others
        Merchant id -> the shops at which nothing is measured: they spend and stay away as well.
    """

    name: str
    shops: Mapping[str, ShopResult]
    privacy: ArmPrivacy | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0
    rounds: Sequence[Mapping[str, float]] = ()
    further_draws: Sequence[Mapping[str, MetricSums]] = ()
    others: Mapping[str, ShopPart] = field(default_factory=dict)

    def each_draw(self) -> list["ArmResult"]:
        """Return the arm under every draw of the noise, the first one first."""
        first = replace(self, further_draws=())
        return [
            first,
            *(
                replace(first, shops={k: replace(s, sums=sums[k]) for k, s in self.shops.items()})
                for sums in self.further_draws
            ),
        ]


@dataclass(frozen=True)
class RunResult:
    """All of a run.

    Parameters
    ----------
    data
        Facts for the report: ``shops, customers, products, interactions, split``.
    machine
        Facts of :func:`simulations.machine.machine_facts`.
    experiment
        The configuration as run, nested by section.
    warnings
        What a reader must know, in plain words.
    """

    arms: Sequence[ArmResult]
    data: Mapping[str, Any]
    machine: Mapping[str, Any]
    experiment: Mapping[str, Any]
    seed: int
    n_items: int
    warnings: Sequence[str] = ()


def build_report(run: RunResult) -> Document:
    """Return the report of a run: plain JSON, null where a figure does not exist.

    Figures do not depend on the order of arms' shops: those are taken by merchant id.

    Raises
    ------
    InputError
        If two arms have the same name, or a shop's customers differ between arms.
    """
    arms = {arm.name: arm for arm in run.arms}
    if len(arms) != len(run.arms):
        raise InputError(f"two arms have the same name: {[arm.name for arm in run.arms]}")
    pooled = {name: _pooled(arm, run).summary() for name, arm in arms.items()}
    document: Document = {
        "format_version": FORMAT_VERSION,
        "seed": run.seed,
        "data": run.data,
        "machine": run.machine,
        "experiment": run.experiment,
        "warnings": run.warnings,
        "rounds": {arm.name: arm.rounds for arm in run.arms if arm.rounds},
        "arms": {name: _arm(arm, arms, pooled, run) for name, arm in arms.items()},
    }
    clean: Document = plain(document)
    clean["answer"] = answer(clean)
    return clean


def write_report(folder: Path, document: Document, page: str) -> None:
    """Write ``report.json`` and ``report.html``, each whole or not at all."""
    write_text(folder / REPORT, to_json(document))
    write_text(folder / "report.html", page)


def _arm(
    arm: ArmResult,
    arms: Mapping[str, ArmResult],
    pooled: Mapping[str, Mapping[str, float]],
    run: RunResult,
) -> Document:
    local = arms.get("local")
    mine = pooled[arm.name]
    sums = _pooled(arm, run)
    references = [name for name in ("local", "home-only") if name in arms]
    better = {m: _better(m, references, pooled) for m in COMPARED} if references else {}

    def versus(gain: Callable[[ArmResult, str], Document]) -> Document:
        names = {"local"} & set(arms) | set(better.values())
        gains = {n: {m: gain(arms[n], m) for m in COMPARED} for n in names}
        return {
            "vs_local": gains.get("local"),
            "vs_better": {m: {"against": n, **gains[n][m]} for m, n in better.items()} or None,
        }

    every = [*(shop.part for shop in arm.shops.values()), *arm.others.values()]
    spent = [part.epsilon for part in every if part.epsilon is not None]
    return {
        "metrics": mine,
        "customers": int(sums.targets.size),
        "customers_with_targets": int(np.count_nonzero(sums.targets)),
        "customers_with_tail_targets": int(np.isfinite(sums.tail_ndcg).sum()),
        "quintiles": sums.by_quintile(),
        "per_shop": {key: _shop(key, arm, local) for key, _ in _shops(arm)},
        "other_shops": {key: asdict(part) for key, part in sorted(arm.others.items())},
        **versus(lambda other, metric: _versus(arm, other, metric, run)),
        "level_share": _level_share(arm, local) if local else None,
        "way": {m: _way(mine, pooled, m) for m in COMPARED},
        "draws": {
            **_draws(arm, local, pooled, run),
            **versus(lambda other, metric: gain_over_draws(_gains(arm, other, metric))),
        }
        if arm.further_draws
        else None,
        "home_weights": _home_weights(arm),
        "privacy": None
        if arm.privacy is None
        else {
            "epsilon": max(spent, default=0.0),
            "delta": arm.privacy.delta,
            "unit": arm.privacy.unit,
            "trust": arm.privacy.trust,
            "upper_bound": arm.privacy.statement.get("accountant", {}).get("upper_bound", False),
            "statement": arm.privacy.statement,
        },
        "seconds": arm.seconds,
        "peak_mb": arm.peak_mb,
    }


def _draws(
    arm: ArmResult,
    local: ArmResult | None,
    pooled: Mapping[str, Mapping[str, float]],
    run: RunResult,
) -> Document:
    """Return an arm's figures over all draws of the noise, but for its gains."""
    every = arm.each_draw()
    sums = [_pooled(one, run) for one in every]
    figures = [one.summary() for one in sums]
    fifths = [one.by_quintile() for one in sums]
    return {
        "count": len(every),
        "metrics": {metric: spread([one[metric] for one in figures]) for metric in figures[0]},
        "quintiles": {
            metric: np.mean([one[metric] for one in fifths], axis=0) for metric in fifths[0]
        },
        "level_share": spread([_level_share(one, local) for one in every]) if local else None,
        "way": {m: spread([_way(one, pooled, m) for one in figures]) for m in COMPARED},
    }


def _shop(merchant_id: str, arm: ArmResult, local: ArmResult | None) -> Document:
    shop = arm.shops[merchant_id]
    reference = local.shops.get(merchant_id) if local else None
    draws = None
    if arm.further_draws:
        other = replace(local, shops={merchant_id: reference}) if local and reference else None
        gains = other and {m: gain_over_draws(_gains(arm, other, m)) for m in COMPARED}
        draws = {"vs_local": gains}
    return {
        **shop.sums.summary(),
        "customers": int(shop.sums.targets.size),
        "customers_with_targets": int(np.count_nonzero(shop.sums.targets)),
        "customers_with_tail_targets": int(np.isfinite(shop.sums.tail_ndcg).sum()),
        "vs_local": {m: _normal_interval(*_pair(shop, reference, m)) for m in COMPARED}
        if reference
        else None,
        "draws": draws,
        "home_weights": shop.home_weights,
        **asdict(shop.part),
    }


def _pooled(arm: ArmResult, run: RunResult) -> MetricSums:
    return merge_all((shop.sums for _, shop in _shops(arm)), run.n_items)


def _shops(arm: ArmResult) -> list[tuple[str, ShopResult]]:
    return sorted(arm.shops.items())


def _pair(shop: ShopResult, other: ShopResult, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if not np.array_equal(shop.sums.targets, other.sums.targets):
        raise InputError("a shop's customers or their targets differ between two arms")
    return shop.sums.per_customer(metric), other.sums.per_customer(metric)


def _versus(arm: ArmResult, other: ArmResult, metric: str, run: RunResult) -> dict[str, float]:
    return paired_bootstrap(*_paired(arm, other, metric), run.seed)


def _gains(arm: ArmResult, other: ArmResult, metric: str) -> np.ndarray:
    """Return ``(K, U)`` gain of each customer under each draw of the noise."""
    pairs = (_paired(one, other, metric) for one in arm.each_draw())
    return np.stack([a - b for a, b in pairs])


def _paired(arm: ArmResult, other: ArmResult, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(U,)`` values of both arms' common customers."""
    pairs = [
        _pair(shop, other.shops[key], metric) for key, shop in _shops(arm) if key in other.shops
    ]
    a, b = (np.concatenate([pair[side] for pair in pairs] or [np.empty(0)]) for side in (0, 1))
    return a, b


def _normal_interval(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Return mean and 95% normal interval: a shop's own, cheap for any number of shops."""
    difference = (a - b)[np.isfinite(a - b)]
    if not difference.size:
        return dict.fromkeys(("mean", "low", "high"), math.nan)
    mean, half = float(difference.mean()), math.nan
    if difference.size > 1:
        half = 1.96 * float(difference.std(ddof=1)) / math.sqrt(difference.size)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _level_share(arm: ArmResult, local: ArmResult) -> float:
    """Return the share of shops, of those with test customers, that are level or better."""
    differences = [
        shop.sums.summary()["ndcg@20"] - local.shops[key].sums.summary()["ndcg@20"]
        for key, shop in _shops(arm)
        if key in local.shops
    ]
    finite = [difference for difference in differences if math.isfinite(difference)]
    # A hair of slack: a difference of exactly -LEVEL must not fall to rounding.
    return sum(d >= -LEVEL - 1e-12 for d in finite) / len(finite) if finite else math.nan


def _better(metric: str, names: Sequence[str], pooled: Mapping[str, Mapping[str, float]]) -> str:
    return max(names, key=lambda name: np.nan_to_num(pooled[name][metric], nan=-math.inf))


def _way(
    mine: Mapping[str, float], pooled: Mapping[str, Mapping[str, float]], metric: str
) -> float:
    """Return how far from local to centralized; NaN where centralized is not the better one."""
    if "local" not in pooled or "centralized" not in pooled:
        return math.nan
    local, whole = pooled["local"][metric], pooled["centralized"][metric]
    return (mine[metric] - local) / (whole - local) if whole > local else math.nan


def _home_weights(arm: ArmResult) -> dict[str, float] | None:
    weights = [shop.home_weights for _, shop in _shops(arm) if shop.home_weights]
    names = dict.fromkeys(name for shop in weights for name in shop)
    return {n: float(np.mean([w.get(n, 0.0) for w in weights])) for n in names} or None
