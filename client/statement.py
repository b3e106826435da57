"""A shop's own privacy statement, from its ledger: for its engineer, at home."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from client.privacy.budget import spends_of
from client.privacy.events import CAP, EVALUATED, UNPROTECTED, Entry, Event
from client.settings import ShopSettings
from common.accounting import epsilon
from common.protocol import NO_FINGERPRINT
from common.statement import (
    TRUST,
    accountant_words,
    at_least,
    mechanism,
    mechanism_words,
    noise_means,
    not_covered,
    promise,
    promise_words,
    protected_words,
    wrapped,
)
from common.wording import counted


def shop_statement(settings: ShopSettings, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what left a shop over its whole life, and what that cost, as plain JSON values.

    Parameters
    ----------
    entries
        The whole verified ledger.

    Returns
    -------
    dict
        At the top ``epsilon, delta, unit, accountant, cap_epsilon, left`` for the shop's own unit
        and ``mechanisms, runs, rounds`` for all; ``units`` holds the same for every unit that
        occurs, since those do not add up; then ``trust``, ``noise``, ``unprotected`` (``at, run``
        of each run without privacy) and ``not_covered``.
    """
    events = [entry.event for entry in entries if entry.event.steps]
    units = [_of_unit(settings, events, unit) for unit in _units(settings, events)]
    # Figures have the shop's own price, and no sample. What is done again was nobody's plan.
    of_plans = [event for event in events if event.mechanism != EVALUATED]
    done = Counter((*_planned(event), event.server_round) for event in of_plans)
    several = len({(run, plan) for run, plan, _ in done}) > 1 or done.total() > len(done)
    trusts, noises = _seen(events, "trust", "shop"), _seen(events, "noise", settings.noise)
    return {
        **units[0],
        "shop": settings.merchant_id,
        "ledger": str(settings.ledger),
        "entries": len(entries),
        "head": entries[-1].hash if entries else NO_FINGERPRINT,
        "since": entries[0].at if entries else None,
        "until": entries[-1].at if entries else None,
        "units": units,
        "trust": trusts,
        "trust_means": [TRUST.get(trust, trust) for trust in trusts],
        "noise": noises,
        "noise_means": [noise_means(noise, trusts) for noise in noises],
        "caps_raised": _caps_raised(entries),
        "unprotected": _unprotected(entries),
        "not_covered": not_covered(
            [part["unit"] for part in units],
            trusts,
            noises,
            sampled_runs=several and any(event.sample_rate < 1 for event in of_plans),
        ),
    }


def render_shop_statement(found: Mapping[str, Any]) -> str:
    """Return a shop's statement as plain text."""
    entries = counted(found["entries"], "entry", "entries")
    lines = [f"Privacy of {found['shop']}, from its ledger of {entries}."]
    lines += [
        f"Without any privacy since {one['at']}: run {one['run']}, which allow_unprotected let "
        "train here. What left in it is in no epsilon below, and nothing hides anybody in it."
        for one in found["unprotected"]
    ]
    for part in found["units"]:
        runs, rounds = counted(part["runs"], "run"), counted(part["rounds"], "training round")
        lines += [
            "",
            f"Spent: {promise_words(part)}, over the shop's whole life.",
            f"Cap: epsilon {part['cap_epsilon']:g}, of which {at_least(part['left'])} is left.",
            protected_words(part),
            f"Accountant: {accountant_words(part)}.",
            f"What left the shop, in {runs} and {rounds}:",
            *(mechanism_words(one) for one in part["mechanisms"]),
        ]
        if not part["mechanisms"]:
            lines.append("- nothing" + " but what had no privacy" * bool(found["unprotected"]))
    names = zip(found["trust"], found["trust_means"], strict=True)
    lines += ["", *(f"Trust ({name}): {means}." for name, means in names)]
    names = zip(found["noise"], found["noise_means"], strict=True)
    lines += [f"Noise ({name}): {means}." for name, means in names]
    lines += [
        f"Cap raised on {raised['at']}: from {raised['from']:g} to {raised['to']:g}"
        + (f", delta from {before:g} to {raised['to_delta']:g}." if before is not None else ".")
        for raised in found["caps_raised"]
        for before in (raised["from_delta"],)
    ]
    lines += ["", "Not covered:", *(f"- {text}" for text in found["not_covered"])]
    return wrapped(lines)


def _of_unit(settings: ShopSettings, events: Sequence[Event], unit: str) -> dict[str, Any]:
    own = [event for event in events if event.unit == unit]
    cost = epsilon(spends_of(own, unit), settings.cap_delta)
    return {
        **promise(cost, settings.cap_delta, unit),
        "cap_epsilon": settings.cap_epsilon,
        "left": max(settings.cap_epsilon - cost.value, 0.0),
        "runs": len({event.run_id for event in own}),
        "rounds": sum(event.server_round > 0 for event in own),
        "mechanisms": mechanisms(own),
    }


def mechanisms(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Return the mechanisms of events, those of the same price together."""
    groups: dict[tuple[str, float, float], list[Event]] = {}
    for event in events:
        key = (event.mechanism, event.noise_multiplier, event.sample_rate)
        groups.setdefault(key, []).append(event)
    return [
        mechanism(name, sigma, rate, sum(e.steps for e in same), [_norm(e) for e in same])
        for (name, sigma, rate), same in groups.items()
    ]


def _planned(event: Event) -> tuple[str, str]:
    """Return the run of an event, and the plan: nothing keeps a server to one plan a run."""
    return event.run_id, str(event.parameters.get("plan", ""))


def _norm(event: Event) -> float:
    norm = event.parameters.get("max_norm", event.parameters.get("max_grad_norm", 0.0))
    return float(norm) if isinstance(norm, int | float) else 0.0


def _units(settings: ShopSettings, events: Sequence[Event]) -> list[str]:
    """Return the shop's own unit, then any other that was charged for."""
    others = {event.unit for event in events} - {settings.unit}
    return [settings.unit, *sorted(others)]


def _seen(events: Sequence[Event], parameter: str, default: str) -> list[str]:
    return sorted({str(event.parameters.get(parameter, default)) for event in events}) or [default]


def _caps_raised(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {
            "at": entry.at,
            "from": entry.event.parameters.get("raised_from"),
            "to": entry.event.parameters.get("cap_epsilon"),
            "from_delta": entry.event.parameters.get("raised_from_delta"),
            "to_delta": entry.event.parameters.get("cap_delta"),
        }
        for entry in entries
        if entry.event.mechanism == CAP
    ]


def _unprotected(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    return [
        {"at": entry.at, "run": entry.event.run_id}
        for entry in entries
        if entry.event.mechanism == UNPROTECTED
    ]
