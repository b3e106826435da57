"""What ``status`` looks like in a terminal."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.text import Text

from common.cli import plain_table
from common.wording import counted
from server.operating.authority import SOON_DAYS
from server.operating.tables import reachable
from server.training.view import event_words

Document = dict[str, Any]
_WARNING = "yellow"


def status_table(document: Document) -> Group:
    """Return all of it, one part below the other."""
    head = f"{document['federation']} at {document['address']}: "
    head += "up" if document["up"] else "not up (`python -m server up` starts it)"
    parts: list[Any] = [Text(head, style="" if document["up"] else _WARNING)]
    sections = (
        ("listeners", "What listens", _listeners),
        ("shops", "Shops", _shops),
        ("catalogue", "Catalogue", _catalogue),
        ("run", "Last run", _run),
        ("registry", "Registry", _registry),
        ("certificates", "Certificates", _certificates),
    )
    for key, title, show in sections:
        found = document[key]
        if key == "listeners" and not document["up"]:
            continue
        parts.append(Text(""))
        if isinstance(found, dict) and "error" in found:
            parts.append(Text(f"{title}: {found['error']}", style=_WARNING))
        else:
            parts += show(found)
    return Group(*parts)


def _listeners(found: list[Document]) -> list[Any]:
    table = plain_table("What listens")
    for name in ("port", "address", "program", "process", "reachable", "serves"):
        table.add_column(name, justify="right" if name in ("port", "process") else "left")
    for one in found:
        row = (one["address"], one["program"], str(one["pid"]), reachable(one), one["serves"])
        table.add_row(str(one["port"]), *map(escape, row))
    return [table]


def _shops(found: list[Document]) -> list[Any]:
    if not found:
        return [Text("No shop is enrolled: python -m server enrol SHOP KEY.pub")]
    table = plain_table("Shops")
    for name in ("shop", "node", "since (UTC)"):
        table.add_column(name)
    for shop in found:
        word = shop["status"] or "unknown"
        since = (shop["changed_at"] or "")[:16].replace("T", " ")
        style = "" if word == "online" else _WARNING
        table.add_row(escape(shop["shop"]), word, since, style=style)
    return [table]


def _catalogue(found: Document | None) -> list[Any]:
    if found is None:
        return [Text("Catalogue: none yet (`python -m server catalogue publish FOLDER`).")]
    return [
        Text(
            f"Catalogue: version {found['n']}, {counted(found['products'], 'product')}, "
            f"{found['fingerprint'][:12]}."
        )
    ]


def _run(found: Document | None) -> list[Any]:
    if found is None:
        return [Text("No run yet (`python -m server train`).")]
    done = f"{found['rounds_done']} of {found['rounds']} rounds done"
    parts: list[Any] = [Text(f"Last run: {found['run']}, {found['state']}, {done}.")]
    if (sums := found["sums"]) is not None:
        there = ", ".join(map(str, sums["survivors"])) or "none yet"
        parts.append(
            Text(
                f"  Trust federation: {sums['honest_shops']} honest and up to "
                f"{sums['colluding_shops']} colluding survivors of each sum; there were {there}."
            )
        )
        parts += [
            Text(f"  Left out of sums: {shop}: {why}", style=_WARNING)
            for shop, why in sorted(sums["left_out"].items())
        ]
    if found["reason"]:
        parts.append(Text(f"  {found['reason']}", style=_WARNING))
    parts += [Text(f"  {event_words(exchange)}") for exchange in found["exchanges"]]
    if found["published"] is not None:
        parts.append(Text(f"  Published as version {found['published']}."))
    elif found["state"] in ("completed", "failed", "stopped"):
        parts.append(
            Text(f"  Not published: `python -m server train --resume {found['run']}` goes on.")
        )
    if found["evaluation"] is not None:
        parts += _figures(found["evaluation"])
    return parts


def _figures(found: Document) -> list[Any]:
    """Return what shops released of how well the model serves their customers."""
    columns = {"all together": found["together"], **found["shops"]}
    table = plain_table("  What shops released of it, ± one standard error")
    table.add_column("")
    for name in columns:
        table.add_column(escape(name), justify="right")
    counts = (f"{c['customers']:.0f} ± {c['customers_error']:.0f}" for c in columns.values())
    table.add_row("  customers", *counts)
    for name in found["together"]["figures"]:
        cells = (_figure(column["figures"].get(name)) for column in columns.values())
        table.add_row(f"  {escape(name)}", *cells)
    seeded = "  Their noise was seeded: it protects nobody."
    return [table, *([Text(seeded, style=_WARNING)] if found["noise"] == "seeded" else [])]


def _figure(found: Document | None) -> str:
    if found is None:
        return "hidden by noise"
    return f"{found['mean']:.4f} ± {found['error']:.4f}"


def _registry(found: Document) -> list[Any]:
    if found["served"] is None:
        return [Text(f"Registry: {found['where']} holds no models yet.")]
    how = "pinned" if found["pinned"] else "the newest"
    return [
        Text(
            f"Registry: {found['where']}, {counted(found['versions'], 'version')}; version "
            f"{found['served']} is served, {how}."
        )
    ]


def _certificates(found: list[Document]) -> list[Any]:
    table = plain_table("Certificates")
    for name in ("file", "until", "days left"):
        table.add_column(name, justify="right" if name == "days left" else "left")
    for one in found:
        style = _WARNING if one["days_left"] < SOON_DAYS else ""
        table.add_row(escape(one["file"]), one["until"][:10], str(one["days_left"]), style=style)
    parts: list[Any] = [table]
    if any(one["days_left"] < SOON_DAYS for one in found):
        parts.append(Text("`python -m server renew` issues new ones.", style=_WARNING))
    return parts
