"""A SuperLink of our own, for one run on the simulation engine, and the end of all it started.

It listens on a free loopback port and is started from an empty folder with its own ``FLWR_HOME``:
the managed local SuperLink would keep its first caller's folder and environment, and Ray's
workers would find the code of that folder before the bundle's.

On a Ray cluster (``FEDTAIL_RAY=host:port``) the engine's clients run on the cluster's machines.
"""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from common.config import ConfigValue
from common.errors import RunError
from common.programs.processes import (
    end_carriers,
    environment,
    free_port,
    last_lines,
    listens,
    terminated_as_exit,
    tool,
)
from server.operating.control import Control

#: Environment: where an existing Ray cluster is, for simulations that outgrow this machine.
RAY_VARIABLE = "FEDTAIL_RAY"

_TOKEN = "FEDTAIL_RUN_TOKEN"  # noqa: S105 - a name, not a secret
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
        self.process, self.port, self.log = process, port, log
        self.control = Control(f"127.0.0.1:{port}", env, explain=self.tail)

    def wait_until_ready(self) -> None:
        """Return when the SuperLink listens; :class:`RunError` if it does not come up."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self.check_alive()
            if listens(self.port):
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
        self, bundle: Path, run_config: Mapping[str, ConfigValue], shops: int, workers: int
    ) -> str:
        """Submit a bundle for ``shops`` nodes, ``workers`` at a time; return the run's id."""
        resources = f"num-supernodes={shops} client-resources-num-cpus=1"
        if not os.environ.get(RAY_VARIABLE):
            # A cluster has the processors that it has, and Ray refuses to be told another number.
            resources += f" init-args-num-cpus={workers}"
        return self.control.submit(bundle, run_config, resources)

    def engine_runs(self) -> bool:
        """Whether the process of the simulation engine is there."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        return any(_is_engine(process) for process in family)

    def tail(self) -> str:
        """Return the last lines of the SuperLink's own log."""
        return last_lines(self.log, _TAIL_LINES)


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
    port, token = free_port(), uuid.uuid4().hex
    env = simulation_environment(root, extra, token)
    empty = root / "empty"
    empty.mkdir()
    log = root / "superlink.log"
    command = [tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--disable-runtime-dependency-installation"]
    with log.open("wb") as output, terminated_as_exit():
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
            # Nothing of theirs is worth saving: what lasts was written by the app itself.
            end_carriers(_TOKEN, token)
            process.wait(timeout=_END_SECONDS)


def _is_engine(process: psutil.Process) -> bool:
    try:
        return any(_ENGINE in part for part in process.cmdline()[:3])
    except psutil.Error:
        return False


def simulation_environment(root: Path, extra: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the environment of the SuperLink, the simulation engine and their offspring."""
    own = {"RAY_USAGE_STATS_ENABLED": "0", _TOKEN: token}
    cluster = os.environ.get(RAY_VARIABLE)
    if not cluster and len(ray := str(root / "ray")) <= _LONGEST_RAY_FOLDER:
        own["RAY_TMPDIR"] = ray
        Path(ray).mkdir()
    env = environment(root / "flwr", own | dict(extra))
    return env | on_cluster(cluster, env, extra) if cluster else env


def on_cluster(address: str, env: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which Flower's engine uses an existing Ray cluster.

    Workers there have the environment of their own machine: what they need of ours travels with
    the job.
    """
    shared = {
        key: value
        for key, value in env.items()
        if key in extra or key.startswith("FLWR_") or key.endswith("_NUM_THREADS")
    }
    job = {"runtime_env": {"env_vars": shared}}
    return {"RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
