"""The benchmark of the step: what it measures is comparable, and what it says is whole."""

import json
import os
import signal
from typing import Any

import pytest
import torch

from common.errors import RunError
from simulations.bench import step as bench_step
from simulations.bench import step_variants as bench_variants
from simulations.bench.step import peak_megabytes, targets_missed
from simulations.bench.step_variants import VARIANTS, table
from simulations.documents import to_json


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_step, "LOCAL_STEPS", 2)
        patch.setattr(bench_step, "_CURVE_BATCH", 4)
        patch.setattr(bench_step, "_MEMORY_REPEATS", 1)
        return bench_step.bench_step(
            items=(200,), batches=(3, 300), curve=(100, 400), rounds=1, progress=lambda _: None
        )


@pytest.mark.slow
def test_the_document_holds_what_the_contract_names(document: dict[str, Any]) -> None:
    found = json.loads(to_json(document))
    assert [(cell["items"], cell["batch"]) for cell in found["cells"]] == [(200, 3), (200, 300)]
    for cell in found["cells"]:
        for name in ("ratio_to_plain", "ratio_to_sparse", "ratio_to_ghost"):
            assert cell[name] > 0, name
        for name in ("peak_mb", "peak_mb_plain", "peak_mb_sparse", "peak_mb_ghost"):
            assert isinstance(cell[name], float), name
        # A step is never less than what is left when the flush is taken off.
        times = cell["milliseconds"]
        assert times["exact"] > times["flush"] / 2 >= 0.0
        assert cell["one_step_a_round"]["milliseconds"] > 0
    assert [point["items"] for point in found["curve"]] == [100, 400]
    for point in found["curve"]:
        assert 0 < point["rows_touched"] <= point["items"]
        amortised = point["step_milliseconds"] + point["flush_milliseconds"] / 2
        assert point["milliseconds"] == pytest.approx(amortised)
    assert found["setting"]["noise"] == "system"
    assert found["setting"]["threads"] == 1
    assert found["machine"]["cpus"] >= 1


def test_all_variants_train_on_the_same_loss_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and bound, ours makes the very steps of plain SGD, dense or sparse."""
    monkeypatch.setattr(bench_variants, "NOISE", 0.0)
    monkeypatch.setattr(bench_variants, "NORM", 1e6)
    batches = bench_step._batches(50, 300, 0)
    draws = [next(batches) for _ in range(3)]
    found = []
    for name in ("exact", "plain", "sparse"):
        variant: Any = VARIANTS[name](50, 300)
        for ids in draws:
            variant.step(ids)
        variant.flush()
        trained = (
            variant._step.state()["items"] if name == "exact" else variant._table.weight.detach()
        )
        found.append(trained)
    assert not torch.allclose(found[0], table(50))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-6)


def test_memory_above_the_model_is_what_a_variant_takes() -> None:
    """A dense gradient of 25 MB is seen, and a step by rows has none.

    Beside that each holds a table of its own, for the state that was sent stays as it is.
    """
    items = 200_000
    size = items * bench_variants.DIMENSION * 4 / 2**20
    plain, exact = (peak_megabytes(name, items, 4, 0) - size for name in ("plain", "exact"))
    assert 0.8 * size < plain < 1.5 * size
    assert exact < 0.4 * size


def test_a_process_that_the_system_ends_is_told_of() -> None:
    with pytest.raises(RunError, match="ended with -9"):
        bench_step._apart("spawn", _killed)


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_missed_targets_are_named() -> None:
    good = {
        "items": 1_000_000,
        "batch": 64,
        "ratio_to_plain": 0.3,
        "ratio_to_sparse": 3.0,
        "ratio_to_ghost": None,
        "peak_mb": 5.0,
        "peak_mb_plain": 100.0,
    }
    assert targets_missed([good]) == []
    for name, value in (
        ("ratio_to_plain", 1.1),
        ("ratio_to_sparse", 3.6),
        ("ratio_to_ghost", 4.0),
        ("peak_mb", 101.0),
    ):
        (line,) = targets_missed([{**good, name: value}])
        assert name in line
    assert targets_missed([{**good, "items": 10_000, "ratio_to_plain": 1.9}]) == []
