"""What the federation remembers of each shop's ledger: the hash of the last entry that it saw.

A shop that restores an older copy of its ledger would forget what it spent. It cannot tell by
itself; the server, which learnt the newer head from an earlier reply, tells it in every message.
The file lasts over runs and restarts, and holds public hashes only.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from common.disk import write_whole
from common.errors import ArtifactError
from common.protocol import FINGERPRINT_CHARS, NO_FINGERPRINT

_FORMAT = 1


class LedgerHeads:
    """Shop key -> last known head of its ledger, in one JSON file.

    Raises
    ------
    ArtifactError
        If the file is there and cannot be read: to go on without it would be to forget.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heads = _read(path) if path.exists() else {}

    def of(self, shop: str) -> str:
        """Return the last head that was seen of a shop's ledger; zeros for an unknown shop."""
        return self._heads.get(shop, NO_FINGERPRINT)

    def remember(self, seen: Mapping[str, str]) -> None:
        """Keep the heads of shops that have just been charged, on disk before this returns.

        Zeros say nothing of a ledger: they replace no head.
        """
        new = {shop: head for shop, head in seen.items() if head != NO_FINGERPRINT}
        if all(self._heads.get(shop) == head for shop, head in new.items()):
            return
        self._heads |= new
        self.save()

    def save(self) -> None:
        """Write the file, be it as it is; an OSError tells that no head could be kept."""
        facts = {"format": _FORMAT, "heads": dict(sorted(self._heads.items()))}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(facts, indent=1).encode())


def _read(path: Path) -> dict[str, str]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise ArtifactError(f"{path} has format {facts['format']}, this code reads {_FORMAT}")
        heads = {str(shop): str(head) for shop, head in facts["heads"].items()}
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"cannot read the shops' ledger heads in {path}: {error}; restore the file from its "
            "backup: without it a shop's older ledger would pass for its newest"
        ) from error
    if wrong := [s for s, head in heads.items() if {len(s), len(head)} != {FINGERPRINT_CHARS}]:
        raise ArtifactError(f"{path} holds something other than hashes at {wrong[0]!r}")
    return heads
