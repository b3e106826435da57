"""What events cost together, and how much of a plan still fits under a shop's cap."""

from collections.abc import Sequence

from client.privacy.events import DISCRETE, EVALUATED, ROUNDS, Event
from common.accounting import Epsilon, Spend, epsilon, fits
from common.errors import BudgetError
from common.statement import at_most


def epsilon_of(events: Sequence[Event], delta: float) -> dict[str, Epsilon]:
    """Return unit -> ε of these events together; units do not add up."""
    units = sorted({event.unit for event in events if event.steps})
    return {unit: epsilon(spends_of(events, unit), delta) for unit in units}


def check_fits(past: Sequence[Event], remaining: Sequence[Event], cap: float, delta: float) -> None:
    """Raise :class:`BudgetError` unless ``remaining`` fits under the cap on top of ``past``."""
    for unit in sorted({event.unit for event in remaining}):
        _check_unit(past, [e for e in remaining if e.unit == unit], unit, cap, delta)


def _check_unit(
    past: Sequence[Event], planned: Sequence[Event], unit: str, cap: float, delta: float
) -> None:
    def cost(count: int) -> float:
        return epsilon(spends_of([*past, *planned[:count]], unit), delta).value

    if fits(spends_of([*past, *planned], unit), delta, cap):
        return
    what, verdict, cheaper = "the rest of this plan", "it does not fit", "take a cheaper plan"
    if all(event.mechanism == EVALUATED for event in planned):
        what, verdict = "the released evaluation", "the released evaluation does not fit"
        cheaper = "release it for less (epsilon in [evaluation])"
    elif wanted := sum(event.mechanism in ROUNDS for event in planned):
        fitting = how_many_fit(past, planned, unit=unit, cap_epsilon=cap, delta=delta)
        rounds = sum(event.mechanism in ROUNDS for event in planned[:fitting])
        verdict = f"{rounds} of its {wanted} rounds fit"
    raise BudgetError(
        f"per {unit}, epsilon {at_most(cost(0))} is spent so far and {at_most(cost(len(planned)))} "
        f"would be with {what}, above the cap of {cap:g} at delta {delta:g}: {verdict}; {cheaper}, "
        "or raise the shop's own cap_epsilon"
    )


def how_many_fit(
    past: Sequence[Event],
    planned: Sequence[Event],
    *,
    unit: str,
    cap_epsilon: float,
    delta: float,
) -> int:
    """Return how many of the ``planned`` events, in their order, fit under the cap.

    ε grows with every event: a handful of prefixes are composed, not all.
    """

    def under(count: int) -> bool:
        return fits(spends_of([*past, *planned[:count]], unit), delta, cap_epsilon)

    if not under(0):
        return 0
    fitting, over = 0, len(planned) + 1
    while over - fitting > 1:
        middle = (fitting + over) // 2
        fitting, over = (middle, over) if under(middle) else (fitting, middle)
    return fitting


def spends_of(events: Sequence[Event], unit: str) -> list[Spend]:
    """Return what the events of one unit cost."""
    return [
        Spend(
            event.noise_multiplier,
            event.sample_rate,
            event.steps,
            discrete=event.mechanism in DISCRETE,
        )
        for event in events
        if event.unit == unit and event.steps
    ]
