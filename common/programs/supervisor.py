"""Keeping programs running: what dies is started again, and all of it ends together."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import RunError
from common.programs.processes import end_carriers, last_lines

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
#: Who ran so long was well: the next end counts as the first.
_WELL_AFTER = 60.0
_POLL = 0.1
_LARGEST_LOG = 16 * 1024 * 1024


@dataclass(frozen=True)
class Program:
    """A program to keep running.

    Attributes
    ----------
    folder
        Its working folder; neutral and empty, for Python puts it before all else.
    log
        Where its output is appended, readable by us alone.
    final
        Told a status with which it ended; returns why starting it again is of no use, or None.
    clear
        Called before each start and after the end: ends what it may have left behind that does
        not show the token.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    final: Callable[[int], str | None] = lambda _: None
    clear: Callable[[], object] = lambda: None

    def tail(self) -> str:
        """Return the last lines of its log."""
        return last_lines(self.log)


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes]
    started: float
    pause: float = _FIRST_PAUSE
    restarts: int = 0
    #: When to start it again; None while it runs.
    due: float | None = field(default=None)

    def wait(self, now: float) -> None:
        """Put off its next start, each time for longer."""
        self.due = now + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


class Supervisor:
    """Starts programs, restarts what dies, and on leaving ends all that carries the token.

    Parameters
    ----------
    variable, value
        The token: in every program's environment, and so in that of all it starts.
    grace_seconds
        How long programs may take to end themselves before they are killed.
    """

    def __init__(self, variable: str, value: str, *, grace_seconds: float = 10.0) -> None:
        self._variable, self._value, self._grace = variable, value, grace_seconds
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        """End what an earlier one that was killed outright left behind."""
        end_carriers(self._variable, self._value)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything, in the reverse order of its start."""
        self._end()

    def start(self, program: Program) -> None:
        """Start a program and keep it running from now on, as far as :meth:`step` is called."""
        self._children[program.name] = _Child(program, self._spawn(program), time.monotonic())

    def pid(self, name: str) -> int | None:
        """Return the process id of a program, None while it waits for its restart."""
        child = self._children[name]
        return None if child.due is not None else child.process.pid

    def restarts(self, name: str) -> int:
        """Return how often a program was started again."""
        return self._children[name].restarts

    def wait_until(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait for the first start of a program.

        Raises
        ------
        RunError
            If it ended, or is not ready in time; with the end of its log.
        """
        child = self._children[name]
        deadline = time.monotonic() + seconds
        while not ready():
            status = child.process.poll()
            if status is not None:
                raise RunError(f"{name} ended (status {status})\n{child.program.tail()}")
            if time.monotonic() > deadline:
                raise RunError(f"{name} was not ready in {seconds:g} s\n{child.program.tail()}")
            time.sleep(_POLL)

    def step(self) -> list[str]:
        """Look at every program once; return the names of those that were started again.

        Raises
        ------
        RunError
            If one ended for good, as its ``final`` says.
        """
        again = []
        for name, child in self._children.items():
            now = time.monotonic()
            if child.due is None and (status := child.process.poll()) is not None:
                if why := child.program.final(status):
                    raise RunError(f"{name} ended (status {status}): {why}")
                if now - child.started > _WELL_AFTER:
                    child.pause = _FIRST_PAUSE
                logger.warning(
                    "program=%s event=ended status=%d restart_in=%.1f log=%s",
                    name, status, child.pause, child.program.log,
                )  # fmt: skip
                child.wait(now)
            elif child.due is not None and now >= child.due:
                try:
                    child.process = self._spawn(child.program)
                except OSError as error:
                    # The machine's trouble, such as a full disk, may pass; the others run on.
                    logger.warning(
                        "program=%s event=not_started reason=%s restart_in=%.1f",
                        name, error.strerror, child.pause,
                    )  # fmt: skip
                    child.wait(time.monotonic())
                    continue
                child.started, child.due = time.monotonic(), None
                child.restarts += 1
                again.append(name)
        return again

    def watch(self, looked: Callable[[list[str]], object] = lambda _: None) -> None:
        """Keep all programs running until an exception ends it, such as that of a signal.

        Parameters
        ----------
        looked
            Called after each look at them, with the names of those that were started again.
        """
        while True:
            looked(self.step())
            time.sleep(_POLL)

    def _spawn(self, program: Program) -> subprocess.Popen[bytes]:
        program.clear()
        set_aside(program.log)
        program.log.touch(mode=0o600)
        with program.log.open("ab") as output:
            process = subprocess.Popen(
                list(program.command),
                env={**program.environment, self._variable: self._value},
                cwd=program.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us alone: we end them in order.
                start_new_session=True,
                # What they write is for us alone as well.
                umask=0o077,
            )
        logger.info("program=%s event=started pid=%d", program.name, process.pid)
        return process

    def _end(self) -> None:
        try:
            for child in reversed(self._children.values()):
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGTERM)
                    with suppress(subprocess.TimeoutExpired):
                        child.process.wait(self._grace)
        finally:
            # Also where a second signal cuts the wait short.
            end_carriers(self._variable, self._value)
            for child in self._children.values():
                child.process.kill()
                child.process.wait(self._grace)
                child.program.clear()
                logger.info("program=%s event=over", child.program.name)


def set_aside(log: Path) -> None:
    """Keep a log that has grown large as the one before, and start anew."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LARGEST_LOG:
            log.replace(log.with_suffix(log.suffix + ".1"))
