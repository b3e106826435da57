"""A list of recommendations for people who look at a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_SHOWN_COLUMNS = 3
# What says most of a product, where the catalogue has it.
_TELLING = ("title", "category", "type", "brand", "price")


def recommendations_table(document: dict[str, Any]) -> Group:
    """Return the list as a table, with what the dial did and which products are unknown."""
    items = document["items"]
    columns = _columns(items)
    why = any(item.get("reasons") for item in items)
    heads = ("rank", "item_id", *columns, "tail", "score", *(["why"] if why else []))
    table = Table(*map(escape, heads), box=None)
    for item in items:
        values = [_text(item["product"].get(name)) for name in columns]
        tail = "tail" if item["tail"] else ""
        told = item.get("reasons") or {"words": ""}
        words = [Text(told["words"], style="dim")] if why else []
        table.add_row(
            str(item["rank"]), Text(item["item_id"]), *values, tail, f"{item['score']:.4g}", *words
        )
    lines = [
        (
            f"version {document['version']}; {document['tail_share']:.0%} of the list is tail "
            f"({document['tail_share_undialled']:.0%} by score alone), "
            f"{document['score_kept']:.0%} of the score kept"
        )
    ]
    lines += [f"note: {note}" for note in document["notes"]]
    return Group(table, *(Text(line) for line in [*lines, *_unknown(document)]))


def reasons_table(document: dict[str, Any]) -> Group:
    """Return what one score is the sum of."""
    table = Table("part", "", "adds", box=None)
    for part in document["parts"]:
        table.add_row(part["kind"], Text(part["label"]), f"{part['value']:+.4g}")
    table.add_row("score", Text(document["item_id"]), f"{document['score']:.4g}")
    return Group(table, *map(Text, _unknown(document)))


def _unknown(document: Mapping[str, Any]) -> list[str]:
    found = document["unknown_items"]
    return [f"not in the catalogue: {', '.join(found[:10])}"] if found else []


def _columns(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which columns of products are shown, in one order for both interfaces.

    gRPC's map has no order of its own, and leaves out what a product has no value of.
    """
    found = {name for item in items for name in item["product"]}
    usual = [name for name in _TELLING if name in found]
    return [*usual, *sorted(found.difference(usual))][:_SHOWN_COLUMNS]


def _text(value: Any) -> Text:  # noqa: ANN401 - a JSON value
    return Text("" if value is None else str(value))
