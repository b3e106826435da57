"""``report.json`` and ``report.html``: what a run found, from plain results.

:func:`build_report` turns :class:`RunResult` into one JSON document; the page, the terminal's
table and ``compare`` all read that document and nothing else.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from simulations.answer import answer

Document = dict[str, Any]
FORMAT_VERSION = 1

#: A shop is level with another arm if its ndcg@20 is at most this much lower.
LEVEL = 0.001
COMPARED = tuple(f"{name}@{CUTOFF}" for name in PER_CUSTOMER)


@dataclass(frozen=True)
class ShopResult:
    """One shop in one arm.

    Parameters
    ----------
    sums
        Metrics of its customers, in the same order in every arm.
    epsilon
        What its ledger says it has spent; None where nothing private was released.
    took_part, reason
        Whether it trained; if not, or if there is something to say (no customers), why.
    home_weights
        What home adaptation gave each of its ingredients (``global``, ``ease``, ...).
    """

    sums: MetricSums
    epsilon: float | None = None
    took_part: bool = True
    reason: str = ""
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
    """

    name: str
    shops: Mapping[str, ShopResult]
    privacy: ArmPrivacy | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0
    rounds: Sequence[Mapping[str, float]] = ()


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
    pooled = {
        name: merge_all((shop.sums for _, shop in _shops(arm)), run.n_items).summary()
        for name, arm in arms.items()
    }
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
    write_text(folder / "report.json", to_json(document))
    write_text(folder / "report.html", page)


def to_json(document: Document) -> str:
    """Return the document as JSON text; NaN and infinities become null."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file by way of a synced temporary one beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def plain(value: Any) -> Any:  # noqa: ANN401 - JSON of any depth
    """Return the value in JSON's own types, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple | set | frozenset):
        entries = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(entry) for entry in entries]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def _arm(
    arm: ArmResult,
    arms: Mapping[str, ArmResult],
    pooled: Mapping[str, Mapping[str, float]],
    run: RunResult,
) -> Document:
    local = arms.get("local")
    mine = pooled[arm.name]
    sums = merge_all((shop.sums for _, shop in _shops(arm)), run.n_items)
    references = [name for name in ("local", "home-only") if name in arms]
    better = {m: _better(m, references, pooled) for m in COMPARED} if references else {}
    names = {"local"} & set(arms) | set(better.values())
    gains = {n: {m: _versus(arm, arms[n], m, run) for m in COMPARED} for n in names}
    spent = [shop.epsilon for shop in arm.shops.values() if shop.epsilon is not None]
    return {
        "metrics": mine,
        "customers": int(sums.targets.size),
        "customers_with_targets": int(np.count_nonzero(sums.targets)),
        "quintiles": sums.by_quintile(),
        "per_shop": {key: _shop(key, shop, local) for key, shop in _shops(arm)},
        "vs_local": gains.get("local"),
        "vs_better": {m: {"against": n, **gains[n][m]} for m, n in better.items()} or None,
        "level_share": _level_share(arm, local) if local else None,
        "way": {m: _way(mine, pooled, m) for m in COMPARED},
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


def _shop(merchant_id: str, shop: ShopResult, local: ArmResult | None) -> Document:
    reference = local.shops.get(merchant_id) if local else None
    return {
        **shop.sums.summary(),
        "customers": int(shop.sums.targets.size),
        "customers_with_targets": int(np.count_nonzero(shop.sums.targets)),
        "vs_local": {m: _normal_interval(*_pair(shop, reference, m)) for m in COMPARED}
        if reference
        else None,
        "home_weights": shop.home_weights,
        "epsilon": shop.epsilon,
        "took_part": shop.took_part,
        "reason": shop.reason,
    }


def _shops(arm: ArmResult) -> list[tuple[str, ShopResult]]:
    return sorted(arm.shops.items())


def _pair(shop: ShopResult, other: ShopResult, metric: str) -> tuple[np.ndarray, np.ndarray]:
    if not np.array_equal(shop.sums.targets, other.sums.targets):
        raise InputError("a shop's customers or their targets differ between two arms")
    return shop.sums.per_customer(metric), other.sums.per_customer(metric)


def _versus(arm: ArmResult, other: ArmResult, metric: str, run: RunResult) -> dict[str, float]:
    pairs = [
        _pair(shop, other.shops[key], metric) for key, shop in _shops(arm) if key in other.shops
    ]
    a, b = (np.concatenate([pair[side] for pair in pairs] or [np.empty(0)]) for side in (0, 1))
    return paired_bootstrap(a, b, run.seed)


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
