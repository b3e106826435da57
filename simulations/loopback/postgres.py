"""A PostgreSQL server of our own on loopback, from the system's packages, for as long as a block.

Its files are in a temporary folder: PostgreSQL refuses to run as root, and another user may not
enter the folders of ours.
"""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import RunError
from common.programs.processes import free_port

_WAIT_SECONDS = 60.0
#: Who owns the files and the server where we are root; Debian's package makes the account.
_ACCOUNT = "postgres"


@dataclass(frozen=True)
class Postgres:
    """A server that runs; ``pid`` is that of its first process."""

    port: int
    password: str
    pid: int

    def url(self, user: str = "postgres") -> str:
        """Return the address of its one database, without a password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres"


def find_postgres() -> Path:
    """Return the folder of initdb and postgres.

    Raises
    ------
    RunError
        If they are not installed.
    """
    # Debian keeps them out of PATH, one folder for each version.
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if found:
        return found[-1].parent
    if (beside := shutil.which("initdb")) is not None:
        return Path(beside).resolve().parent
    raise RunError("PostgreSQL's server is not installed: apt-get install postgresql")


@contextmanager
def running(extra: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """Yield a new, empty server; it ends, and its folder goes, with the block.

    Parameters
    ----------
    extra
        Variables for the server's environment.

    Raises
    ------
    RunError
        If PostgreSQL is not installed or does not start.
    """
    programs = find_postgres()
    user = _ACCOUNT if os.geteuid() == 0 else None
    # Not Popen's ``user``, with which Python forks where it could vfork: gRPC's threads, where this
    # process has had any, crash the fork before PostgreSQL is in it.
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    folder = Path(tempfile.mkdtemp(prefix="fedtail-pg-"))
    server: subprocess.Popen[bytes] | None = None
    try:
        password = secrets.token_hex(8)
        (folder / "password").write_text(password)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user, user)
        made = subprocess.run(
            [*as_user, programs / "initdb", "-D", folder / "data", "-U", "postgres", "--no-sync",
             "-E", "UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256",
             f"--pwfile={folder / 'password'}"],
            check=False, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        if made.returncode:
            raise RunError(f"PostgreSQL's initdb failed (status {made.returncode})\n{made.stderr}")
        port = free_port()
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [*as_user, programs / "postgres", "-D", folder / "data", "-p", str(port), "-k",
                 folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                env={**os.environ, **(extra or {})},
                # Ctrl-C is for us alone: whoever uses the server ends first.
                start_new_session=True,
            )  # fmt: skip
        _wait(programs, port, server, folder / "log")
        yield Postgres(port, password, server.pid)
    finally:
        if server is not None:
            if server.poll() is None:
                server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            server.wait(_WAIT_SECONDS)
        shutil.rmtree(folder)


def _wait(programs: Path, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until and server.poll() is None:
        ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(ready, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RunError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
