"""What `client approve` shows in a terminal, as rich renderables."""

from typing import Any

from rich.console import Group
from rich.text import Text

from common.cli import plain_table

Document = dict[str, Any]
_SHOWN = 20


def listing_table(document: Document) -> Group:
    """Return what is approved, and what was refused and is not approved."""
    approved = plain_table("Approved code")
    # A digest is there to be copied.
    approved.add_column("digest", no_wrap=True)
    for name in ("since", "by", "note"):
        approved.add_column(name, overflow="fold")
    for decision in document["approved"]:
        approved.add_row(
            decision["digest"],
            decision["at"],
            Text(decision["who"]),
            Text(decision["note"]),
        )
    parts: list[Any] = [approved]
    if not document["approved"]:
        parts = [Text("No code is approved: whatever a run sends is refused.")]
    if document["refused"]:
        refused = plain_table("Refused")
        refused.add_column("digest", no_wrap=True)
        for name in ("last", "reason"):
            refused.add_column(name, overflow="fold")
        for entry in document["refused"][-_SHOWN:]:
            refused.add_row(*(Text(str(entry.get(key, ""))) for key in ("digest", "at", "reason")))
        parts += [Text(""), refused]
    return Group(*parts)


def sight_table(document: Document) -> Group:
    """Return what is known of a bundle."""
    parts: list[Any] = [Text(f"bundle {document['digest']}")]
    if not document["files"]:
        parts.append(
            Text("A digest alone does not say what the code does: it differs from the code here.")
        )
        return Group(*parts)
    total = sum(document["files"].values())
    parts.append(Text(f"{len(document['files'])} files, {total / 1024:.0f} KiB of code"))
    if document["same_as_own_code"]:
        parts.append(Text("the same files as the code installed here, byte for byte"))
    for kind in ("added", "changed", "removed"):
        parts += [Text(f"  {kind:8} {name!r}", style="yellow") for name in document[kind]]
    return Group(*parts)
