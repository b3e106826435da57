"""The catalogue's versions as text for the terminal."""

from typing import Any

from rich.console import Group
from rich.text import Text

Document = dict[str, Any]


def publish_table(document: Document) -> Group:
    """Return what was published, or that it was already."""
    said = "Published as" if document["new"] else "Nothing changed: this is already"
    lines = [
        f"{said} version {document['version']}: {document['products']:,} products",
        f"fingerprint {document['fingerprint']}",
        f"in {document['path']}",
    ]
    return Group(*map(Text, lines))
