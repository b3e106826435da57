"""One arm of an experiment measured: what its shops get, what it cost, what they paid."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from client.home.shop import untrained
from client.home_settings import LEARNED_PARTS, TRAINED_PARTS
from client.privacy.budget import epsilon_of
from client.privacy.events import Event
from client.privacy.ledger import Ledger
from common.accounting import epsilon, plan_spends
from common.model import GlobalModel
from common.protocol import TrainingPlan, shop_key
from common.schema import ShopEvents
from common.statement import at_most, statement
from simulations.arms import (
    Knowledge,
    OwnEases,
    ShopOutcome,
    at_home,
    by_global_model,
    by_popularity,
    global_model,
    pooled_ease,
)
from simulations.experiment import TRAINED_BY, Experiment
from simulations.federating import UNHEARD, Trained, ledger_name
from simulations.machine import PeakMemory
from simulations.report.answer import away_words
from simulations.report.building import ArmPrivacy, ArmResult, ShopPart, ShopResult
from simulations.world import World

#: Arms that train a model.
FEDERATED = ("federated", "federated-dp")

REASONS = {
    "over-budget": "the plan costs more than the shop's cap: it took no part",
    "refused-config": "the shop's settings refuse the plan",
    "wrong-stock": "the shop holds another table of what shops stock than the server",
    "ledger-error": "the shop's ledger could not be trusted or written",
    "no-secure-sum": "the shop is not set up for secure sums: its own log says what is missing",
    "sum-refused": "the shop refused the secure sum: its own log says why",
    "data-error": "the shop's data were refused",
    UNHEARD: "no answer was heard from the shop: it could not start or read its settings",
    "failed": "training failed at the shop: its own log says why",
}


def evaluate_arm(
    experiment: Experiment,
    world: World,
    arm: str,
    trained: Trained | None,
    ledgers: Path,
    eases: OwnEases,
    seen: Callable[[ShopEvents, ShopOutcome], object] = lambda _shop, _outcome: None,
) -> ArmResult:
    """Measure an arm at every measured shop.

    Parameters
    ----------
    trained
        The federation whose model the arm shows, or mixes; None where it has none.
    ledgers
        Folder of the shops' ledgers of private plans.
    eases
        Shops' own EASE on this world, shared by its arms.
    seen
        Called with each shop and what the arm gives it.
    """
    shops: dict[str, ShopResult] = {}
    shown = None if arm == "centralized" else trained
    with PeakMemory() as memory:
        for outcome, shop in zip(
            arm_outcomes(experiment, world, arm, trained, eases), world.measured_shops, strict=True
        ):
            seen(shop, outcome)
            part = _part(world, shop, shown, ledgers)
            shops[shop.merchant_id] = ShopResult(outcome.sums, part, outcome.weights)
    seconds, peak = memory.seconds, memory.peak_mb
    if trained is not None:
        seconds, peak = seconds + trained.seconds, max(peak, trained.peak_mb)
    others = {
        shop.merchant_id: _part(world, shop, shown, ledgers)
        for shop in world.shops
        if shop.merchant_id not in shops
    }
    return ArmResult(arm, shops, _privacy(shown), seconds, peak, others=others)


def who_was_away(world: World, trained: Trained) -> str:
    """Return how many shops took no part in a federation, and why; "" where all did."""
    codes = {s.merchant_id: trained.declined.get(shop_key(s.merchant_id), "") for s in world.shops}
    return away_words(
        {
            name: {"took_part": not code, "reason": REASONS.get(code, code)}
            for name, code in codes.items()
        }
    )


def trained_by(experiment: Experiment, arm: str) -> str | None:
    """Return the federated arm whose model an arm shows, or mixes; None: it needs none."""
    if arm == "centralized":
        mixes = set(TRAINED_PARTS) & set(experiment.home.centralized.start)
        return "federated" if mixes else None
    source = TRAINED_BY.get(arm, arm)
    return source if source in FEDERATED else None


def arm_outcomes(
    experiment: Experiment, world: World, arm: str, trained: Trained | None, eases: OwnEases
) -> Iterator[ShopOutcome]:
    """Yield what an arm gives each measured shop."""
    home = experiment.home
    if arm == "popularity":
        return by_popularity(world)
    if arm == "centralized":
        settings = home.centralized
        if trained is not None and not trained.plan.rounds:
            settings = settings.without(*LEARNED_PARTS)

        def pooled(tuning: bool) -> Knowledge:
            period = world.validation if tuning else world.test
            ease = pooled_ease(
                *(world, period, home.pooled_ridge, settings.max_customers), home.pooled_power
            )
            return Knowledge(_model(world, trained, tuning), {"pooled_ease": ease})

        return at_home(world, settings, lambda: pooled(True), lambda: pooled(False), eases)
    if trained is not None:
        if arm in TRAINED_BY:
            return by_global_model(world, _model(world, trained, tuning=False))

        def known(tuning: bool) -> Knowledge:
            return Knowledge(_model(world, trained, tuning), {})

        settings = home.of_plan(trained.plan)
        return at_home(world, settings, lambda: known(True), lambda: known(False), eases)
    alone = Knowledge(untrained(world.catalogue), {})
    settings = home.local if arm == "local" else home.home_only()
    return at_home(world, settings, lambda: alone, lambda: alone, eases)


def _model(world: World, trained: Trained | None, tuning: bool) -> GlobalModel:
    """Return the global model that has not seen the validation weeks, or the last one."""
    if trained is None:
        return untrained(world.catalogue)
    plan = trained.plan
    state = trained.checkpoint(plan.tuning_round if tuning else plan.rounds).state
    return global_model(world, plan.model, state)


def spent_by_round(world: World, plan: TrainingPlan, ledgers: Path) -> list[float]:
    """Return ε after the release and after each round: the largest over all shops' ledgers."""
    charged = [_charged(ledgers, shop.merchant_id) for shop in world.shops]
    return [
        max(
            _epsilon([e for e in events if e.server_round <= server_round], plan.target_delta)
            for events in charged
        )
        for server_round in range(plan.rounds + 1)
    ]


def paid_again(world: World, plan: TrainingPlan, ledgers: Path) -> str:
    """Return what shops spent above a private plan's cost, and why; "" where none did."""
    planned = epsilon(plan_spends(plan), plan.target_delta).value
    spent = [_epsilon(_charged(ledgers, s.merchant_id), plan.target_delta) for s in world.shops]
    # A hair of slack: a sum in another order is no other spending.
    above = [value for value in spent if value > planned + 1e-6]
    if not above:
        return ""
    return (
        "the run was interrupted, and what it cut short is paid for twice: "
        f"ε = {at_most(max(above))} at {len(above)} of {len(spent)} shops, where the plan costs "
        f"{at_most(planned)}"
    )


def _part(world: World, shop: ShopEvents, trained: Trained | None, ledgers: Path) -> ShopPart:
    """Return what a shop spent on a federation, and whether it took part."""
    if trained is None:
        return ShopPart()
    code, private = trained.declined.get(shop_key(shop.merchant_id), ""), trained.plan.private
    customers = int(np.count_nonzero(np.diff(world.test.history[shop.merchant_id].indptr)))
    reason = REASONS.get(code, code) if code else _few(customers, private=private)
    spent = None
    if private:
        spent = _epsilon(_charged(ledgers, shop.merchant_id), trained.plan.target_delta)
    return ShopPart(spent, not code, reason)


def _few(customers: int, *, private: bool) -> str:
    """Return what a shop of hardly any customers sent; "" for one of more."""
    if customers > 1:
        return ""
    said = "what it sent is theirs alone, in clear" if customers else "it sent nothing but zeros"
    return f"{customers or 'no'} customer: {'it sent little but noise' if private else said}"


def _charged(ledgers: Path, merchant_id: str) -> list[Event]:
    return [entry.event for entry in Ledger.read(ledgers / ledger_name(merchant_id))]


def _epsilon(events: Sequence[Event], delta: float) -> float:
    return max((e.value for e in epsilon_of(events, delta).values()), default=0.0)


def _privacy(trained: Trained | None) -> ArmPrivacy | None:
    if trained is None or not trained.plan.private:
        return None
    plan = trained.plan
    return ArmPrivacy(plan.target_delta, plan.unit, plan.trust, statement(plan, noise="seeded"))
