"""The project's own command lines as real programs of one folder, and the end of all of them.

Everything is started with one variable in its environment, a token that whatever it starts inherits
as well: so what was left running is found, whoever started it. Temporary files go into the folder.
"""

import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from common.bundle import FEDERATION
from common.errors import RunError
from common.programs.processes import carriers, end_carriers, environment, last_lines

logger = logging.getLogger(__name__)

#: Not one of ours that children drop: it must reach all of them.
TOKEN = "LOCAL_FEDERATION"  # noqa: S105 - a name, not a secret
_GRACE_SECONDS = 30.0
_TAIL_LINES = 20


@dataclass(frozen=True)
class Background:
    """A command line that runs until it is ended.

    Attributes
    ----------
    log
        Where its output goes.
    """

    words: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise :class:`RunError`, with the end of its log, if it has ended."""
        if (status := self.process.poll()) is not None:
            raise RunError(f"`{self.words}` ended (status {status})\n{last_lines(self.log)}")


class Programs:
    """Starts command lines of this project; on leaving, ends all that are left.

    Parameters
    ----------
    folder
        For logs, temporary files and Flower's own files.
    show
        Told each command line before it is run.
    """

    def __init__(self, folder: Path, show: Callable[[str], object] = lambda _: None) -> None:
        self._given, self._folder = folder, folder.resolve()
        self._show, self.token = show, uuid.uuid4().hex
        self._temporary, self._logs = self._folder / "tmp", self._folder / "logs"
        self._background: dict[str, Background] = {}
        self._clear: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        """Make the folders."""
        for folder in (self._temporary, self._logs):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything, the last started first, and take away temporary files."""
        try:
            self.end_all()
        finally:
            end_carriers(TOKEN, self.token)
            for clear in self._clear:
                clear()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def at_end(self, clear: Callable[[], object]) -> None:
        """Have something called at the end: it ends what does not show the variable."""
        self._clear.append(clear)

    @property
    def mark(self) -> dict[str, str]:
        """The variable by which all that was started here is found."""
        return {TOKEN: self.token}

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a command line."""
        values = {**self.mark, "TMPDIR": str(self._temporary), **extra}
        return environment(self._folder / "flwr", values)

    def run(
        self,
        *words: str,
        extra: Mapping[str, str] | None = None,
        told: Callable[[str], object] = lambda _: None,
    ) -> str:
        """Run ``python -m WORDS...`` to its end and return what it wrote to stdout.

        Parameters
        ----------
        extra
            Variables for its environment.
        told
            Called with each line that it writes to stderr.

        Raises
        ------
        RunError
            If it failed; the message ends with the last lines of its stderr.
        """
        said = self._spoken(words)
        self._show(said)
        lines: list[str] = []
        with tempfile.TemporaryFile("w+", encoding="utf-8", dir=self._temporary) as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                env=self.environment(extra or {}),
                cwd=FEDERATION.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    lines.append(line.rstrip())
                    told(lines[-1])
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    _wait(process)
                if process.stderr is not None:
                    process.stderr.close()
            if status:
                tail = "\n".join(lines[-_TAIL_LINES:])
                raise RunError(f"`{said}` failed (status {status})\n{tail}")
            out.seek(0)
            return out.read()

    def start(
        self,
        name: str,
        *words: str,
        extra: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> Background:
        """Start ``python -m WORDS...`` and let it run; its output goes to ``logs/<name>.log``.

        Parameters
        ----------
        extra
            Variables for its environment.
        within
            A command that runs the one that follows it, such as in another network.
        """
        said = self._spoken(words)
        self._show(f"{said} &")
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*within, sys.executable, "-m", *words],
                env=self.environment(extra or {}),
                cwd=FEDERATION.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._background[name] = Background(said, process, log)
        return self._background[name]

    def check(self) -> None:
        """Raise :class:`RunError` if a program in the background has ended."""
        for program in self._background.values():
            program.check()

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait for something that programs in the background bring about.

        Raises
        ------
        RunError
            If one of them ends, or it takes longer.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise RunError(f"{what} did not happen within {seconds:g} s: see {self._logs}")
            time.sleep(0.1)

    def end(self, name: str) -> int:
        """Ask a program in the background to end, and return the status with which it did."""
        process = self.take(name).process
        process.send_signal(signal.SIGTERM)
        return _wait(process)

    def take(self, name: str) -> Background:
        """Return a program in the background, from now on the caller's to end."""
        return self._background.pop(name)

    def end_all(self) -> dict[str, int]:
        """End every program in the background, the last started first; return name -> status."""
        return {name: self.end(name) for name in reversed(list(self._background))}

    def running(self) -> list[psutil.Process]:
        """Return every process that was started here, by whomever, and still runs."""
        return carriers(TOKEN, self.token)

    def _spoken(self, words: tuple[str, ...]) -> str:
        """Return a command line as a person would type it who names the folder as we were told."""
        return " ".join(("python -m", *words)).replace(str(self._folder), str(self._given))


def _wait(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> int:
    try:
        return process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        logger.warning("pid=%d event=killed after_seconds=%g", process.pid, _GRACE_SECONDS)
        process.kill()
        return process.wait()
