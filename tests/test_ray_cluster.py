"""Simulations on a Ray cluster that is there already, in place of the engine's own."""

import json
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from common.programs.processes import end_carriers, environment, free_port, tool
from simulations.bench.floor import run_floor
from simulations.engine import superlink
from simulations.engine.superlink import RAY_VARIABLE, Link, on_cluster, simulation_environment

_TOKEN = "FEDTAIL_TEST_CLUSTER"


def test_what_the_workers_need_travels_with_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAY_VARIABLE, "ray.example:6379")
    env = simulation_environment(tmp_path, {"FEDTAIL_SHOPS": "/shared/shops"}, "token")
    assert env["RAY_ADDRESS"] == "ray.example:6379"
    assert "RAY_TMPDIR" not in env
    job = json.loads(env["RAY_JOB_CONFIG_JSON_ENV_VAR"])["runtime_env"]["env_vars"]
    assert job["FEDTAIL_SHOPS"] == "/shared/shops"
    assert job["OMP_NUM_THREADS"] == "1"
    assert job["FLWR_TELEMETRY_ENABLED"] == "0"
    # The machines' own paths, and the token by which what runs here is ended, stay here.
    assert not {"PATH", "HOME", "FEDTAIL_RUN_TOKEN"} & set(job)


def test_without_a_cluster_the_engine_starts_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(RAY_VARIABLE, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "left.over:1")
    env = simulation_environment(tmp_path, {}, "token")
    assert "RAY_ADDRESS" not in env
    assert "RAY_JOB_CONFIG_JSON_ENV_VAR" not in env


@pytest.mark.parametrize("cluster", ["", "ray.example:6379"])
def test_a_cluster_is_not_told_how_many_processors_it_has(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Control:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, _: Path, __: Mapping[str, object], resources: str) -> str:
            asked.append(resources)
            return "1"

    monkeypatch.setattr(superlink, "Control", Control)
    monkeypatch.setenv(RAY_VARIABLE, cluster)
    with subprocess.Popen(["true"]) as process:
        Link(process, 1, tmp_path / "log", {}).submit(tmp_path, {}, shops=3, workers=2)
    assert ("init-args-num-cpus=2" in asked[0]) is not bool(cluster)
    assert "num-supernodes=3" in asked[0]


@pytest.fixture
def ray_cluster() -> Iterator[str]:
    """Two Ray nodes of one processor each, on loopback."""
    token, port = uuid.uuid4().hex, free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as name:
        env = environment(Path(name) / "flwr", {_TOKEN: token, "RAY_USAGE_STATS_ENABLED": "0"})
        common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        head = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={name}"]
        try:
            for more in ([*head, "--include-dashboard=false"], [f"--address=127.0.0.1:{port}"]):
                done = subprocess.run(
                    [tool("ray"), "start", *more, *common],
                    env=env,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=120,
                )
                assert done.returncode == 0, done.stdout + done.stderr
            yield f"127.0.0.1:{port}"
        finally:
            end_carriers(_TOKEN, token)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_completes_on_a_cluster_and_leaves_it_running(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RAY_VARIABLE, ray_cluster)
    for _ in range(2):
        outcome = run_floor({"a": (10, 4)}, shops=3, rounds=2)
        assert [event["accepted"] for event in outcome.of("round")] == [3, 3]


def test_nothing_of_this_process_is_taken_along_unasked() -> None:
    given = on_cluster("a:1", {"A_SECRET": "x", "FLWR_HOME": "/f"}, {})
    assert "A_SECRET" not in given["RAY_JOB_CONFIG_JSON_ENV_VAR"]
