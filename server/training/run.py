"""One training run as the operator sees it: asked for, followed, and its model published.

Nothing here trains: SuperLink runs the server's app (:mod:`server.app`), which goes on when the
command that started it is gone. A run is taken up again by its name: one that still goes on is
followed, one that broke off goes on at its round, and one that is finished is only published.
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from common.artifact import load_model
from common.bundle import FEDERATION, stage
from common.config import ConfigValue
from common.errors import ArtifactError, InputError, PrivacyError, RunError
from server.operating.control import Node, Submitted
from server.registry.records import read_evaluation
from server.registry.versions import Registry
from server.settings import EVALUATION_FILE, EVENTS_FILE
from server.training.records import RunRecord, Runs, new_events

_POLL = 0.2
_STATUS_EVERY = 2.0
#: SuperLink is started again when it dies; until it answers, the run may well go on.
_PATIENCE = 300.0
_TAIL_LINES = 40
_ONLINE = "online"
#: Where the number of shops comes from that a run needs.
MIN_SHOPS = "server.min_shops in plan.toml"
OF_SUMS = "so many of the roster every secure sum takes"

Event = Mapping[str, Any]


class Link(Protocol):
    """What is asked of SuperLink: :class:`server.operating.control.Control`."""

    def submit(self, app: Path, run_config: Mapping[str, ConfigValue]) -> str:
        """Submit an app for a run; return the run's number."""

    def run(self, run_id: str) -> Submitted:
        """Return what SuperLink knows of a run."""

    def unfinished(self) -> list[str]:
        """Return the numbers of all runs that have not ended."""

    def stop(self, run_id: str) -> None:
        """Stop a run."""

    def log(self, run_id: str) -> str:
        """Return what the server's app logged."""


class View(Protocol):
    """Shown what happens."""

    def stage(self, text: str) -> None:
        """Begin something that takes a while."""

    def note(self, text: str) -> None:
        """Say something that stays."""

    def rounds(self, count: int) -> None:
        """Begin to follow a run of so many rounds."""

    def event(self, event: Event) -> None:
        """Show a public event of the server's app."""


@dataclass(frozen=True)
class Standing:
    """Which of the enrolled shops are connected."""

    connected: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def enrolled(self) -> int:
        """Number of enrolled shops."""
        return len(self.connected) + len(self.missing)

    def check(self, needed: int, why: str = MIN_SHOPS) -> None:
        """Raise :class:`RunError`, naming who is missing, if too few are connected.

        ``why`` says where the number comes from.
        """
        if len(self.connected) >= needed:
            return
        if self.enrolled < needed:
            raise RunError(
                f"{_shops(self.enrolled)} enrolled, and a run needs {needed} ({why}): `python -m "
                "server enrol SHOP KEY.pub` adds one"
            )
        raise RunError(
            f"{len(self.connected)} of {_shops(self.enrolled)} connected, and a run needs {needed} "
            f"({why}). Not connected: {', '.join(self.missing)}. Their engineers start `python -m "
            "client run`"
        )


def standing(enrolled: Sequence[str], nodes: Sequence[Node]) -> Standing:
    """Return which of the enrolled shops are connected."""
    online = {node.name for node in nodes if node.status == _ONLINE}
    return Standing(
        tuple(name for name in enrolled if name in online),
        tuple(name for name in enrolled if name not in online),
    )


class Training:
    """Submits, follows and publishes the runs of one federation.

    Parameters
    ----------
    runs
        Where they are recorded.
    link
        SuperLink.
    is_up
        Whether the services still run.
    registry
        Folder or URL.
    """

    def __init__(
        self, runs: Runs, link: Link, is_up: Callable[[], bool], registry: str, view: View
    ) -> None:
        self._runs, self._link, self._is_up = runs, link, is_up
        self._registry, self._view = registry, view

    def take_up(self, record: RunRecord) -> tuple[RunRecord, bool]:
        """Look whether a run's last attempt goes on; return its record, and whether it does.

        What an interrupted command submitted and never recorded is stopped: it would train beside
        the attempt that comes.

        Raises
        ------
        RunError
            If another run goes on.
        """
        unfinished = frozenset(self._link.unfinished())
        going = set(unfinished)
        for name in self._runs.names():
            if not going:
                break  # Nor is a run in the way whose record is damaged.
            other = self._runs.read(name)
            if not other.attempts or other.attempts[-1] not in going:
                continue
            if name != record.name:
                raise RunError(
                    f"run {name} goes on at this moment: `python -m server train --resume {name}` "
                    "follows it, and Ctrl-C there stops it"
                )
            going.discard(other.attempts[-1])
        for stray in sorted(going):
            self._view.note(f"Stopping attempt {stray}, which an interrupted command left behind.")
            self._stop(stray)
        if not record.attempts or record.ended in ("completed", "stopped"):
            return record, False
        if record.attempts[-1] in unfinished:
            return record, True
        try:
            status = self._status(record.attempts[-1])
        except RunError as error:
            # It does not go on, whatever else there is to know of it: SuperLink's database may be
            # a new one, as in a folder that the runs were moved to.
            changes = {"ended": "failed", "reason": f"nothing is known of its end: {error}"}
            return self._runs.save(record.model_copy(update=changes)), False
        if not status.startswith("finished"):
            return record, True
        return self._ended(record, status), False

    def submit(
        self, record: RunRecord, changes: Mapping[str, ConfigValue] = MappingProxyType({})
    ) -> RunRecord:
        """Submit an attempt at a run, from its start or its last checkpoint.

        Parameters
        ----------
        changes
            What of the run's config is another in this attempt alone.

        Raises
        ------
        RunError
            If it cannot be submitted, or other code was sent than the record names.
        """
        record = self._runs.save(record)
        with tempfile.TemporaryDirectory(prefix="ft-submit-") as name:
            app = stage(FEDERATION, Path(name))
            run_id = self._link.submit(app, {**record.config, **changes, "run-name": record.name})
        record = self._runs.save(
            record.model_copy(
                update={"attempts": (*record.attempts, run_id), "ended": "", "reason": ""}
            )
        )
        if (sent := self._link.run(run_id).bundle) != record.bundle:
            self._stop(run_id)
            raise RunError(
                f"the bundle that was sent is {sent}, not {record.bundle}: the code in "
                f"{FEDERATION.folder} changed meanwhile. The run is stopped; "
                f"`python -m server train --resume {record.name}` tries again"
            )
        return record

    def follow(self, record: RunRecord, seen: int) -> RunRecord:
        """Show a run's events from offset ``seen`` on until its last attempt has ended.

        Ctrl-C stops the run; it can go on later.

        Raises
        ------
        RunError
            If it failed, was stopped, or nothing is known of it any more.
        """
        self._view.rounds(record.plan.rounds)
        try:
            status = self._watch(record, seen)
        except KeyboardInterrupt:
            self._stop(record.attempts[-1])
            self._runs.save(record.model_copy(update={"ended": "stopped"}))
            raise RunError(
                f"run {record.name} is stopped. It goes on where it was with "
                f"`python -m server train --resume {record.name}`; what shops paid so far is not "
                "paid again, the round that was under way may be"
            ) from None
        record = self._ended(record, status)
        if record.ended != "completed":
            raise RunError(
                f"run {record.name} {record.ended}: {record.reason}\n"
                f"When that is put right: `python -m server train --resume {record.name}` goes on "
                "with the plan that it began with; after a change of plan.toml, "
                "`python -m server train` begins anew"
            )
        return record

    def publish(self, record: RunRecord, *, force: bool) -> tuple[RunRecord, bool]:
        """Publish a finished run's model once; return its record, and whether it was done now.

        Raises
        ------
        RunError
            If it could not be published; it can be, later.
        """
        folder = self._runs.folder(record.name)
        try:
            model = load_model(folder / "model")
            registry = Registry(self._registry)
            for version in reversed(registry.versions()):
                # The manifest names the run and the digest of every file: it is this very model.
                if _manifest(registry, version) == model.manifest:
                    return self._runs.save(record.model_copy(update={"published": version})), False
            figures = folder / EVALUATION_FILE
            found = registry.publish(
                folder / "model",
                evaluation=read_evaluation(figures) if figures.exists() else None,
                force=force,
            )
            return self._runs.save(record.model_copy(update={"published": found.version})), True
        except (InputError, PrivacyError) as error:
            raise RunError(
                f"run {record.name} is finished, and its model is not published: {error}\n"
                f"`python -m server train --resume {record.name}` publishes it, without training"
            ) from error

    # --- following -----------------------------------------------------------------------------

    def _watch(self, record: RunRecord, seen: int) -> str:
        """Return Flower's word for how the last attempt ended."""
        path = self._runs.folder(record.name) / EVENTS_FILE
        answered = time.monotonic()
        next_look = 0.0
        while True:
            events, seen = new_events(path, seen)
            for event in events:
                self._view.event(event)
            if (now := time.monotonic()) >= next_look:
                next_look = now + _STATUS_EVERY
                try:
                    status = self._status(record.attempts[-1])
                    answered = now
                    if status.startswith("finished"):
                        for event in new_events(path, seen)[0]:
                            self._view.event(event)
                        return status
                except RunError as error:
                    self._bear(error, record, now - answered)
            time.sleep(_POLL)

    def _bear(self, error: RunError, record: RunRecord, seconds: float) -> None:
        """Wait on while SuperLink is being started again; raise when that is in vain."""
        if self._is_up() and seconds < _PATIENCE:
            self._view.stage("SuperLink does not answer; waiting for it")
            return
        raise RunError(
            f"nothing is known of run {record.name} any more: {error}\nStart `python -m server up`;"
            f" then `python -m server train --resume {record.name}` follows it or takes it up again"
        ) from error

    def _status(self, run_id: str) -> str:
        return self._link.run(run_id).status

    def _stop(self, run_id: str) -> None:
        self._view.stage("stopping the run")
        try:
            self._link.stop(run_id)
        except RunError:
            if not self._status(run_id).startswith("finished"):
                raise

    def _ended(self, record: RunRecord, status: str) -> RunRecord:
        """Record how the last attempt ended."""
        word = status.partition(":")[2]
        if word == "completed":
            return self._runs.save(record.model_copy(update={"ended": "completed", "reason": ""}))
        if word == "stopped":
            changes = {"ended": "stopped", "reason": "somebody stopped it"}
        else:
            changes = {"ended": "failed", "reason": self._why(record.attempts[-1], status)}
        return self._runs.save(record.model_copy(update=changes))

    def _why(self, run_id: str, status: str) -> str:
        """Return the server's own error first, if it tells one, and else what Flower knows."""
        try:
            log = self._link.log(run_id)
            details = self._link.run(run_id).details
        except RunError as error:
            return f"it ended as {status!r}, and its log cannot be read: {error}"
        return failure(log, details or f"it ended as {status!r}")


def failure(log: str, otherwise: str) -> str:
    """Return why a run failed, from the log of the server's app."""
    own = re.findall(r"^common\.errors\.\w+: (.+)$", log, flags=re.MULTILINE)
    if own:
        return str(own[-1])
    tail = "\n".join(log.splitlines()[-_TAIL_LINES:])
    return f"{otherwise}\nThe end of its log:\n{tail}" if tail else otherwise


def _manifest(registry: Registry, version: int) -> object:
    try:
        return registry.record(version).manifest
    except ArtifactError:
        return None  # Damaged: whatever it was, it is not served.


def _shops(count: int) -> str:
    return f"{count} shop{' is' if count == 1 else 's are'}"
