"""What the logs of a shop's programs say, as far as its engineer wants to know it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal[
    "connected",
    "unreachable",
    "clock",
    "unknown-key",
    "still-online",
    "refused",
    "busy-port",
    "asked",
    "failed",
    "warned",
]
Signs = tuple[tuple[Kind, re.Pattern[str]], ...]

_NODE_SIGNS: Signs = (
    ("connected", re.compile(r"SuperNode ID: \d+|Connection successful after")),
    ("unreachable", re.compile(r"Connection attempt failed|handshake error|Failed to initialize")),
    # Whoever is connected, and is refused then, was removed; before that only its signature counts.
    ("clock", re.compile(r"'401 Unauthorized' for url '\S*/activate-node'")),
    ("unknown-key", re.compile(r"'401 Unauthorized' for url '\S*/v1/fleet/")),
    ("refused", re.compile(r"bundle=refused digest=(?P<about>[0-9a-f]*)")),
    ("busy-port", re.compile(r"address already in use")),
    ("asked", re.compile(r"Receiving: (?:query|train)\.(?P<about>\w+) message")),
)
# Opacus sets up how all modules log: once it is loaded, time and level stand before their words.
_BEFORE = r"^(?:[\d/]+ [\d:]+:[A-Z]+:)?"
#: Of what the client apps write into their executor's log; apart, for a reason may hold any words.
APP_SIGNS: Signs = (
    # A server may call any number a round, below 0 too: the refusal is told all the same.
    (
        "failed",
        re.compile(_BEFORE + r"exchange=\w+ round=-?\d+ status=(?P<about>[\w-]+( reason=.*)?)$"),
    ),
    ("warned", re.compile(_BEFORE + r"data=read records=none: (?P<about>.*)$")),
)
# The second line of Flower's word about a connection that it gave up. The last of them is said of a
# key that it does not know, too.
_CODES: dict[str, Kind] = {"2001": "unknown-key", "2004": "still-online"}
_CODE = re.compile(r"\[code: (\d+)\]")


@dataclass(frozen=True)
class Sign:
    """One thing that a log says.

    Attributes
    ----------
    about
        Of "refused" the bundle's digest, of "asked" the exchange, of "failed" the status and why,
        of "warned" the words.
    """

    kind: Kind
    about: str = ""


class NodeLog:
    """Reads what is appended to a log, from where it ends now."""

    def __init__(self, path: Path, signs: Signs = _NODE_SIGNS) -> None:
        self._path, self._signs = path, signs
        self._read = path.stat().st_size if path.exists() else 0

    def news(self) -> list[Sign]:
        """Return the signs in the whole lines since the last call."""
        try:
            # Whoever writes it begins a new file when this one has grown too large.
            if self._path.stat().st_size < self._read:
                self._read = 0
            with self._path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        lines = whole.decode("utf-8", errors="replace").splitlines()
        return [sign for line in lines if (sign := _sign(line, self._signs)) is not None]


def _sign(line: str, signs: Signs) -> Sign | None:
    if signs is _NODE_SIGNS and (code := _CODE.search(line)) and code[1] in _CODES:
        return Sign(_CODES[code[1]])
    for kind, pattern in signs:
        if match := pattern.search(line):
            return Sign(kind, match.groupdict().get("about", ""))
    return None
