"""What can't be measured is refused at once, and not when all the rest has been."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import FedtailError, RunError
from simulations.bench import rounds, serving, shops, step
from simulations.bench.asking import Latencies
from simulations.bench.commands import bench_app
from simulations.bench.serving import ServingSizes, bench_serving


@pytest.mark.parametrize(
    "asked",
    [
        *(["round", "--rounds", "1"], ["dp-step", "--rounds", "0"], ["serving", "--only", "model"]),
        *(["round", "--repeats", "0"], ["shops", "--shops", "0"]),
    ],
)
def test_what_would_measure_nothing_is_refused(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (
        (rounds, "bench_round"),
        (step, "bench_step"),
        (serving, "bench_serving"),
        (shops, "bench_shops"),
    ):
        monkeypatch.setattr(module, name, _never)
    found = CliRunner().invoke(bench_app, asked)
    assert found.exit_code == 2, found.exception
    assert asked[1] in found.output


def test_a_model_that_cannot_be_read_is_told_of_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    with pytest.raises(FedtailError, match="holds no readable catalogue"):
        bench_serving(ServingSizes(products=1000, rounds=1), model=tmp_path, progress=told.append)
    assert told == [f"recall on {tmp_path.name}"]


def test_a_server_that_answers_nobody_has_no_latency() -> None:
    with pytest.raises(RunError, match="none of 7 requests"):
        serving._latency_cell(ServingSizes(), "int8", "steady", Latencies(failed=7), 0.1)


def _never(*_: object, **__: object) -> None:
    raise AssertionError("it was measured")
