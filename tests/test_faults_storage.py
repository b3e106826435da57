"""A shop whose disk is full, or whose database is gone, takes no part, and the others go on."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

import postgres_support
from deployment_support import sales
from faults_support import charged, check_ended_well, end_of, fragile

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

DATABASE = """
[database]
url = "{url}"
password_file = "secrets/database-password"

[[database.interactions]]
table = "sales"
constants = {{ behavior = "purchase", merchant_id = "south" }}
"""


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put a file system of 256 kB in place of a folder."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system of its own")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no room on a file system."""
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


def test_a_full_disk_at_a_shop(tmp_path: Path) -> None:
    with fragile(tmp_path, start=False) as federation:
        south = federation.shops["south"]
        with small_disk(south.folder / "ledger"):
            federation.start()
            federation.train()
            federation.wait_for("release", 0)
            fill(south.folder / "ledger")
            status, said = end_of(federation)
            check_ended_well(federation, status, said)
            # What cannot be written down is not trained: nothing leaves that is not paid for.
            (last,) = federation.events("round")
            assert last["declined"] == {"ledger-error": 1}, said
            assert "south: ledger-error" in said
            assert charged(federation, south, last["run"]) == [0]
            # The shop's client bears it.
            assert federation.state(south)["connected"]
            federation.programs.end_all()


def test_postgresql_goes_down_while_a_run_goes_on(tmp_path: Path) -> None:
    with (
        postgres_support.running() as server,
        fragile(tmp_path, ("north",), start=False) as federation,
    ):
        more = DATABASE.format(url=server.url())
        south = federation.plant("south", 1, {"data": None}, more)
        password = south.folder / "secrets" / "database-password"
        password.write_text(server.password)
        password.chmod(0o600)
        with psycopg.connect(server.url(), password=server.password) as connection:
            connection.execute("CREATE TABLE sales (user_id text, item_id text, timestamp bigint)")
            with connection.cursor().copy("COPY sales FROM STDIN") as copy:
                columns = sales("south", 1)[["user_id", "item_id", "timestamp"]]
                for row in columns.itertuples(index=False):
                    copy.write_row(tuple(row))
        federation.start()
        federation.train()
        assert federation.wait_for("release", 0)["accepted"] == 2
        os.kill(server.pid, signal.SIGQUIT)  # At once, without asking anybody.
        status, said = end_of(federation)
        check_ended_well(federation, status, said)
        (last,) = federation.events("round")
        assert last["declined"] == {"data-error": 1}, said
        assert "south: data-error" in said
        assert server.password not in said
        # Data are read before anything is charged.
        assert charged(federation, south, last["run"]) == [0]
