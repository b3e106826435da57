"""A SuperLink of our own, for one run, and the end of everything that it started.

It listens on a free loopback port and is started from an empty folder with its own ``FLWR_HOME``:
the managed local SuperLink would keep its first caller's folder and environment, and Ray's
workers would find the code of that folder before the bundle's.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from common.errors import RunError

logger = logging.getLogger(__name__)

ConfigValue = bool | int | float | str

_TOKEN = "FEDTAIL_RUN_TOKEN"  # noqa: S105 - a name, not a secret
_NAME = "own"
_ENGINE = "flwr-simulation"
_TAIL_LINES = 40
_START_SECONDS = 60.0
_END_SECONDS = 10.0
# Ray puts about 62 characters after its folder; a socket's path may have 107.
_LONGEST_RAY_FOLDER = 44


class Link:
    """Our SuperLink and the commands that talk to it."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log: Path, env: Mapping[str, str]
    ) -> None:
        self.process, self.port, self.log, self._env = process, port, log, env
        # In a folder that holds the bundle, Flower takes the connection's name for a path.
        self._empty = log.parent / "empty"

    def wait_until_ready(self) -> None:
        """Return when the SuperLink listens; :class:`RunError` if it does not come up."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self.check_alive()
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RunError(f"Flower's SuperLink did not start in {_START_SECONDS:g} s\n{self.tail()}")

    def check_alive(self) -> None:
        """Raise :class:`RunError` if the SuperLink has ended."""
        if self.process.poll() is not None:
            raise RunError(
                f"Flower's SuperLink ended (status {self.process.returncode})\n{self.tail()}"
            )

    def submit(
        self,
        bundle: Path,
        root: Path,
        run_config: Mapping[str, ConfigValue],
        shops: int,
        workers: int,
    ) -> str:
        """Submit a bundle for ``shops`` nodes, ``workers`` at a time; return the run's id."""
        config = root / "run-config.toml"
        config.write_text(flat_toml(run_config), encoding="utf-8")
        resources = (
            f"num-supernodes={shops} client-resources-num-cpus=1 init-args-num-cpus={workers}"
        )
        arguments = ["run", str(bundle), _NAME, "--federation-config", resources]
        if run_config:
            arguments += ["--run-config", str(config)]
        answer = self._flwr(*arguments)
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
        """Return Flower's word for a run, such as ``finished:completed``."""
        answer = self._flwr("ls", _NAME, "--run-id", run_id)
        return str(answer["runs"][0]["status"])

    def engine_runs(self) -> bool:
        """Whether the process of the simulation engine is there."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        return any(_is_engine(process) for process in family)

    def run_log(self, run_id: str) -> str:
        """Return what server and clients of a run logged."""
        return self._call("log", run_id, _NAME, "--show").stdout

    def tail(self) -> str:
        """Return the last lines of the SuperLink's own log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_TAIL_LINES:])

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        done = self._call(*arguments, "--format", "json")
        start = done.stdout.find("{")
        try:
            answer = json.loads(done.stdout[start:]) if start >= 0 else None
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict) or not answer.get("success"):
            raise RunError(
                f"`flwr {arguments[0]}` failed (status {done.returncode})\n"
                f"{done.stdout[-2000:]}{done.stderr[-2000:]}\n{self.tail()}"
            )
        return answer

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_tool("flwr"), *arguments],
            env=dict(self._env),
            cwd=self._empty,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@contextmanager
def superlink(root: Path, extra: Mapping[str, str]) -> Iterator[Link]:
    """Start a SuperLink of our own; on leaving, end it and all that it started.

    Parameters
    ----------
    root
        An empty folder for everything that Flower and Ray write.
    extra
        Variables for the processes of the app.
    """
    port, token = _free_port(), uuid.uuid4().hex
    env = environment(root, extra, token)
    home = Path(env["FLWR_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    empty = root / "empty"
    empty.mkdir()
    log = root / "superlink.log"
    command = [_tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--disable-runtime-dependency-installation"]
    with log.open("wb") as output, _terminated_as_exit():
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=empty,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Link(process, port, log, env)
        finally:
            _end(process, token)


def _end(process: subprocess.Popen[bytes], token: str) -> None:
    """Kill the SuperLink and every process that carries our token, Ray's included.

    Nothing of theirs is worth saving: what lasts was written by the app itself.
    """
    end_carriers(_TOKEN, token)
    process.wait(timeout=_END_SECONDS)


def end_carriers(variable: str, value: str) -> None:
    """Kill every other process that has this variable, with this value, in its environment."""
    deadline = time.monotonic() + _END_SECONDS
    while family := [p for p in psutil.process_iter() if _carries(p, variable, value)]:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        if time.monotonic() > deadline:
            logger.warning("run=ended processes_left=%d", len(family))
            break
        time.sleep(0.05)


def _carries(process: psutil.Process, variable: str, value: str) -> bool:
    # Ours to end, unless it is this process, or a zombie, which has no environment any more.
    try:
        return process.pid != os.getpid() and process.environ().get(variable) == value
    except psutil.Error:
        return False


def _is_engine(process: psutil.Process) -> bool:
    try:
        return any(_ENGINE in part for part in process.cmdline()[:3])
    except psutil.Error:
        return False


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that what was started is ended on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment(root: Path, extra: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the environment of the SuperLink and its offspring."""
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("FLWR_", "FEDTAIL_", "RAY_")) and key != "PYTHONPATH"
    }
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}",
        "FLWR_HOME": str(root / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        # One client a processor: more threads than that only get in each other's way.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        _TOKEN: token,
    }
    if len(ray := str(root / "ray")) <= _LONGEST_RAY_FOLDER:
        env["RAY_TMPDIR"] = ray
        Path(ray).mkdir()
    return env | dict(extra)


def _tool(name: str) -> str:
    """Return the path of a command that came with this Python's packages."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RunError(f"the command {name!r} is not installed beside {sys.executable}")
    return found


def flat_toml(values: Mapping[str, ConfigValue]) -> str:
    """Return flat TOML; JSON's scalars are TOML's as well."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
