"""The terminal's tables of what a shop does with the global model at home."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.text import Text

from common.cli import plain_table

Document = dict[str, Any]
_REASONS = 4
_SHOWN = ("ndcg@20", "recall@20", "tail_ndcg@20", "coverage@20")
_HISTORY = ("history-content", "history-learned", "neighbours")


def adapted_table(document: Document) -> Group:
    """Return what an adaptation was fitted on and how it mixes."""
    table = plain_table(f"Adapted {escape(document['shop'])} to {escape(document['model'])}")
    table.add_column("part")
    table.add_column("weight", justify="right")
    for name, weight in document["weights"].items():
        table.add_row(name, f"{weight:.3g}" if weight else "not used")
    span = document["span"]
    return Group(
        table,
        Text(
            f"Fitted on {document['records']} records of {document['customers']} customers, "
            f"{span['first'][:10]} to {span['last'][:10]}; weights chosen on "
            f"{document['validated']} customers since {document['validation_from'][:10]}."
        ),
        Text(_segments(document["segments"])),
        Text(f"Kept in {document['kept_in']}; it never leaves this machine."),
        *_notes(document),
    )


def evaluation_table(document: Document) -> Group:
    """Return a shop's own figures, each beside what it can do alone."""
    shop, model = escape(document["shop"]), escape(document["model"])
    table = plain_table(f"What {model} brings {shop}")
    names = {"own": "alone", "global": "global", "mixed": "mixed"}
    table.add_column("")
    for metric in _SHOWN:
        table.add_column(metric, justify="right")
    for name, label in names.items():
        figures, compared = document["figures"][name], document["vs_own"].get(name, {})
        table.add_row(label, *(_figure(figures[m], compared.get(m)) for m in _SHOWN))
    return Group(
        table,
        Text(
            f"{document['asked']} customers asked for what they first took from "
            f"{document['train_until'][:10]} to {document['until'][:10]}; in brackets: the gain "
            "over alone, a 95% interval (paired bootstrap over customers)."
        ),
        Text("These figures stay on this machine."),
        *_notes(document),
    )


def recommendations_table(document: Document) -> Group:
    """Return one customer's list, with its reasons where they were asked for."""
    who = document["user_id"] or "a guest"
    listed = document["recommendations"]
    table = plain_table(f"For {escape(who)} at {escape(document['shop'])}")
    table.add_column("rank", justify="right")
    table.add_column("item")
    mapped = any("own_item_ids" in entry for entry in listed)
    if mapped:
        table.add_column("the shop's", overflow="fold")
    columns = [name for name in ("title", "category") if any(entry.get(name) for entry in listed)]
    for name in columns:
        table.add_column(name, overflow="fold")
    table.add_column("score", justify="right")
    why = any("reasons" in entry for entry in listed)
    if why:
        table.add_column("because of", overflow="fold")
    for entry in listed:
        table.add_row(
            str(entry["rank"]),
            escape(entry["item_id"]),
            *([escape(", ".join(entry["own_item_ids"]))] if mapped else []),
            *(escape(entry.get(name) or "") for name in columns),
            f"{entry['score']:.4f}",
            *([escape(_because(entry["reasons"]))] if why else []),
        )
    model = document["model"]
    how = f"adapted at home on {model['fitted_at'][:10]}" if model["adapted"] else "as it came"
    seen = document["history"]["products"]
    return Group(
        table,
        Text(f"Model {model['version']}, {how}; from {seen} products in the history."),
        *_notes(document),
    )


def _segments(names: list[str]) -> str:
    if not names:
        return "Who has no history is served what sells, here and everywhere."
    more = f" and {len(names) - _REASONS} more" if len(names) > _REASONS else ""
    return (
        "Who has no history is served what sells, moved by the taste of their segment: "
        f"{', '.join(names[:_REASONS])}{more}."
    )


def _because(reasons: list[Document]) -> str:
    """Return the weightiest reasons and the sum of the others: together they are the score."""
    sums: dict[str, float] = {}
    for part in reasons:
        name = _reason(part)
        sums[name] = sums.get(name, 0.0) + part["value"]
    ordered = sorted(sums.items(), key=lambda entry: -abs(entry[1]))
    words = [f"{name} {value:+.4f}" for name, value in ordered[:_REASONS]]
    if rest := ordered[_REASONS:]:
        words.append(f"{len(rest)} more {sum(value for _, value in rest):+.4f}")
    return "\n".join(words)


def _reason(part: Document) -> str:
    if part["kind"] in _HISTORY:
        return f"{part['label']} {part.get('name') or ''}".rstrip()
    return f"popular {part['label']}" if part["kind"] == "popularity" else part["label"]


def _figure(value: float, compared: Document | None) -> str:
    shown = "-" if value != value else f"{value:.4f}"
    if compared is None or compared["low"] != compared["low"]:  # of one customer, or none
        return shown
    return f"{shown} [{compared['low']:+.4f}, {compared['high']:+.4f}]"


def _notes(document: Document) -> list[Text]:
    return [Text(f"Note: {note}.", style="yellow") for note in document["notes"]]
