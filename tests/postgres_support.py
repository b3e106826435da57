"""The PostgreSQL server of the tests; the package is installed where that can be done."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import RunError
from simulations.loopback import postgres as local_postgres
from simulations.loopback.postgres import Postgres

__all__ = ["Postgres", "running"]


@contextmanager
def running() -> Iterator[Postgres]:
    """Yield a new, empty server; it ends, and its folder goes, with the block."""
    _install()
    with local_postgres.running() as server:
        yield server


def _install() -> None:
    try:
        local_postgres.find_postgres()
    except RunError:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=False, capture_output=True)
        subprocess.run(command, check=True, capture_output=True, env=environment)
