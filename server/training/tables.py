"""What ``train`` says of a plan and of a finished run."""

import re
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.text import Text

from common.cli import plain_table
from common.statement import promise_words, protected_words, render_statement
from common.wording import counted
from server.registry.tables import served_words
from server.training.codes import words
from server.training.view import event_words

Document = dict[str, Any]


def plan_lines(document: Document) -> list[str]:
    """Return what a run costs every shop's customers and what it needs, before it begins."""
    head, *needs = _facts(document)
    return [head, _price(document), protected_words(document["privacy"]), *needs]


def _price(document: Document) -> str:
    return (
        f"It costs every shop that takes part {promise_words(document['privacy'])}, once for the "
        "whole run; a shop whose own cap does not hold that takes no part."
    )


def _facts(document: Document) -> list[str]:
    plan, catalogue = document["plan"], document["catalogue"]
    head = (
        f"Run {document['run']}: {counted(plan['rounds'], 'round')} on catalogue version "
        f"{catalogue['version']} ({counted(catalogue['products'], 'product')}, "
        f"{catalogue['fingerprint'][:12]})."
    )
    lines = [head]
    if document["started_from"] is not None:
        since = plan["train_from"]
        new = f" on records since {_date(since)}" if since else " on all records"
        lines.append(
            f"It goes on from version {document['started_from']}{new}; the new model's statement "
            "counts that version's runs too."
        )
    lines += [f"Note: {note}." for note in document["notes"]]
    lines.append(f"Shops must have approved bundle {document['bundle']}.")
    shops = document["shops"]
    if shops is not None:
        connected, missing = _names(shops["connected"]), _names(shops["missing"])
        lines.append(f"Connected: {connected}. Not connected: {missing}.")
    return lines


def plan_table(document: Document) -> Group:
    """Return a plan that was not run, with its whole statement."""
    return Group(
        *(Text(line) for line in [*_facts(document), _price(document)]),
        Text(""),
        Text(render_statement(document["privacy"])),
        Text("Nothing was started."),
    )


def trained_table(document: Document) -> Group:
    """Return what a run came to."""
    table = plain_table(f"Run {document['run']}")
    for name in ("exchange", "seconds", "declined"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for found in document["exchanges"]:
        declined = "; ".join(f"{n} {code}" for code, n in found.get("declined", {}).items())
        # The seconds stand in a column of their own.
        said = re.sub(r" \(\d+ s\)", "", event_words(found), count=1)
        table.add_row(Text(said), f"{found['seconds']:.1f}", declined)
    when = "now" if document["published_now"] else "already"
    codes = sorted({code for found in document["exchanges"] for code in found.get("declined", {})})
    where = f"{document['registry']}; {served_words(document['served'])}."
    return Group(
        table,
        *(Text(words(code)) for code in codes),
        Text(""),
        Text(_statement(document["privacy"])),
        Text(f"{document['seconds']:.0f} s in {counted(document['attempts'], 'attempt')}."),
        *(Text(f"By force: {reason}.", style="yellow") for reason in document["forced"]),
        Text(f"Version {document['published']} ({when} published) in {where}"),
    )


def _statement(privacy: Document | None) -> str:
    if privacy is None:
        return "Privacy: none. This model was trained without differential privacy."
    return render_statement(privacy).rstrip("\n")


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"
