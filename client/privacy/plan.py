"""From a plan's public constants to the ledger's events, and what a private plan must hold."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import client
import common
from client.privacy.ledger import DP_SGD, HISTOGRAM, Event
from common.errors import PrivacyError
from common.model import trained_names
from common.protocol import POPULARITY, TrainingPlan, plan_digest

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
    histogram = Event(
        mechanism=HISTOGRAM,
        noise_multiplier=plan.popularity_noise_multiplier,
        sample_rate=1.0,
        steps=1,
        unit=plan.unit,
        run_id=run_id,
        parameters={**parameters, "max_norm": 1.0},
    )
    rounds = [
        Event(
            mechanism=DP_SGD,
            noise_multiplier=plan.noise_multiplier,
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


def remaining_events(
    plan: TrainingPlan, run_id: str, server_round: int, *, noise: str = ""
) -> list[Event]:
    """Return the events that come after ``server_round``; 0 is the histogram's."""
    return planned_events(plan, run_id, first_round=server_round + 1, noise=noise)


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
    if paid is None or any(getattr(paid, name) != getattr(due, name) for name in _PRICE):
        raise PrivacyError(
            f"round {server_round} would leave the shop, and its ledger was not charged with "
            f"{due.steps} x {due.mechanism} of noise multiplier {due.noise_multiplier:g} at "
            f"sample rate {due.sample_rate:g}"
        )
    releases = {HISTOGRAM: [POPULARITY], DP_SGD: trained_names(plan)}[due.mechanism]
    if unpaid := sorted(set(arrays) - set(releases)):
        raise PrivacyError(
            f"{', '.join(unpaid)} would leave the shop, and no entry of its ledger pays for it: "
            f"{due.mechanism} pays for {', '.join(releases)} only"
        )


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return the SHA-256 over the sources of ``client`` and ``common``, 64 hex digits."""
    digest = hashlib.sha256()
    for package in (client, common):
        root = Path(str(package.__file__)).parent
        for source in sorted(root.rglob("*.py"), key=lambda path: path.as_posix()):
            content = source.read_bytes()
            name = f"{root.name}/{source.relative_to(root).as_posix()}"
            digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()
