"""A PostgreSQL server of the tests' own, from Debian's package, on a free port of loopback."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Postgres:
    port: int
    password: str
    pid: int

    def url(self, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres"


def _programs() -> Path:
    """Return the folder of initdb and postgres; install the package where it is missing."""
    for attempt in range(2):
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if found:
            return found[-1].parent
        if attempt == 0 and os.geteuid() == 0 and shutil.which("apt-get"):
            command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", "update", "-q"], check=False, capture_output=True)
            subprocess.run(command, check=True, capture_output=True, env=environment)
    raise RuntimeError("these tests need PostgreSQL's server: apt-get install postgresql")


@contextmanager
def running() -> Iterator[Postgres]:
    """Yield a new, empty server; it ends, and its folder goes, with the block."""
    programs = _programs()
    # PostgreSQL refuses to be root. Not pytest's folder: only its owner may enter that.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="fedtail-pg-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user, user)
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-U", "postgres", "--no-sync", "-E",
             "UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"],
            check=True, capture_output=True, user=user, cwd=folder,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder,
                 "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
                stdout=log, stderr=log, user=user, cwd=folder,
            )  # fmt: skip
        _wait(programs, port, server, folder / "log")
        yield Postgres(port, password, server.pid)
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            server.wait(WAIT_SECONDS)
        shutil.rmtree(folder)


def _wait(programs: Path, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until and server.poll() is None:
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
