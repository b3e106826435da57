"""A planted run of a few arms, and its report."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, RenderableType

from common.metrics import MetricSums
from simulations.report.building import ArmPrivacy, ArmResult, RunResult, ShopPart, ShopResult

N_ITEMS = 30
PRIVACY = ArmPrivacy(delta=1e-5, unit="customer", trust="shop")


def sums(values: Sequence[float] | np.ndarray, shift: float = 0.0) -> MetricSums:
    """Return sums whose customers have these values, NaN for one without a target."""
    ndcg = np.array(values, float) + shift
    targets = np.where(np.isfinite(ndcg), 2, 0)
    empty = MetricSums.empty(N_ITEMS)
    return dataclasses.replace(
        empty,
        ndcg=ndcg,
        recall=ndcg,
        tail_ndcg=ndcg / 4,
        tail_recall=ndcg / 4,
        targets=targets,
        exposure=np.full(N_ITEMS, len(values)),
        quintile_ndcg=np.full(5, np.nansum(ndcg)),
        quintile_customers=np.full(5, np.count_nonzero(targets)),
    )


def arm(name: str, shifts: Mapping[str, float], **more: Any) -> ArmResult:
    """Return an arm of shops of 40 customers, each shifted from the same values."""
    shops = {}
    for key, shift in shifts.items():
        rng = np.random.default_rng(len(key))
        noise = 0.002 * np.random.default_rng(len(name)).normal(size=40)
        epsilon = 8.0 if name == "federated-dp" else None
        shops[key] = ShopResult(sums(0.1 + 0.05 * rng.random(40) + noise, shift), ShopPart(epsilon))
    return ArmResult(name, shops, **more)


def run_of(*arms: ArmResult, **more: Any) -> RunResult:
    return RunResult(
        arms=arms,
        data={"shops": 2, "split": {"train_until": "2017-10-01"}},
        machine={"cpus": 2},
        experiment={"privacy": {"target_epsilon": 8.0}, "run": {"seed": 3}},
        seed=3,
        n_items=N_ITEMS,
        **more,
    )


def whole_run() -> RunResult:
    rounds = [{"round": r, "ndcg@20": 0.1 + 0.01 * r, "epsilon": 2.0 * r} for r in (1, 2)]
    return run_of(
        arm("local", {"a": 0.0, "bb": 0.0}),
        arm("home-only", {"a": 0.005, "bb": 0.005}),
        arm("centralized", {"a": 0.05, "bb": 0.05}),
        arm("federated", {"a": 0.045, "bb": 0.045}, rounds=rounds),
        arm("federated-dp", {"a": 0.03, "bb": 0.02}, privacy=PRIVACY, rounds=rounds),
    )


def shown_text(renderable: RenderableType, width: int = 400) -> str:
    """Return what a terminal shows, by default a wide one."""
    text = io.StringIO()
    Console(file=text, width=width).print(renderable)
    return text.getvalue()
