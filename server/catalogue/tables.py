"""The catalogue's versions as text for the terminal."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common.cli import plain_table
from common.wording import counted

Document = dict[str, Any]
#: What becomes of a product, besides that its content changes.
_FATES = ("added", "retired", "returned", "dropped")


def publish_table(document: Document) -> Group:
    """Return what was published, or that nothing had to be."""
    number = document["version"]
    if not document["new"]:
        said = f"Nothing changed: this is version {number} already"
    elif document["dry_run"]:
        said = f"Would be version {number}; nothing was written"
    else:
        said = f"Published version {number} in {document['path']}"
    lines = [said, *_facts(document)]
    described = ", ".join(document["features"]) or "nothing: give content columns"
    lines.append(f"described by {described}")
    if document["unused"]:
        lines.append(f"columns that describe nothing: {', '.join(document['unused'])}")
    parts = [Text(line) for line in lines]
    if document["new"] and document["changes"] is not None:
        parts += [Text(""), *map(Text, _changes(document["changes"]))]
    if document["new"] and not document["dry_run"]:
        parts += [Text(""), Text(_NEXT)]
    return Group(*parts)


_NEXT = (
    "Now every shop needs this version before it can take part in the next run: hand out the "
    "folder, or\n  python -m server catalogue export catalogue.zip\n"
    "`python -m client check` prints the fingerprint that a shop has: it must be the one above."
)


def show_table(document: Document) -> Group:
    """Return a version, what it is made of, and who uses it."""
    number = document["version"]
    which = "the current version" if document["current"] else "not the current version"
    head = [
        f"Version {number} ({which}), published {_time(document['published_at'])} UTC",
        *_facts(document),
        f"in {document['path']}",
    ]
    if document["parent"] is not None:
        head.append(f"since version {document['parent']}: {_counts(document['changes'])}")
    columns = plain_table("Columns")
    for name in ("column", "read as", "filled", "used"):
        columns.add_column(name, justify="right" if name == "filled" else "left")
    for column in document["columns"]:
        columns.add_row(
            escape(column["name"]),
            column["read_as"],
            f"{column['filled']:.0%}",
            "yes" if column["used"] else "no",
        )
    lines = [f"described by {', '.join(document['features']) or 'nothing'}"]
    models = [f"{m['version']}{' (served)' if m['served'] else ''}" for m in document["models"]]
    lines.append(f"models of it in the registry: {', '.join(models) or 'none'}")
    lines.append(f"runs on it: {', '.join(document['runs']) or 'none'}")
    lines += [f"could not be read: {what}" for what in document["unreadable"]]
    return Group(
        *map(Text, head), Text(""), columns, *map(Text, lines), Text(""), _versions(document)
    )


def diff_table(document: Document) -> Group:
    """Return what differs between two versions."""
    old, new = document["from"], document["to"]
    ends = [
        f"version {one['version']} ({counted(one['products'], 'product')}, "
        f"{one['fingerprint'][:12]})"
        for one in (old, new)
    ]
    lines = [f"From {ends[0]} to {ends[1]}", "", *_changes(document)]
    return Group(*map(Text, lines))


def export_table(document: Document) -> Group:
    """Return what was copied where, and what a shop does with it."""
    where = document["exported"]
    put = (
        "unzip catalogue/ of it, and nothing else, in the shop's folder (unzip FILE 'catalogue/*')"
        if where.endswith(".zip")
        else "copy it into the shop's folder as catalogue"
    )
    then = (
        f"A shop: {put}, as a new shop.toml has it, in place of an older one; "
        "`python -m client check` prints the fingerprint."
    )
    lines = [f"Copied version {document['version']} to {where}", *_facts(document), then]
    return Group(*map(Text, lines))


def _facts(document: Document) -> list[str]:
    retired = document["products"] - document["offered"]
    also = f", {retired:,} of them retired" if retired else ""
    count = document["products"]
    facts = [f"{counted(count, 'product')}{also}", f"fingerprint {document['fingerprint']}"]
    if document["stock"] is not None:
        facts.append(f"with what shops stock, fingerprint {document['stock']}")
    return facts


def _changes(changes: Document) -> list[str]:
    lines = _fates(changes)
    for what, names in changes["columns"].items():
        lines += [f"columns {what}: {', '.join(names)}"] if names else []
    return lines + _content(changes["content"]) or ["nothing differs"]


def _fates(changes: Document) -> list[str]:
    counts = changes["counts"]
    lines = [
        f"{fate:<10}{counts[fate]:>12,}   {_some(changes[fate], counts[fate])}"
        for fate in _FATES
        if counts[fate]
    ]
    if counts["changed"]:
        lines.append(f"{'changed':<10}{counts['changed']:>12,}")
    for column, found in changes["changed"].items():
        lines.append(f"  {column}: {counted(found['products'], 'product')}")
        lines += [
            f"    {one['item_id']!r}: {one['before']!r} -> {one['after']!r}"
            for one in found["examples"]
        ]
    return lines


def _content(content: Document) -> list[str]:
    """Return how the description of products changed."""
    named = {"added": "content added", "removed": "content removed", "reread": "read anew"}
    lines = [f"{said}: {', '.join(content[key])}" for key, said in named.items() if content[key]]
    lines += [f"{name}: {old} -> {new}" for name, (old, new) in content["settings"].items()]
    if lines:
        lines.append("Products are described in another way: all content scores change.")
    return lines


def _counts(changes: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {fate}" for fate, n in changes.items() if n) or "no product changed"


def _some(items: list[str], count: int) -> str:
    return ", ".join(map(repr, items)) + (", ..." if count > len(items) else "")


def _versions(document: Document) -> Table:
    table = plain_table("All versions")
    times = "published (UTC)"
    for name in ("version", times, "products", "offered", "models", "runs", "fingerprint"):
        side: Any = "left" if name in (times, "fingerprint") else "right"
        table.add_column(name, justify=side)
    for one in document["versions"]:
        table.add_row(
            str(one["version"]),
            _time(one["published_at"]),
            f"{one['products']:,}",
            f"{one['offered']:,}",
            str(one["models"]),
            str(one["runs"]),
            f"{one['fingerprint'][:12]}...",
        )
    return table


def _time(text: str) -> str:
    return text[:16].replace("T", " ")
