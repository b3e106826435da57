"""From a plan's public constants to the ledger's events, and what a private plan must hold."""

from collections.abc import Collection, Iterable

import numpy as np

from client.privacy.events import SHARED_HISTOGRAM, SHARED_STEP
from client.privacy.ledger import DP_SGD, HISTOGRAM, Event
from common.accounting import plan_spends
from common.errors import PrivacyError
from common.grid import delta_step, is_swallowed
from common.model import trained_names
from common.planning import check_ranges
from common.protocol import MASKED_VECTOR, POPULARITY, Arrays, TrainingPlan, plan_digest
from common.secure_sum.noise import share_std

# What an event costs, and in which exchange.
_PRICE = (
    "mechanism",
    "noise_multiplier",
    "sample_rate",
    "steps",
    "unit",
    "relation",
    "run_id",
    "server_round",
)


def planned_events(
    plan: TrainingPlan, run_id: str, *, first_round: int = 0, noise: str = ""
) -> list[Event]:
    """Return what a shop is charged for: the histogram as round 0, then one event a round.

    Parameters
    ----------
    first_round
        Where to begin; 0 includes the histogram.
    noise
        Name of the shop's noise source, kept with each event.
    """
    check_plan(plan)
    parameters: dict[str, object] = {"plan": plan_digest(plan), "trust": plan.trust}
    if noise:
        parameters["noise"] = noise
    shared = plan.trust == "federation"
    if shared:
        parameters |= {
            "honest_shops": plan.honest_shops,
            "colluding_shops": plan.colluding_shops,
            "noise_steps": plan.noise_steps,
        }
    of_histogram, *of_rounds = (spend.noise_multiplier for spend in plan_spends(plan))
    histogram = Event(
        mechanism=SHARED_HISTOGRAM if shared else HISTOGRAM,
        noise_multiplier=of_histogram,
        sample_rate=1.0,
        steps=1,
        unit=plan.unit,
        run_id=run_id,
        parameters={**parameters, "max_norm": 1.0},
    )
    rounds = [
        Event(
            mechanism=SHARED_STEP if shared else DP_SGD,
            noise_multiplier=of_rounds[0],
            sample_rate=plan.sample_rate,
            steps=plan.local_steps,
            unit=plan.unit,
            run_id=run_id,
            server_round=server_round,
            parameters={
                **parameters,
                "max_grad_norm": plan.clipping_norm(server_round),
                "batch_normalizer": plan.batch_normalizer,
            },
        )
        for server_round in range(1, plan.rounds + 1)
    ]
    return [histogram, *rounds][first_round:]


def check_plan(plan: TrainingPlan, *, has_sessions: bool = True) -> None:
    """Refuse a plan that promises privacy and cannot keep the promise.

    Parameters
    ----------
    has_sessions
        Whether the shop's interactions have a ``session_id``.

    Raises
    ------
    PrivacyError
        Naming what to change.
    """
    if not plan.private:
        raise PrivacyError("a plan with private = false has no privacy events to charge")
    if plan.popularity_noise_multiplier <= 0:
        raise PrivacyError("a private plan needs popularity_noise_multiplier above 0")
    if plan.rounds and plan.noise_multiplier <= 0:
        raise PrivacyError("a private plan with rounds needs noise_multiplier above 0")
    if plan.unit == "interaction" and plan.rounds:
        raise PrivacyError(
            'unit = "interaction" releases popularity and the bias made of it only: set rounds = 0'
        )
    if plan.unit == "basket" and not has_sessions:
        raise PrivacyError('unit = "basket" needs interactions with a session_id column')
    check_ranges(plan)
    if plan.trust == "federation":
        _check_shared(plan)


def check_state(plan: TrainingPlan, server_round: int, state: Arrays) -> None:
    """Refuse a released state beside which float32 would round a round's noise away.

    A sum of gradients and its noise are added to a weight, where units read it in a later step and
    in the state that comes of the round: :func:`common.grid.is_swallowed`.

    Raises
    ------
    PrivacyError
        If a trained value of the state is too large for this round's noise.
    """
    largest = max(float(np.abs(state[name]).max(initial=0.0)) for name in trained_names(plan))
    if is_swallowed(plan, server_round, largest):
        raise PrivacyError(
            f"the state holds values of {largest:.4g}, beside which float32 cannot hold noise to "
            f"steps of {delta_step(plan, server_round):.4g}: scale the model down, or raise "
            "max_grad_norm or learning_rate"
        )


def _check_shared(plan: TrainingPlan) -> None:
    """Refuse a plan whose rounds are not one sum of clipped gradients and its noise each."""
    if plan.rounds and not (
        plan.local_steps == 1 and plan.sample_rate == 1 and plan.local_momentum == 0
    ):
        raise PrivacyError(
            'trust = "federation" takes one sum a round: local_steps = 1, sample_rate = 1 and '
            "local_momentum = 0"
        )
    share_std(plan, plan.popularity_noise_multiplier)
    if plan.rounds:
        share_std(plan, plan.noise_multiplier)


def check_paid(
    plan: TrainingPlan, run_id: str, server_round: int, paid: Event | None, arrays: Iterable[str]
) -> None:
    """Refuse arrays that would leave a shop without the ledger entry that pays for them.

    Parameters
    ----------
    paid
        The event as it stands in the ledger; None where there is none.
    arrays
        Names of what would leave.

    Raises
    ------
    PrivacyError
        If the ledger was charged with another mechanism than this round of the plan uses, or the
        mechanism releases no such array. A new release needs an event of its own.
    """
    due = planned_events(plan, run_id, first_round=server_round)[0]
    releases = {
        HISTOGRAM: (POPULARITY,),
        DP_SGD: trained_names(plan),
        SHARED_HISTOGRAM: (MASKED_VECTOR,),
        SHARED_STEP: (MASKED_VECTOR,),
    }[due.mechanism]
    check_event_paid(due, releases, paid, arrays)


def check_event_paid(
    due: Event, releases: Collection[str], paid: Event | None, arrays: Iterable[str]
) -> None:
    """Refuse arrays that would leave a shop without the ledger entry that pays for them.

    Parameters
    ----------
    due
        What the exchange costs, and ``releases`` the names of what it pays for.
    paid, arrays
        See :func:`check_paid`.

    Raises
    ------
    PrivacyError
        As :func:`check_paid` does.
    """
    if paid is None or any(getattr(paid, name) != getattr(due, name) for name in _PRICE):
        raise PrivacyError(
            f"round {due.server_round} would leave the shop, and its ledger was not charged with "
            f"{due.steps} x {due.mechanism} of noise multiplier {due.noise_multiplier:g} at "
            f"sample rate {due.sample_rate:g}"
        )
    if unpaid := sorted(set(arrays) - set(releases)):
        raise PrivacyError(
            f"{', '.join(unpaid)} would leave the shop, and no entry of its ledger pays for it: "
            f"{due.mechanism} pays for {', '.join(releases)} only"
        )
