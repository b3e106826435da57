"""Training runs on the operator's disk: what each was asked to do, and how far it came.

::

    runs/<run-name>/
    ├── run.json         what is kept here
    ├── checkpoints/     a round each: written by the server's app
    ├── rounds.jsonl     public facts of each exchange, likewise
    └── model/           the finished model
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from common.config import ConfigValue, nearest
from common.disk import write_whole
from common.errors import ArtifactError, ConfigError, ProtocolError
from common.protocol import FIRST_OF_THESE_PLANS, Frozen, TrainingPlan, check_run_name, parse_plan
from server.job import Event
from server.settings import EVENTS_FILE

_RECORD = "run.json"
_STAMP = "%Y%m%d-%H%M%S"

Ended = Literal["", "completed", "failed", "stopped"]


class RunRecord(Frozen):
    """What ``run.json`` says of one run.

    Attributes
    ----------
    config
        The server's run config, all of it: a resumed run has the same, whatever plan.toml says by
        then.
    bundle
        Digest of the code that shops had to approve.
    catalogue
        Fingerprint of the catalogue that it trains on.
    started_from
        Version in the registry whose model it began with; None for a fresh one.
    attempts
        Flower's number of each attempt, the last one counts; its first rounds are the run's own
        checkpoints.
    ended, reason
        How the last attempt ended; empty while it may be running.
    published
        Version in the registry.
    """

    format_version: Literal[1] = 1
    name: str
    created_at: str
    config: dict[str, ConfigValue]
    bundle: str
    catalogue: str
    started_from: int | None = None
    attempts: tuple[str, ...] = ()
    ended: Ended = ""
    reason: str = ""
    published: int | None = Field(None, ge=1)

    @property
    def plan(self) -> TrainingPlan:
        """The plan in the run config: also of a run that was made by code before this."""
        return parse_plan(str(self.config["plan"]), oldest=FIRST_OF_THESE_PLANS)


class Runs:
    """All runs of a federation, in the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.root / name

    def names(self) -> list[str]:
        """Return all runs' names, the oldest first; a copy of a run's folder is no run."""
        found = sorted(self.root.glob(f"*/{_RECORD}"))
        return [path.parent.name for path in found if not _is_copy(path)]

    def read(self, name: str) -> RunRecord:
        """Return a run's record.

        Raises
        ------
        ConfigError
            If there is no such run, or the folder of that name is another's, copied or renamed.
        ArtifactError
            If its record is damaged.
        """
        try:
            path = self.folder(check_run_name(name)) / _RECORD
        except ProtocolError as error:
            raise ConfigError(str(error)) from error
        if not path.exists():
            known = self.names()
            hint = nearest(name, known) if known else "there are none yet"
            raise ConfigError(f"{self.root} holds no run {name!r}; {hint}")
        try:
            record = RunRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
            _ = record.plan
        except (OSError, ValueError, ValidationError, KeyError, ProtocolError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error
        if record.name != name:
            there = (self.folder(record.name) / _RECORD).exists()
            raise ConfigError(
                f"{path.parent} is a copy of run {record.name!r}: name that one"
                if there
                else f"{path.parent} is run {record.name!r} under another name: a run's folder "
                "bears its name, so give it that one back"
            )
        return record

    def asked_for(self, name: str) -> str | None:
        """Return the fingerprint of the catalogue that a run was asked to train on.

        None where nobody recorded it; raises as :meth:`read`.
        """
        known = (self.folder(check_run_name(name)) / _RECORD).exists()
        return self.read(name).catalogue if known else None

    def last(self) -> RunRecord | None:
        """Return the newest run's record, if there is one."""
        names = self.names()
        return self.read(names[-1]) if names else None

    def save(self, record: RunRecord) -> RunRecord:
        """Write a record whole or not at all, and return it.

        Raises
        ------
        ArtifactError
            If it cannot be written.
        """
        folder = self.folder(record.name)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(folder / _RECORD, record.model_dump_json(indent=1).encode())
        except OSError as error:
            raise ArtifactError(f"cannot write {folder / _RECORD}: {error.strerror}") from error
        return record

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what the server told of a run; a line that a crash cut short tells nothing."""
        return new_events(self.folder(name) / EVENTS_FILE, 0)[0]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the right to train.

        Raises
        ------
        ConfigError
            If another command has it.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.root / ".lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another `python -m server train` is at work on {self.root} at this moment"
                ) from error
            yield


def _is_copy(path: Path) -> bool:
    """Return whether a record names another run than its folder does, as in a backup."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["name"] != path.parent.name)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # Damaged: whoever reads it says so.


def new_name() -> str:
    """Return a name for a run: names sort by time."""
    return f"{datetime.now(UTC).strftime(_STAMP)}-{secrets.token_hex(2)}"


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def reporting(path: Path) -> Iterator[Callable[[Event], None]]:
    """Give what adds an event to the end of a file, each a whole line at once."""
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
            # A server's app that was killed, or met a full disk, left half a line: ours is another.
            file.write(b"\n")

        def report(event: Event) -> None:
            file.write(json.dumps(event).encode() + b"\n")
            file.flush()

        yield report


def new_events(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the events of the whole lines after ``offset``, and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        # Half a line that a server's app left, which the next one ended.
        with suppress(ValueError):
            if isinstance(event := json.loads(line), dict):
                events.append(event)
    return events, offset + len(whole)
