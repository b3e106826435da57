"""A federation on loopback: its parts before, beside and after the processes that it starts."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from rich.console import Console

from common.errors import ConfigError, RunError
from common.programs.processes import carriers, free_port
from experiment_support import Silent
from operator_support import need_nginx
from simulations.loopback import federation as local_federation
from simulations.loopback import shops as local_shops
from simulations.loopback.deployment import LocalDeployment, change
from simulations.loopback.federation import left_behind, run_local_federation
from simulations.loopback.programs import TOKEN, Programs
from simulations.loopback.tables import local_table


def test_a_key_is_changed_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text('# why\ncap = 8.0\n# cap = 9\ndata = "data"\n\n[more]\nkey = "x"\n')
    change(path, {"cap": 2.5, "data": None, "key": 'a "b"'})
    assert path.read_text() == '# why\ncap = 2.5\n# cap = 9\n\n\n[more]\nkey = "a \\"b\\""\n'


@pytest.mark.parametrize("text", ["cup = 1\n", "cap = 1\n[b]\ncap = 2\n"])
def test_a_key_that_is_not_there_once_is_not_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(text)
    with pytest.raises(RunError, match="'cap'"):
        change(path, {"cap": 2})
    assert path.read_text() == text


def test_a_command_line_is_run_and_shown_as_a_person_would_type_it(tmp_path: Path) -> None:
    shown: list[str] = []
    with Programs(tmp_path, shown.append) as programs:
        settings = tmp_path.resolve() / "none.toml"
        with pytest.raises(RunError, match=r"failed \(status 2\)\n(.|\n)*none.toml") as failed:
            programs.run("client", "statement", str(settings))
    assert shown == [f"python -m client statement {tmp_path / 'none.toml'}"]
    assert "error:" in str(failed.value)
    assert not (tmp_path / "tmp").exists()


def test_all_that_a_program_started_ends_with_it(tmp_path: Path) -> None:
    with Programs(tmp_path) as programs:
        program = programs.start("sleeper", "asyncio")  # reads stdin, which is at its end
        assert program.process.wait(60) == 0
        with pytest.raises(RunError, match=r"python -m asyncio` ended \(status 0\)"):
            programs.check()
        # One that no program of ours knows of, as an app that outlives its executor.
        stray = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], env=programs.environment({})
        )
        deadline = time.monotonic() + 30
        while not programs.running() and time.monotonic() < deadline:
            time.sleep(0.05)  # A process has our environment only when it has begun.
        assert [p.pid for p in programs.running()] == [stray.pid]
    assert stray.wait(60) == -signal.SIGKILL
    assert left_behind(programs, [free_port()]) == []


@pytest.mark.slow
@pytest.mark.e2e
def test_nothing_of_an_operator_is_left_whose_services_were_killed_outright(tmp_path: Path) -> None:
    need_nginx()
    with Programs(tmp_path) as programs:
        here = LocalDeployment(tmp_path, programs)
        here.init("loopback")
        here.up()
        ports = (here.gateway_port, here.superlink_port)
        assert left_behind(programs, [*ports])[-2:] == [f"port {port}" for port in ports]
        psutil.Process(here.services()["pid"]).kill()
    assert left_behind(programs, [*ports]) == []


def test_what_is_left_is_named(tmp_path: Path) -> None:
    script = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    port = free_port()
    with Programs(tmp_path) as programs:
        left = subprocess.Popen(
            [sys.executable, "-c", script.format(port=port)], env=programs.environment({})
        )
        try:
            deadline = time.monotonic() + 30
            while len(found := left_behind(programs, [port])) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert found == [f"process {left.pid}", f"port {port}"]
        finally:
            left.kill()
            left.wait()


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise RunError("PostgreSQL's server is not installed: apt-get install postgresql")

    monkeypatch.setattr(local_federation, "find_nginx", lambda: "nginx")
    monkeypatch.setattr(local_federation, "find_postgres", missing)
    with pytest.raises(RunError, match="apt-get install postgresql"):
        run_local_federation(tmp_path / "out", Silent())
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_federation, "find_nginx", lambda: "nginx")
    monkeypatch.setattr(local_federation, "find_postgres", lambda: Path("/"))
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="is in use"):
        run_local_federation(tmp_path, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_customers_and_a_basket_are_chosen_from_what_was_sold() -> None:
    products = pd.DataFrame(
        {"item_id": ["a", "b", "c", "d"], "type": [*local_shops.BASKET_TYPES, "OTHER"]}
    )
    few = pd.DataFrame({"user_id": ["u1"] * 3, "item_id": ["a", "b", "c"]})
    many = pd.DataFrame({"user_id": ["u2"] * 70, "item_id": [f"i{k}" for k in range(70)]})
    markets = local_shops.Markets(products, {"m": pd.concat([few, many])})
    assert markets.customer_of("m") == "u2"
    assert markets.basket() == ["a", "b", "c"]


def test_the_table_says_what_was_recommended_and_what_it_cost() -> None:
    shown = [{"rank": 1, "item_id": "i1", "title": "Salsa [hot]", "score": 1.25}]
    ledger = {"units": {"customer": {"epsilon": 7.99}}, "entries": 3, "cap_epsilon": 8.0}
    document: dict[str, Any] = {
        "at_a_shop": {
            "shop": "m", "user_id": "u", "history": {"products": 84}, "recommendations": shown,
        },
        "from_the_registry": {
            "version": 1, "basket": [{"title": "Shells"}], "recommendations": shown,
            "privacy": {"epsilon": 7.99, "delta": 1e-5, "unit": "customer"},
        },
        "shops": {"m": {"data": "CSV", "customers": 5, "ledger": ledger}},
        "listening": {"nginx:1": 1}, "seconds": 61.0, "folder": "runs/federation",
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200)
    console.print(local_table(document))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("Salsa [hot]", "1.250", "who bought Shells", "7.99", "Done in 61 s"):
        assert words in text


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_federation_takes_everything_down(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations", "federation", "--out", str(out)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    token = ""
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "client run" in line:
                break
        below = psutil.Process(process.pid).children(recursive=True)
        token = next(p.environ()[TOKEN] for p in below if TOKEN in p.environ())
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(240) == (1 if number == signal.SIGINT else 128 + number)
        assert (number == signal.SIGTERM) or "interrupted: all is taken down" in said
        assert carriers(TOKEN, token) == []
        assert [p for p in below if _runs(p)] == []
        assert not (out / "tmp").exists()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _runs(process: psutil.Process) -> bool:
    """Say whether a process still does anything: one that nobody has asked after does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
