"""One arm of an experiment measured: what its shops get, what it cost, what they paid."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from client.privacy.ledger import Ledger
from common.protocol import shop_key
from common.schema import ShopEvents
from common.statement import statement
from simulations.arms import (
    Knowledge,
    ShopOutcome,
    at_home,
    by_global_model,
    by_popularity,
    global_model,
    pooled_ease,
    untrained,
)
from simulations.experiment import TRAINED_BY, Experiment
from simulations.federating import Trained, ledger_name
from simulations.machine import PeakMemory
from simulations.report import ArmPrivacy, ArmResult, ShopResult
from simulations.world import World

REASONS = {
    "over-budget": "the plan costs more than the shop's cap: it took no part",
    "refused-config": "the shop's settings refuse the plan",
    "ledger-error": "the shop's ledger could not be trusted or written",
    "data-error": "the shop's data were refused",
    "failed": "training failed at the shop: its own log says why",
}


def evaluate_arm(
    experiment: Experiment,
    world: World,
    arm: str,
    trained: Trained | None,
    ledgers: Path,
    seen: Callable[[ShopEvents, ShopOutcome], object] = lambda _shop, _outcome: None,
) -> ArmResult:
    """Measure an arm at every measured shop.

    Parameters
    ----------
    trained
        The federation whose model the arm shows; None where it has none.
    ledgers
        Folder of the shops' ledgers of private plans.
    seen
        Called with each shop and what the arm gives it.
    """
    shops: dict[str, ShopResult] = {}
    with PeakMemory() as memory:
        for outcome, shop in zip(
            arm_outcomes(experiment, world, arm, trained), world.measured_shops, strict=True
        ):
            seen(shop, outcome)
            shops[shop.merchant_id] = _shop_result(
                experiment, world, outcome, shop, trained, ledgers
            )
    seconds, peak = memory.seconds, memory.peak_mb
    if trained is not None:
        seconds, peak = seconds + trained.seconds, max(peak, trained.peak_mb)
    return ArmResult(arm, shops, _privacy(trained), seconds, peak)


def arm_outcomes(
    experiment: Experiment, world: World, arm: str, trained: Trained | None
) -> Iterator[ShopOutcome]:
    """Yield what an arm gives each measured shop."""
    home = experiment.home
    if arm == "popularity":
        return by_popularity(world)
    if trained is not None:
        plan = trained.plan
        if arm in TRAINED_BY:
            state = trained.checkpoint(plan.rounds).state
            return by_global_model(world, global_model(world, plan.model, state))

        def known(server_round: int) -> Knowledge:
            state = trained.checkpoint(server_round).state
            return Knowledge(global_model(world, plan.model, state), {})

        settings = home.of_plan(plan)
        return at_home(
            world, settings, lambda: known(plan.tuning_round), lambda: known(plan.rounds)
        )
    if arm == "centralized":
        settings, model = home.centralized, untrained(world)

        def pooled(tuning: bool) -> Knowledge:
            period = world.validation if tuning else world.test
            ease = pooled_ease(world, period, home.pooled_ridge, settings.max_customers)
            return Knowledge(model, {"pooled_ease": ease})

        return at_home(world, settings, lambda: pooled(True), lambda: pooled(False))
    alone = Knowledge(untrained(world), {})
    settings = home.local if arm == "local" else home.home_only()
    return at_home(world, settings, lambda: alone, lambda: alone)


def _shop_result(
    experiment: Experiment,
    world: World,
    outcome: ShopOutcome,
    shop: ShopEvents,
    trained: Trained | None,
    ledgers: Path,
) -> ShopResult:
    customers = int(np.count_nonzero(np.diff(world.test.history[shop.merchant_id].indptr)))
    reason = "" if customers > 1 else f"{customers or 'no'} customer: it sent little but noise"
    if trained is None:
        return ShopResult(outcome.sums, home_weights=outcome.weights)
    code = trained.declined.get(shop_key(shop.merchant_id), "")
    spent = None
    if trained.plan.private:
        delta = experiment.privacy.target_delta
        spent = _spent(ledgers / ledger_name(shop.merchant_id), delta)
    return ShopResult(
        outcome.sums,
        epsilon=spent,
        took_part=not code,
        reason=REASONS.get(code, code) if code else reason,
        home_weights=outcome.weights,
    )


def _spent(path: Path, delta: float) -> float:
    if not path.exists():
        return 0.0
    with Ledger.open(path) as ledger:
        found = ledger.epsilon(delta)
    return max((e.value for e in found.values()), default=0.0)


def _privacy(trained: Trained | None) -> ArmPrivacy | None:
    if trained is None or not trained.plan.private:
        return None
    plan = trained.plan
    return ArmPrivacy(plan.target_delta, plan.unit, plan.trust, statement(plan, noise="seeded"))
