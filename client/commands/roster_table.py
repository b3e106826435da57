"""What ``roster`` says in a terminal."""

from typing import Any

from rich.console import Group
from rich.text import Text

from common.wording import counted

Document = dict[str, Any]
_WARNING = "yellow"
_OWN = {
    "there": "This shop is on it with its own key.",
    "missing": "This shop is NOT on it: it could take part in no sum.",
    "other-key": "Another key stands on it under this shop's name: it is not to be accepted.",
}


def roster_table(document: Document) -> Group:
    """Return a roster, and what there is to do."""
    changed = any(not one["new"] for one in document["shops"])
    shops = counted(len(document["shops"]), "shop")
    lines = [Text(f"{document['file']}: {shops}")]
    for one in document["shops"]:
        marks = ["this shop"] if one["own"] else []
        marks += ["new here"] if one["new"] and changed else []
        told = f"   {', '.join(marks)}" if marks else ""
        lines.append(Text(f"  {one['key'][:16]}... {one['shop']}{told}"))
    if document["gone"]:
        lines.append(Text(f"No longer on it: {', '.join(document['gone'])}", style=_WARNING))
    lines.append(Text(f"digest {document['digest']}", style="bold"))
    there = document["own"] == "there"
    lines.append(Text(_OWN[document["own"]], style="" if there else _WARNING))
    if document["accepted"]:
        lines.append(Text(f"This shop has accepted it: {document['place']}"))
    elif there:
        lines.append(
            Text(
                "Compare the digest with the operator's and other shops', by telephone and not "
                "over the server. Then accept it: the same command with --accept."
            )
        )
    if not document["in_use"]:
        lines.append(
            Text(
                "shop.toml has no [secure_sum] section, so this shop takes part in no sums: take "
                "the # off that line.",
                style=_WARNING,
            )
        )
    return Group(*lines)
