import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import uuid
from pathlib import Path

import psutil
import pytest

from client.privacy.ledger import Ledger
from common.bundle import FEDERATION, stage
from common.config import flat_toml
from common.errors import RunError
from common.programs.processes import end_carriers
from common.protocol import ModelPlan, TrainingPlan, shop_key
from federation_support import same, write_federation
from server.checkpoints import read_checkpoint
from simulations.bench.floor import FLOOR, run_floor
from simulations.engine.flower import Outcome, run_app, run_federation
from simulations.engine.superlink import simulation_environment

ROOT = Path(__file__).resolve().parent.parent


def test_a_run_config_survives_toml() -> None:
    plan = json.dumps({"text": 'a "quoted" \\ word', "ü": 1.5e-5}, ensure_ascii=False)
    values: dict[str, bool | int | float | str] = {"plan": plan, "seed": 3, "on": True, "r": 1e-5}
    # JSON writes the first as two surrogates and the second as it is: TOML takes neither.
    values |= {"beyond": "a shop 🛒", "deleted": "a\x7fb", "lines": "one\ntwo\ttabs"}
    assert tomllib.loads(flat_toml(values)) == values


def test_the_environment_is_clean_and_single_threaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDTAIL_SHOPS", "/of/an/outer/run")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    env = simulation_environment(tmp_path, {"FEDTAIL_SERVER": "/here"}, "token")
    assert "FEDTAIL_SHOPS" not in env
    assert "PYTHONPATH" not in env
    assert env["FEDTAIL_SERVER"] == "/here"
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"


def test_the_bundle_holds_the_three_rooms_and_nothing_else(tmp_path: Path) -> None:
    bundle = stage(FEDERATION, tmp_path)
    assert sorted(p.name for p in bundle.iterdir()) == [
        "client",
        "common",
        "pyproject.toml",
        "server",
    ]
    assert {p.suffix for p in bundle.rglob("*") if p.is_file()} == {".py", ".toml"}


def _family(word: str) -> list[psutil.Process]:
    """Return the processes whose command line or environment holds ``word``."""
    found = []
    for process in psutil.process_iter():
        try:
            text = " ".join(process.cmdline()) + " ".join(process.environ().values())
        except psutil.Error:
            continue
        if word in text and process.pid != os.getpid():
            found.append(process)
    return found


@pytest.mark.e2e
def test_clients_that_do_nothing_run_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is started inherits it: other runs on this machine are none of our business.
    mark = f"leftover-{uuid.uuid4().hex}"
    monkeypatch.setenv("SUITE_MARK", mark)
    outcome = run_floor({"a": (100, 8)}, shops=3, rounds=2, cpus=2)
    assert [e["accepted"] for e in outcome.of("round")] == [3, 3]
    assert 0 < outcome.events[0]["after_seconds"] < outcome.seconds
    assert not _family(mark)


@pytest.mark.e2e
# Two runs of half a minute on a machine of its own, and of several minutes on a busy one.
@pytest.mark.timeout(1200)
def test_the_real_federation_runs_resumes_and_repeats_itself(tmp_path: Path) -> None:
    write_federation(tmp_path)
    plan = TrainingPlan(
        rounds=2,
        noise_multiplier=4.0,
        popularity_noise_multiplier=2.0,
        model=ModelPlan(dimension=4),
    )

    def run(server: Path, cpus: int) -> Outcome:
        return run_federation(
            plan,
            shops_folder=tmp_path / "shops",
            shops=4,
            server_folder=server,
            catalogue_folder=tmp_path / "catalogue",
            cpus=cpus,
        )

    outcome = run(tmp_path / "server", cpus=2)
    (join,) = outcome.of("join")
    assert join["declined"] == {"over-budget": 1}
    assert join["shops"][shop_key("m3")] == "over-budget"
    assert [e["accepted"] for e in outcome.of("round")] == [3, 3]
    for shop, count in enumerate((3, 3, 3, 0)):
        with Ledger.open(tmp_path / "shops" / str(shop) / "ledger.sqlite") as ledger:
            assert [e.event.server_round for e in ledger.verify()] == list(range(count))

    checkpoints = tmp_path / "server" / "checkpoints"
    whole = read_checkpoint(checkpoints, 2).state
    for path in checkpoints.glob("round-00002.*"):
        path.unlink()
    assert [e["server_round"] for e in run(tmp_path / "server", cpus=1).of("round")] == [2]
    assert same(read_checkpoint(checkpoints, 2).state, whole)


@pytest.mark.e2e
def test_a_run_that_fails_raises_with_the_end_of_its_log(tmp_path: Path) -> None:
    events = tmp_path / "rounds.jsonl"
    with pytest.raises(RunError, match="JSONDecodeError"):
        run_app(
            FLOOR,
            shops=2,
            run_config={"shapes": "no json"},
            environment={"FEDTAIL_FLOOR_EVENTS": str(events)},
            events_file=events,
            cpus=1,
        )


@pytest.mark.e2e
def test_an_interrupted_run_ends_all_that_it_started(tmp_path: Path) -> None:
    # Ray's sockets have room for a short path only; under a longer one Ray keeps a folder of its
    # own, which is not ours to remove.
    short = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    script = (
        "from simulations.bench.floor import run_floor\n"
        "run_floor({'a': (10, 2)}, shops=2, rounds=10**6, cpus=1)\n"
    )
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    runner = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"MARK": mark, "TMPDIR": str(short)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not any("flwr-simulation" in " ".join(_safe(p)) for p in _family(mark)):
            assert time.monotonic() < deadline, "the engine never came up"
            time.sleep(0.2)
        time.sleep(2)  # into Ray's own start
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(timeout=30) != 0
        assert not _family(mark)
        assert not list(short.iterdir())
    finally:
        shutil.rmtree(short)
        for process in _family(mark):
            process.kill()


def test_only_what_carries_the_value_is_ended(tmp_path: Path) -> None:
    values = (str(tmp_path), f"{tmp_path}-other")
    left, others = (
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            env=os.environ | {"FEDTAIL_SERVER": value},
        )
        for value in values
    )
    try:
        end_carriers("FEDTAIL_SERVER", values[0])
        assert left.wait(timeout=10) == -signal.SIGKILL
        assert others.poll() is None
    finally:
        for process in (left, others):
            process.kill()
            process.wait()


def _safe(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
