"""A server of recommendations as its operator starts it, and its end."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.errors import RunError

_START_SECONDS = 300.0
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes
    ----------
    rest, grpc
        Where it listens: a URL, and a host with its port.
    log
        The file that it writes to.
    """

    process: subprocess.Popen[bytes]
    rest: str
    grpc: str
    log: Path

    def processor_seconds(self) -> float:
        """Return how long the server's threads have worked so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def served(folder: Path, *options: str, processor: int | None = None) -> Iterator[Served]:
    """Serve the ``registry`` and ``catalogue`` below a folder on free ports, to anyone on loopback.

    Parameters
    ----------
    processor
        The only one that it may run on; None: any.

    Raises
    ------
    RunError
        If it does not start.
    """
    log = folder / "server.log"
    command = [sys.executable, "-m", "server", "serve", str(folder / "registry")]
    command += ["--catalogue", str(folder / "catalogue"), "--port", "0", "--grpc-port", "0"]
    command += ["--rate", "1e6", "--burst", "1e6", *options]
    with log.open("wb") as file, on_processor(processor):
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        rest, grpc = _started(process, log)
        yield Served(process, rest, grpc, log)
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def on_processor(number: int | None) -> Iterator[None]:
    """Let this thread, and what it starts, run on one processor only."""
    before = os.sched_getaffinity(0)
    if number is not None:
        os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _started(process: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("serving "):
                words = line.split()
                return words[1], words[3]
        time.sleep(0.05)
    text = log.read_text(encoding="utf-8", errors="replace")
    raise RunError(f"the server did not start: {text[-1000:]}")
