"""Starting other programs in a clean environment, and the end of everything that was started.

Who starts programs gives them a variable of its own, a token: all that they start inherits it, so
they can be found and ended even when whoever started them was killed outright.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from common.errors import RunError

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_END_SECONDS = 10.0
#: A child must not take over what its starter was told about an outer run.
_FOREIGN = ("FLWR_", "FEDTAIL_", "RAY_")
# How much nicer work that can wait is than what people or peers wait for.
_NICER = 10
# Linux, on desktops and many servers: niceness counts between the processes of one session alone,
# and this is the session's own.
_SESSION_NICENESS = Path("/proc/self/autogroup")
#: What every Flower program of ours is told: send nothing, and one thread for each process, since
#: more threads than processors only get in each other's way.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def environment(flower_home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without what could mislead Flower's programs.

    Parameters
    ----------
    flower_home
        Flower's own folder; the user's is never touched.
    extra
        Variables that win over all others.
    """
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(_FOREIGN) and key != "PYTHONPATH"
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    return env | _QUIET | {"PATH": path, "FLWR_HOME": str(flower_home)} | dict(extra)


def tool(name: str) -> str:
    """Return the path of a command that came with this Python's packages.

    Raises
    ------
    RunError
        If it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RunError(f"the command {name!r} is not installed beside {sys.executable}")
    return found


def finished(
    command: Sequence[str],
    *,
    seconds: float,
    what: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program, with nothing to read, and return how it ended and what it said.

    Environment and folder are ours where none are given. Bytes of its words that are no text, as a
    file's name may have, are replaced.

    Raises
    ------
    RunError
        If it does not end in time; ``what`` it was doing stands in the message.
    """
    try:
        return subprocess.run(
            list(command),
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{what} did not end within {seconds:g} s: is this machine overloaded?"
        ) from error


def give_way() -> None:
    """Let all others of this machine have the processor before this process, from now on."""
    niceness = os.nice(_NICER)
    # In a session of its own: else who starts the next one would give way from then on, too.
    with suppress(OSError):  # It leads one already.
        os.setsid()
    # Not every kernel has sessions of this kind, and none lets us ask twice within a moment.
    with suppress(OSError):
        _SESSION_NICENESS.write_text(str(niceness), encoding="ascii")


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def listens(port: int, host: str = _LOOPBACK) -> bool:
    """Whether something accepts connections at this port."""
    with suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def last_lines(log: Path, count: int = 20) -> str:
    """Return the last lines of a program's log; nothing where there is none to read."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def end_carriers(variable: str, value: str) -> None:
    """Kill every other process that has this variable, with this value, in its environment."""
    deadline = time.monotonic() + _END_SECONDS
    while family := carriers(variable, value):
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        if time.monotonic() > deadline:
            logger.warning("run=ended processes_left=%d", len(family))
            break
        time.sleep(0.05)


def carriers(variable: str, value: str) -> list[psutil.Process]:
    """Return every other process with this variable, of this value, in its environment."""
    return [p for p in psutil.process_iter() if _carries(p, variable, value)]


def _carries(process: psutil.Process, variable: str, value: str) -> bool:
    # Ours to end, unless it is this process, or a zombie, which has no environment any more.
    try:
        return process.pid != os.getpid() and process.environ().get(variable) == value
    except psutil.Error:
        return False


@contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM, and the end of the terminal, into SystemExit.

    So what was started is ended on the way out. A hang-up that nohup has us ignore stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
