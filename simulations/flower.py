"""Run one Flower app on Flower's simulation engine, and end everything that was started.

Each run has its own SuperLink on a free loopback port, started from an empty folder with its own
``FLWR_HOME``: the managed local SuperLink would keep its first caller's folder and environment,
and Ray's workers would find the code of that folder before the bundle's. The bundle is built
from a clean copy, so neither the name of the checkout nor what lies in it matters.
"""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from common.errors import RunError
from common.protocol import TrainingPlan

logger = logging.getLogger(__name__)

Event = dict[str, Any]
ConfigValue = bool | int | float | str

#: Below the server's folder.
CHECKPOINTS = "checkpoints"
EVENTS_FILE = "rounds.jsonl"

_TOKEN = "FEDTAIL_RUN_TOKEN"  # noqa: S105 - a name, not a secret
_NAME = "own"
_ENGINE = "flwr-simulation"
_TAIL_LINES = 40
_START_SECONDS = 60.0
_END_SECONDS = 10.0
_STATUS_EVERY = 30.0
# Ray puts about 62 characters after its folder; a socket's path may have 107.
_LONGEST_RAY_FOLDER = 44


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app: its folder, which holds pyproject.toml, and the packages it is made of."""

    folder: Path
    packages: tuple[str, ...]


#: The federation that shops deploy.
FEDERATION = FlowerApp(Path(__file__).resolve().parent.parent, ("client", "common", "server"))
#: Clients that do nothing, for comparison.
FLOOR = FlowerApp(Path(__file__).resolve().parent / "floor_app", ("floor",))


@dataclass(frozen=True)
class Outcome:
    """What a completed run left behind.

    Attributes
    ----------
    events
        The app's own, each with ``after_seconds``: when it was seen, counted from the call.
    seconds
        From the call until everything was ended.
    """

    events: list[Event]
    seconds: float

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind (``join``, ``release``, ``round``)."""
        return [event for event in self.events if event["event"] == kind]


def run_app(
    app: FlowerApp,
    *,
    shops: int,
    run_config: Mapping[str, ConfigValue],
    environment: Mapping[str, str],
    events_file: Path,
    on_event: Callable[[Event], object] = lambda _: None,
    cpus: int | None = None,
    timeout_seconds: float = 24 * 3600.0,
) -> Outcome:
    """Run ``app`` with ``shops`` simulated nodes until it has completed.

    Parameters
    ----------
    app
        What to run.
    shops
        Number of nodes; node ``i`` finds ``partition-id = i`` in its node config.
    run_config
        Overrides of the app's ``[tool.flwr.app.config]``.
    environment
        Variables for the app's own processes: where shops and server find their settings.
    events_file
        JSON lines that the app appends to; each new line is passed to ``on_event``.
    on_event
        Called in this thread, with each event.
    cpus
        Clients that run at a time; default: the processors this process may use.

    Raises
    ------
    RunError
        If the run did not complete; the message ends with the tail of its log.
    """
    started = time.monotonic()
    seen = events_file.stat().st_size if events_file.exists() else 0
    workers = cpus or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="ft-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        token = uuid.uuid4().hex
        variables = _environment(root, environment, token)
        with _superlink(root, variables, token) as link:
            bundle = _stage(app, root)
            link.wait_until_ready()
            run_id = link.submit(bundle, root, run_config, shops, workers)
            logger.info("run=started shops=%d workers=%d", shops, workers)
            events = _follow(link, run_id, events_file, seen, on_event, started, timeout_seconds)
    return Outcome(events, time.monotonic() - started)


def run_federation(
    plan: TrainingPlan,
    *,
    shops_folder: Path,
    shops: int,
    server_folder: Path,
    catalogue_fingerprint: str,
    catalogue_size: int,
    run_config: Mapping[str, ConfigValue] | None = None,
    on_event: Callable[[Event], object] = lambda _: None,
    cpus: int | None = None,
) -> Outcome:
    """Run the federation's own server and clients on simulated nodes.

    Parameters
    ----------
    plan
        The public plan.
    shops_folder
        ``<i>/shop.toml`` for ``i`` from 0 to ``shops - 1``.
    shops
        Number of shops.
    server_folder
        Where ``server.toml`` is written and ``checkpoints`` and their ``rounds.jsonl`` appear; a
        run that was interrupted goes on from what is there.
    catalogue_fingerprint, catalogue_size
        The published catalogue.
    run_config
        Changes to the defaults in pyproject.toml, ``plan`` and ``min-shops`` aside.
    on_event
        Called with each public event of the server: ``join``, ``release``, ``round``.
    cpus
        Clients that run at a time.

    Raises
    ------
    RunError
        If the run did not complete.
    """
    checkpoints = server_folder / CHECKPOINTS
    checkpoints.mkdir(parents=True, exist_ok=True)
    home: dict[str, ConfigValue] = {
        "checkpoints": CHECKPOINTS,
        "catalogue_fingerprint": catalogue_fingerprint,
        "catalogue_size": catalogue_size,
    }
    (server_folder / "server.toml").write_text(_toml(home), encoding="utf-8")
    return run_app(
        FEDERATION,
        shops=shops,
        run_config={"min-shops": shops, **(run_config or {}), "plan": plan.model_dump_json()},
        environment={
            "FEDTAIL_SHOPS": str(shops_folder.resolve()),
            "FEDTAIL_SERVER": str(server_folder.resolve()),
        },
        events_file=checkpoints / EVENTS_FILE,
        on_event=on_event,
        cpus=cpus,
    )


def run_floor(
    shapes: Mapping[str, tuple[int, ...]], *, shops: int, rounds: int, cpus: int | None = None
) -> Outcome:
    """Run clients that do nothing but send back arrays of these shapes, for comparison."""
    with tempfile.TemporaryDirectory(prefix="ft-floor-") as name:
        events = Path(name) / EVENTS_FILE
        return run_app(
            FLOOR,
            shops=shops,
            run_config={"rounds": rounds, "min-shops": shops, "shapes": json.dumps(dict(shapes))},
            environment={"FEDTAIL_FLOOR_EVENTS": str(events)},
            events_file=events,
            cpus=cpus,
        )


class _Link:
    """Our SuperLink and the commands that talk to it."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log: Path, env: Mapping[str, str]
    ) -> None:
        self.process, self.port, self.log, self._env = process, port, log, env
        # In a folder that holds the bundle, Flower takes the connection's name for a path.
        self._empty = log.parent / "empty"

    def wait_until_ready(self) -> None:
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
        config = root / "run-config.toml"
        config.write_text(_toml(run_config), encoding="utf-8")
        resources = (
            f"num-supernodes={shops} client-resources-num-cpus=1 init-args-num-cpus={workers}"
        )
        arguments = ["run", str(bundle), _NAME, "--federation-config", resources]
        if run_config:
            arguments += ["--run-config", str(config)]
        answer = self._flwr(*arguments)
        return str(answer["run-id"])

    def status(self, run_id: str) -> str:
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


def _follow(
    link: _Link,
    run_id: str,
    events_file: Path,
    seen: int,
    on_event: Callable[[Event], object],
    started: float,
    timeout_seconds: float,
) -> list[Event]:
    """Pass on events until the run has ended; return them all."""
    events: list[Event] = []
    ended = engine_seen = False
    next_look = time.monotonic()
    next_status = next_look + _STATUS_EVERY
    while True:
        new, seen = _new_events(events_file, seen)
        for event in new:
            event["after_seconds"] = time.monotonic() - started
            ended = ended or event["event"] == "end"
            events.append(event)
            on_event(event)
        now = time.monotonic()
        if now > started + timeout_seconds:
            raise RunError(f"the run took longer than it was given\n{link.run_log(run_id)}")
        if now >= next_look:
            link.check_alive()
            next_look = now + (0.1 if ended else 1.0)
            running = link.engine_runs()
            engine_seen = engine_seen or running
            if (engine_seen and not running) or now >= next_status:
                status = link.status(run_id)
                next_status = time.monotonic() + _STATUS_EVERY
                if status == "finished:completed":
                    return events
                if status.startswith("finished"):
                    raise RunError(_failure(status, link.run_log(run_id)))
        time.sleep(0.05)


def _failure(status: str, log: str) -> str:
    """Return what to say of a run that failed: our own error first, if there is one."""
    own = re.findall(r"^common\.errors\.\w+: (.+)$", log, flags=re.MULTILINE)
    tail = "\n".join(log.splitlines()[-_TAIL_LINES:])
    reason = own[-1] if own else f"it ended as {status!r}"
    return f"the federation's run failed: {reason}\nThe end of its log:\n{tail}"


def _new_events(path: Path, offset: int) -> tuple[list[Event], int]:
    """Return the whole lines after ``offset`` and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


@contextmanager
def _superlink(root: Path, env: Mapping[str, str], token: str) -> Iterator[_Link]:
    """Start a SuperLink of our own; on leaving, end it and all that it started."""
    port = _free_port()
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
            yield _Link(process, port, log, env)
        finally:
            _end(process, token)


def _end(process: subprocess.Popen[bytes], token: str) -> None:
    """Kill the SuperLink and every process that carries our token, Ray's included.

    Nothing of theirs is worth saving: what lasts was written by the app itself.
    """
    deadline = time.monotonic() + _END_SECONDS
    while family := [p for p in psutil.process_iter() if _carries(p, token)]:
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        if time.monotonic() > deadline:
            logger.warning("run=ended processes_left=%d", len(family))
            break
        time.sleep(0.05)
    process.wait(timeout=_END_SECONDS)


def _carries(process: psutil.Process, token: str) -> bool:
    # Ours to end, unless it is this process, or a zombie, which has no environment any more.
    try:
        return process.pid != os.getpid() and process.environ().get(_TOKEN) == token
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


def _environment(root: Path, extra: Mapping[str, str], token: str) -> dict[str, str]:
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


def _stage(app: FlowerApp, root: Path) -> Path:
    """Copy the app's code, and only that, into a folder whose name Flower accepts."""
    target = root / "fedtail"
    target.mkdir()
    shutil.copy(app.folder / "pyproject.toml", target)
    for package in app.packages:
        shutil.copytree(
            app.folder / package,
            target / package,
            ignore=shutil.ignore_patterns("__pycache__", "test_*"),
        )
    return target


def _tool(name: str) -> str:
    """Return the path of a command that came with this Python's packages."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RunError(f"the command {name!r} is not installed beside {sys.executable}")
    return found


def _toml(values: Mapping[str, ConfigValue]) -> str:
    """Return flat TOML; JSON's scalars are TOML's as well."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
