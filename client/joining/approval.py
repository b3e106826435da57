"""Which code may run at this shop: the file of approved bundles, one JSON document a line.

Whoever can write that file decides what runs here, so it must be writable by its owner alone. A
line that is not whole stops all approval until someone has looked: it may be half of a revocation.
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from common.disk import write_whole
from common.errors import ConfigError
from common.protocol import Frozen

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WRITABLE_BY_OTHERS = 0o022


class Approval(Frozen):
    """One decision; the last one about a digest counts."""

    at: str
    action: Literal["approve", "revoke"]
    digest: str = Field(pattern=_DIGEST.pattern, min_length=64, max_length=64)
    who: str
    note: str = ""


class Approvals:
    """The decisions of one shop.

    Parameters
    ----------
    path
        The file; where it is missing, nothing is approved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def decisions(self) -> list[Approval]:
        """Return all decisions, oldest first.

        Raises
        ------
        ConfigError
            If others may write the file, or a line of it is not a whole decision.
        """
        try:
            # One open file: what is checked is what is read.
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"cannot read {self.path}: {error.strerror}") from error
        if mode & _WRITABLE_BY_OTHERS:
            raise ConfigError(
                f"{self.path} can be written by others, who could approve code for this shop: "
                f"chmod 600 {self.path}"
            )
        lines = data.split(b"\n")
        if lines.pop():
            raise ConfigError(self._not_whole(len(lines) + 1))
        return [self._decision(number, line) for number, line in enumerate(lines, 1)]

    def approved(self) -> dict[str, Approval]:
        """Return the approved digests, each with the decision that approved it."""
        standing: dict[str, Approval] = {}
        for decision in self.decisions():
            standing.pop(decision.digest, None)
            if decision.action == "approve":
                standing[decision.digest] = decision
        return standing

    def decide(
        self, action: Literal["approve", "revoke"], digest: str, who: str, note: str = ""
    ) -> Approval:
        """Add a decision; the file is written whole or not at all.

        Raises
        ------
        ConfigError
            If ``digest`` is none, or the file cannot be read or written.
        """
        if not _DIGEST.fullmatch(digest):
            raise ConfigError(
                f"{digest!r} is not a digest: it has 64 digits from 0 to 9 and a to f"
            )
        at = datetime.now(UTC).isoformat(timespec="seconds")
        decision = Approval(at=at, action=action, digest=digest, who=who, note=note)
        with _alone(self.path.parent):
            lines = [d.model_dump_json() for d in (*self.decisions(), decision)]
            try:
                write_whole(self.path, "".join(f"{line}\n" for line in lines).encode())
            except OSError as error:
                raise ConfigError(
                    f"cannot write {self.path}: {error.strerror}; it stays as it was"
                ) from error
        return decision

    def _decision(self, number: int, line: bytes) -> Approval:
        try:
            return Approval.model_validate(json.loads(line))
        except (ValidationError, ValueError) as error:
            raise ConfigError(self._not_whole(number)) from error

    def _not_whole(self, number: int) -> str:
        return (
            f"{self.path}, line {number} is not a whole decision, so nothing is approved: remove "
            "the line, then approve or revoke again what it was about"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second command from writing at the same time."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot open {folder}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
