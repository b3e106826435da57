"""What a shop's engineer sees of a bundle before it is approved: its files, and what is new."""

import difflib
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.joining.approval import Approvals
from client.shop_folder import ShopFolder
from common import bundle
from common.errors import ConfigError


@dataclass(frozen=True)
class Sight:
    """A bundle beside the code that is installed here.

    Attributes
    ----------
    files
        Name -> bytes; empty where only the digest is known.
    same
        Whether it holds exactly the files of the code installed here.
    """

    digest: str
    files: dict[str, bytes]
    same: bool
    added: list[str]
    changed: list[str]
    removed: list[str]
    _own: dict[str, bytes]

    def document(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "digest": self.digest,
            "files": {name: len(data) for name, data in sorted(self.files.items())},
            "same_as_own_code": self.same,
            "added": self.added,
            "changed": self.changed,
            "removed": self.removed,
        }

    def diff(self) -> str:
        """Return a unified diff from the own code to the bundle."""
        parts: list[str] = []
        for name in sorted({*self.added, *self.changed, *self.removed}):
            before, after = (
                printable(files.get(name, b"")).splitlines() for files in (self._own, self.files)
            )
            shown = one_line(name)
            parts += difflib.unified_diff(
                before, after, f"own/{shown}", f"new/{shown}", lineterm=""
            )
        return "\n".join(parts)


def look(chosen: str, *, own_code: bool) -> Sight:
    """Return what is known of a bundle: a ``.fab`` file, a digest, or the own code.

    Raises
    ------
    ConfigError
        If ``chosen`` is neither, or both or none were chosen.
    InputError
        If the file is no bundle.
    """
    if own_code == bool(chosen):
        raise ConfigError("say which code: a .fab file, a digest of 64 digits, or --own-code")
    own = bundle.build()
    if own_code or chosen == bundle.digest(own):
        return _compare(bundle.digest(own), bundle.contents(own), own)
    path = Path(chosen)
    if path.is_file():
        data = read_bundle(path)
        return _compare(bundle.digest(data), bundle.contents(data), own)
    if path.suffix == ".fab" or len(chosen) != 64:
        raise ConfigError(f"{chosen!r} is neither a file nor a digest of 64 digits")
    return Sight(chosen, {}, False, [], [], [], {})


def read_bundle(path: Path) -> bytes:
    """Return the bytes of a bundle.

    Raises
    ------
    ConfigError
        If it cannot be read or is larger than any bundle.
    """
    try:
        if path.stat().st_size > bundle.MAX_BYTES:
            raise ConfigError(f"{path} is larger than a bundle may be ({bundle.MAX_BYTES} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def listing(folder: ShopFolder) -> dict[str, Any]:
    """Return all decisions of a shop, what stands, and what was refused lately."""
    import json

    approvals = Approvals(folder.approvals)
    standing = approvals.approved()
    refused: dict[str, dict[str, Any]] = {}
    if folder.refusals.is_file():
        for line in folder.refusals.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                refused[str(entry["digest"])] = entry
            except (ValueError, KeyError, TypeError):
                continue  # The disk was full while it was written.
    return {
        "approved": [decision.model_dump() for decision in standing.values()],
        "decisions": [decision.model_dump() for decision in approvals.decisions()],
        "refused": [entry for digest, entry in refused.items() if digest not in standing],
    }


def who() -> str:
    """Return the account that this command runs under."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def printable(data: bytes) -> str:
    """Return text without characters that could hide or rewrite what a terminal shows."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(c if c in "\n\t" else one_line(c) for c in text)


def one_line(text: str) -> str:
    """Return the same of a name, which is on one line whatever is in it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _compare(digest: str, files: dict[str, bytes], own_bundle: bytes) -> Sight:
    own = bundle.contents(own_bundle)
    return Sight(
        digest,
        files,
        files == own,
        sorted(files.keys() - own.keys()),
        sorted(name for name in files.keys() & own.keys() if files[name] != own[name]),
        sorted(own.keys() - files.keys()),
        own,
    )


def digest_of(chosen: str, *, own_code: bool) -> str:
    """Return the digest of what was chosen, without looking into it; see :func:`look`."""
    if own_code or not chosen:
        return look(chosen, own_code=own_code).digest
    path = Path(chosen)
    return bundle.digest(read_bundle(path)) if path.is_file() else chosen
