"""The PostgreSQL server of the tests; the package is installed where that can be done."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import RunError
from debian_support import install
from simulations.loopback import postgres as local_postgres
from simulations.loopback.postgres import Postgres

__all__ = ["Postgres", "running"]


@contextmanager
def running() -> Iterator[Postgres]:
    """Yield a new, empty server; it ends, and its folder goes, with the block."""
    try:
        local_postgres.find_postgres()
    except RunError:
        if not install("postgresql"):
            raise
    with local_postgres.running() as server:
        yield server
