"""The registry as JSON documents, and as text for the terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.text import Text

from common.cli import plain_table
from common.errors import ArtifactError
from common.statement import UNREADABLE, any_statement, promise_words
from common.wording import counted
from server.registry.records import Pin, Record
from server.registry.versions import Registry

Document = dict[str, Any]
_WHOLE_FROM = 1000.0


def listed(registry: Registry) -> Document:
    """Return all versions and decisions; a damaged record is listed with what is wrong with it.

    Returns
    -------
    dict
        ``where``, ``served`` (null in an empty registry, and where the last decision is damaged),
        ``pinned``, ``versions`` (each as :func:`summary`) and ``decisions`` (``number, at, act,
        version, before``), the oldest first. What is damaged has only its number and ``error``.
    """
    pins, numbers = registry.pins(), registry.versions()
    decisions = [_or_error("number", n, lambda n: _told(registry.decision(n))) for n in pins]
    return {
        "where": registry.where,
        "served": served(registry) if numbers else None,
        "pinned": bool(decisions) and decisions[-1].get("version") is not None,
        "versions": [
            _or_error("version", n, lambda n: summary(registry.record(n))) for n in numbers
        ],
        "decisions": decisions,
    }


def served(registry: Registry) -> int | None:
    """Return the version that is served; None where a damaged decision keeps that unknown."""
    try:
        return registry.served()
    except ArtifactError:
        return None


def served_words(version: int | None) -> str:
    """Return which version is served."""
    if version is None:
        return "the last decision about what is served is damaged: pin a version anew"
    return f"version {version} is served"


def shown(registry: Registry, version: int | None) -> Document:
    """Return all that is known of a version, by default the served one, once it is verified.

    Returns
    -------
    dict
        ``where``, ``served`` (whether it is known to be), :func:`summary`, and the whole
        ``manifest``, ``evaluation`` and ``files`` (name -> SHA-256).
    """
    record, artifact = registry.read(version)
    return {
        "where": registry.where,
        "served": record.version == served(registry),
        **summary(record),
        "products": int(artifact.item_ids.size),
        "files": dict(record.files),
        "manifest": record.manifest.model_dump(mode="json"),
        "evaluation": record.evaluation,
    }


def summary(record: Record) -> Document:
    """Return what tells a version from the others."""
    return {
        "version": record.version,
        "published_at": record.published_at,
        "model": record.manifest.version,
        "server_round": record.manifest.server_round,
        "catalogue_fingerprint": record.manifest.catalogue_fingerprint,
        "code_digest": record.manifest.code_digest,
        "privacy": record.manifest.privacy,
        "evaluated": record.evaluation is not None,
        "forced": list(record.forced),
    }


def decided(registry: Registry, pin: Pin) -> Document:
    """Return what is served after a decision, and what was before."""
    return {
        "where": registry.where,
        "served": registry.served(),
        "pinned": pin.version is not None,
        "before": pin.before,
        "act": pin.act,
    }


def list_table(document: Document) -> Group:
    """Return the versions as a table, the newest first."""
    table = plain_table(f"Models in {escape(document['where'])}")
    times = "published (UTC)"
    for name in ("", "version", times, "round", "privacy", "catalogue", "evaluated"):
        side: Any = "right" if name in ("version", "round") else "left"
        table.add_column(name, justify=side, no_wrap=name != "privacy")
    notes = []
    for found in reversed(document["versions"]):
        mark = "served" if found["version"] == document["served"] else ""
        number = str(found["version"])
        if "error" in found:
            table.add_row(mark, number, "", "", "damaged", "", "")
            notes.append(f"Version {number}: {found['error']}")
            continue
        table.add_row(
            mark,
            number,
            found["published_at"][:16].replace("T", " "),
            str(found["server_round"]),
            escape(_privacy_words(found["privacy"])),
            found["catalogue_fingerprint"][:12],
            "yes" if found["evaluated"] else "no",
        )
        notes += _forced(found)
    if not document["versions"]:
        return Group(Text(f"{document['where']} holds no models yet."))
    how = "pinned" if document["pinned"] else "the newest"
    told = f"Served: version {document['served']}, {how}."
    if document["served"] is None:
        told = f"Served: unknown. {document['decisions'][-1]['error']}"
    return Group(table, Text(told), *(Text(note, style="yellow") for note in notes))


def show_table(document: Document) -> Group:
    """Return a version with its privacy statement in words."""
    head = f"Version {document['version']} of {document['where']}"
    facts = (
        f"Published {document['published_at']}: {counted(document['products'], 'product')} of "
        f"catalogue {document['catalogue_fingerprint'][:12]}, round {document['server_round']}, "
        f"code {document['code_digest'][:12]}. Every file is as it was published."
    )
    lines = [
        head + (", which is served." if document["served"] else "."),
        facts,
        *_forced(document),
        "",
        _statement_words(document["privacy"]),
    ]
    if document["evaluation"] is not None:
        lines += ["Evaluation, as released:", _figures(document["evaluation"])]
    return Group(*(Text(line) for line in lines))


def publish_table(document: Document) -> Group:
    """Return what was published."""
    line = f"Published version {document['version']}; {served_words(document['served'])}."
    return Group(Text(line), *(Text(note, style="yellow") for note in _forced(document)))


def decision_table(document: Document) -> Group:
    """Return what is served now."""
    before = "unknown" if document["before"] is None else document["before"]
    now = f"Served: version {document['served']} (before: {before})"
    after = "until another is pinned." if document["pinned"] else "and from now on the newest."
    return Group(Text(f"{now}, {after}"))


def _told(pin: Pin) -> Document:
    return pin.model_dump(mode="json", exclude={"format_version"})


def _or_error(name: str, number: int, look: Callable[[int], Document]) -> Document:
    try:
        return look(number)
    except ArtifactError as error:
        return {name: number, "error": str(error)}


def _privacy_words(privacy: Mapping[str, Any] | None) -> str:
    if not privacy or not privacy.get("private"):
        return "none"
    try:
        words = promise_words(privacy)
    except UNREADABLE:
        return "incomplete statement"
    return words + (", seeded noise" if privacy.get("noise") == "seeded" else "")


def _statement_words(privacy: Mapping[str, Any] | None) -> str:
    if not privacy:
        return "Privacy: this model came without a statement."
    return any_statement(privacy)


def _forced(found: Document) -> list[str]:
    reasons = "; ".join(found["forced"])
    return [f"Version {found['version']} was published by force: {reasons}."] if reasons else []


def _figures(evaluation: Mapping[str, Any], indent: str = "  ") -> str:
    lines = []
    for name, value in evaluation.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", _figures(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {_figure(value)}")
    return "\n".join(lines)


def _figure(value: Any) -> str:  # noqa: ANN401 - a JSON value
    """Return a figure of four digits, and of a number that has more before the point all of these.

    Customers are counted in floats, for their noise.
    """
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= _WHOLE_FROM else f"{value:.4g}"
