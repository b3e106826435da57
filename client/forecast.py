"""What a plan will cost, before any training: in all, and to each shop's budget."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.inspection import ledger_entries
from client.privacy.budget import epsilon_of, how_many_fit, spends_of
from client.privacy.events import (
    DP_SGD,
    HISTOGRAM,
    SHARED_HISTOGRAM,
    SHARED_STEP,
    Event,
)
from client.privacy.plan import check_plan, planned_events
from client.settings import ShopSettings, read_settings
from common.accounting import Epsilon, Spend, epsilon, fits, plan_spends
from common.config import parse
from common.errors import ConfigError, PrivacyError, ProtocolError
from common.planning import with_noise
from common.protocol import TrainingPlan, parse_plan

# A plan that fits more often than this is counted no further.
MOST_RUNS = 1_000_000


@dataclass(frozen=True)
class PlanFlags:
    """A plan as its price needs it, from the command line; noise, or a target to calibrate for."""

    rounds: int = 10
    local_steps: int = 1
    sample_rate: float = 1.0
    unit: str = "customer"
    delta: float = 1e-5
    noise_multiplier: float | None = None
    popularity_noise_multiplier: float | None = None
    target_epsilon: float | None = None
    popularity_share: float = 0.3
    trust: str = "shop"
    honest_shops: int = 0
    colluding_shops: int = 0

    def plan(self) -> TrainingPlan:
        """Return the plan.

        Raises
        ------
        ConfigError
            If both noise and a target are given, or neither, or a value is out of its range.
        """
        noise = (self.popularity_noise_multiplier, self.noise_multiplier)
        if (self.target_epsilon is None) == (noise == (None, None)):
            raise ConfigError(
                "give either --target-epsilon, or --popularity-noise-multiplier and, with rounds, "
                "--noise-multiplier"
            )
        if self.trust == "shop" and (self.honest_shops or self.colluding_shops):
            raise ConfigError(
                "--honest-shops, or --colluding-shops, goes with --trust federation: under trust "
                "shop each shop adds all of the noise"
            )
        values: dict[str, Any] = {
            "unit": self.unit,
            "target_delta": self.delta,
            "rounds": self.rounds,
            "local_steps": self.local_steps,
            "sample_rate": self.sample_rate,
            "trust": self.trust,
            "honest_shops": self.honest_shops,
            "colluding_shops": self.colluding_shops,
        }
        if self.target_epsilon is not None:
            target = {
                "target_epsilon": self.target_epsilon,
                "popularity_share": self.popularity_share,
            }
            return with_noise(parse(TrainingPlan, {**values, **target}, "plan"))
        popularity, training = noise
        if popularity is None or (training is None and self.rounds):
            raise ConfigError(
                "a plan with rounds has two releases: give --popularity-noise-multiplier and "
                "--noise-multiplier"
            )
        values |= {
            "popularity_noise_multiplier": popularity,
            "noise_multiplier": training or 0.0,
        }
        return parse(TrainingPlan, values, "plan")


def read_plan(path: Path) -> TrainingPlan:
    """Read a plan from a JSON file: the plan itself, or a checkpoint or manifest that holds one.

    Raises
    ------
    ConfigError
        If the file holds no plan.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read a plan from {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot read a plan from {path}: it is no JSON ({error}). Give a model's "
            "manifest.json, or what the operator's `python -m server train --plan-only --json` "
            "wrote"
        ) from error
    for key in ("config", "plan"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    try:
        return parse_plan(found if isinstance(found, str) else json.dumps(found))
    except ProtocolError as error:
        raise ConfigError(f"{path}: {error}") from error


def find_shops(paths: Sequence[Path]) -> list[tuple[Path, ShopSettings]]:
    """Return the settings of shops: of files, and of every ``shop.toml`` below folders.

    Raises
    ------
    ConfigError
        If a folder holds none, or settings are wrong.
    """
    files: list[Path] = []
    for path in paths:
        below = sorted(path.rglob("shop.toml"), key=_by_number) if path.is_dir() else [path]
        if not below:
            raise ConfigError(f"there is no shop.toml in {path} or below it")
        files += below
    return [(file, read_settings(file)) for file in files]


def forecast(plan: TrainingPlan, shops: Sequence[tuple[Path, ShopSettings]]) -> dict[str, Any]:
    """Return what a plan costs by mechanism and in all, and what it would leave each shop.

    Ledgers are read and never created.

    Returns
    -------
    dict
        ``plan`` (its public constants; under trust ``federation`` ``honest_shops`` and
        ``colluding_shops`` too), ``cost`` (``epsilon, delta, unit, method, upper_bound`` and
        ``mechanisms``) and ``shops``. Of a shop that releases figures of the finished model,
        ``with_figures`` is what ``after`` and ``whole_runs`` are where each run asks for them.

    Raises
    ------
    ConfigError
        If the plan promises privacy that it cannot keep, or none.
    LedgerError
        If a shop's ledger is not as it was written.
    """
    try:
        check_plan(plan)
    except PrivacyError as error:
        raise ConfigError(str(error)) from error
    spends, names = plan_spends(plan), (HISTOGRAM, DP_SGD)
    if plan.trust == "federation":
        names = (SHARED_HISTOGRAM, SHARED_STEP)
    parts = zip(names, spends, strict=False)
    return {
        "plan": {
            "rounds": plan.rounds,
            "local_steps": plan.local_steps,
            "sample_rate": plan.sample_rate,
            "noise_multiplier": plan.noise_multiplier,
            "popularity_noise_multiplier": plan.popularity_noise_multiplier,
            "trust": plan.trust,
            **_shares(plan),
        },
        "cost": {
            **_price(epsilon(spends, plan.target_delta)),
            "delta": plan.target_delta,
            "unit": plan.unit,
            "mechanisms": [
                {
                    "mechanism": name,
                    "noise_multiplier": spend.noise_multiplier,
                    "sample_rate": spend.sample_rate,
                    "steps": spend.steps,
                    **_price(epsilon([spend], plan.target_delta)),
                }
                for name, spend in parts
            ],
        },
        "shops": [_shop(plan, path, settings) for path, settings in shops],
    }


def _shares(plan: TrainingPlan) -> dict[str, int]:
    """Return what a shop's share of a sum's noise follows from; nothing without sums."""
    if plan.trust != "federation":
        return {}
    return {"honest_shops": plan.honest_shops, "colluding_shops": plan.colluding_shops}


def _shop(plan: TrainingPlan, path: Path, settings: ShopSettings) -> dict[str, Any]:
    past = [entry.event for entry in ledger_entries(settings.ledger)]
    planned = planned_events(plan, "planned")
    delta, cap = settings.cap_delta, settings.cap_epsilon
    spent = epsilon(spends_of(past, plan.unit), delta)
    after = epsilon(spends_of([*past, *planned], plan.unit), delta)
    whole = _whole_runs(spends_of(past, plan.unit), plan_spends(plan), delta, cap)
    # What is left after the whole runs pays for the first rounds of one more.
    done = [*past, *_repeated(planned, whole)]
    more = how_many_fit(done, planned, unit=plan.unit, cap_epsilon=cap, delta=delta)
    fitting = whole * plan.rounds + max(more - 1, 0)
    return {
        "shop": settings.merchant_id,
        "settings": str(path),
        "ledger": str(settings.ledger),
        "ledger_exists": settings.ledger.exists(),
        "unit": plan.unit,
        "delta": delta,
        "spent": _price(spent),
        "other_units_spent": {
            unit: _price(cost)
            for unit, cost in epsilon_of(past, delta).items()
            if unit != plan.unit
        },
        "after": _price(after),
        "cap_epsilon": cap,
        "left": max(cap - spent.value, 0.0),
        "left_after": max(cap - after.value, 0.0),
        "joins": not (reason := _reason(plan, settings, after)),
        "reason": reason,
        "whole_runs": whole,
        "rounds": fitting,
        "with_figures": _with_figures(plan, settings, past),
    }


def _with_figures(
    plan: TrainingPlan, settings: ShopSettings, past: Sequence[Event]
) -> dict[str, Any] | None:
    """Return what a run costs a shop whose figures it asks for; None: the shop releases none."""
    if settings.evaluation is None or not plan.unit == settings.unit == "customer":
        return None
    from client.privacy.evaluation import evaluation_event  # Few shops need it.

    try:
        event = evaluation_event(settings.evaluation, settings.unit, "planned")
    except ConfigError as error:
        raise ConfigError(f"[evaluation] of {settings.merchant_id}: {error}") from error
    spent, delta, cap = spends_of(past, plan.unit), settings.cap_delta, settings.cap_epsilon
    one = [*plan_spends(plan), *spends_of([event], plan.unit)]
    after = _price(epsilon([*spent, *one], delta))
    return {**after, "whole_runs": _whole_runs(spent, one, delta, cap)}


def _reason(plan: TrainingPlan, settings: ShopSettings, after: Epsilon) -> str:
    """Return why a shop would not join; empty where it would."""
    if plan.unit != settings.unit:
        return f"the plan's unit is {plan.unit}, the shop demands {settings.unit}"
    if not after.value <= settings.cap_epsilon:
        return "the whole plan does not fit under the shop's cap_epsilon"
    if plan.trust != "federation":
        return ""
    if settings.secure_sum is None:
        return "the plan takes secure sums, and the shop has no [secure_sum] section"
    if plan.colluding_shops < (demanded := settings.secure_sum.colluding_shops):
        return (
            f"the plan allows for {plan.colluding_shops} shops that collude with the observer, the "
            f"shop demands {demanded}"
        )
    return ""


def _whole_runs(past: list[Spend], one: list[Spend], delta: float, cap: float) -> int:
    """Return how many whole runs of a plan fit under the cap on top of what is spent."""

    def under(runs: int) -> bool:
        more = [replace(spend, steps=spend.steps * runs) for spend in one]
        return fits([*past, *more], delta, cap)

    if not under(1):
        return 0
    fitting, over = 1, 2
    while over < MOST_RUNS and under(over):
        fitting, over = over, over * 2
    while over - fitting > 1:
        middle = (fitting + over) // 2
        fitting, over = (middle, over) if under(middle) else (fitting, middle)
    return fitting


def _repeated(planned: Sequence[Event], runs: int) -> list[Event]:
    """Return one event for each of ``planned``, with the steps of ``runs`` runs."""
    return [replace(event, steps=event.steps * runs) for event in planned] if runs else []


def _price(cost: Epsilon) -> dict[str, Any]:
    return {"epsilon": cost.value, "method": cost.method, "upper_bound": cost.upper_bound}


def _by_number(path: Path) -> tuple[int, str]:
    name = path.parent.name
    return (int(name) if name.isdecimal() else -1, str(path))
