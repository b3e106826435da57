"""A federation's services as real processes, for tests: made, run, and taken down again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from client.joining.keys import make_keys, make_secret
from common.errors import RunError
from common.programs.processes import carriers, environment, free_port, tool
from debian_support import install
from server.operating import gateway
from server.operating.folder import Federation, make_federation
from server.operating.services import neutral_folder, read_up
from server.variables import UP_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
WAIT_SECONDS = 90.0


def need_nginx() -> str:
    """Return nginx's path; install the package where it is missing."""
    try:
        return gateway.find_nginx()
    except RunError:
        if not install("nginx-light"):
            raise
    return gateway.find_nginx()


def new_federation(folder: Path) -> Federation:
    """Make a federation at free ports of loopback."""
    made = make_federation(folder, "test", f"localhost:{free_port()}", superlink_port=free_port())
    settings = folder / "federation.toml"
    settings.write_text(settings.read_text().replace("0.0.0.0:", "127.0.0.1:"))
    return made


def new_key(folder: Path, name: str) -> Path:
    """Make a node's key pair; return the private one's path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.key"
    make_keys(path)
    return path


def wait_for(there: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, f"not seen in {seconds:g} s: {what}"
        time.sleep(0.1)


@dataclass
class Up:
    """A running ``python -m server up``."""

    federation: Federation
    process: subprocess.Popen[bytes]
    log: Path

    def pid(self, program: str) -> int:
        """Return a program's process id, 0 while it waits for its restart."""
        return int(read_up(self.federation)["programs"][program]["pid"] or 0)

    def family(self) -> list[psutil.Process]:
        found = carriers(UP_VARIABLE, str(self.federation.folder))
        return found + gateway.family(neutral_folder(self.federation))


def start_up(federation: Federation) -> subprocess.Popen[bytes]:
    with (federation.folder / "up.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "server", "up", "--federation", str(federation.folder)],
            env=environment(federation.flower_home, {}),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@contextmanager
def running(federation: Federation) -> Iterator[Up]:
    """Yield the running services; they end with the block, however it ends."""
    need_nginx()
    log = federation.folder / "up.log"
    up = Up(federation, start_up(federation), log)
    try:
        wait_for(lambda: bool(read_up(federation)) or up.process.poll() is not None, "up")
        assert up.process.poll() is None, log.read_text()
        yield up
    finally:
        if up.process.poll() is None:
            up.process.send_signal(signal.SIGTERM)
            try:
                up.process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                up.process.kill()
                up.process.wait()
        for process in up.family():
            process.kill()


@contextmanager
def supernode(
    federation: Federation, key: Path, *, authority: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yield Flower's own node, which knows nothing of us, and its log."""
    place = key.with_suffix("")
    place.mkdir()
    secret, log = place / "secret", place / "node.log"
    make_secret(secret)
    command = [
        tool("flower-supernode"),
        "--superlink", federation.settings.address,
        "--root-certificates", str(authority or federation.authority.certificate),
        "--host", "127.0.0.1", "--port", str(free_port()),
        "--isolation", "process", "--superexec-auth-secret-file", str(secret),
        "--auth-supernode-private-key", str(key),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment(place / "flwr", {}),
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def server(federation: Federation, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the operator's commands."""
    command: Sequence[str] = (sys.executable, "-m", "server", *arguments)
    return subprocess.run(
        [*command, "--federation", str(federation.folder)],
        env=environment(federation.flower_home, {}),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
