"""The federation in this process: the same apps, the same figures, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from client.privacy.ledger import Ledger
from common.errors import RunError
from common.protocol import ModelPlan, TrainingPlan, shop_key
from federation_support import same, write_federation
from server.checkpoints import read_checkpoint
from simulations.engine.flower import Outcome, run_federation
from simulations.engine.in_process import run_in_process

ROOT = Path(__file__).resolve().parent.parent
PLAN = TrainingPlan(
    rounds=2,
    noise_multiplier=4.0,
    popularity_noise_multiplier=2.0,
    model=ModelPlan(dimension=4),
)
SUBSPACE: dict[str, bool | int | float | str] = {
    "server-optimizer": "subspace",
    "server-momentum": 0.5,
    "seed": 5,
}


def run(folder: Path, plan: TrainingPlan, server: str, **more: object) -> Outcome:
    return run_in_process(
        plan,
        shops_folder=folder / "shops",
        shops=4,
        server_folder=folder / server,
        catalogue_folder=folder / "catalogue",
        **more,  # type: ignore[arg-type]
    )


def state(folder: Path, server: str, server_round: int = 2) -> dict[str, np.ndarray]:
    return read_checkpoint(folder / server / "checkpoints", server_round).state


def test_it_runs_tells_what_happened_and_charges_each_ledger(tmp_path: Path) -> None:
    write_federation(tmp_path)
    seen: list[str] = []
    outcome = run(tmp_path, PLAN, "server", on_event=lambda event: seen.append(event["event"]))
    assert seen == ["start", "join", "release", "round", "round", "end"]
    (join,) = outcome.of("join")
    assert join["shops"][shop_key("m3")] == "over-budget"
    assert [e["accepted"] for e in outcome.of("round")] == [3, 3]
    times = [e["after_seconds"] for e in outcome.events]
    assert times == sorted(times)
    assert 0 < times[-1] <= outcome.seconds
    for shop, count in enumerate((3, 3, 3, 0)):
        with Ledger.open(tmp_path / "shops" / str(shop) / "ledger.sqlite") as ledger:
            assert [e.event.server_round for e in ledger.verify()] == list(range(count))


def test_it_goes_on_where_it_stopped_and_tells_only_what_is_new(tmp_path: Path) -> None:
    write_federation(tmp_path)
    run(tmp_path, PLAN, "server")
    whole = state(tmp_path, "server")
    for path in (tmp_path / "server" / "checkpoints").glob("round-00002.*"):
        path.unlink()
    outcome = run(tmp_path, PLAN, "server")
    assert [e["server_round"] for e in outcome.of("round")] == [2]
    assert not outcome.of("release")
    assert same(state(tmp_path, "server"), whole)


def test_the_environment_of_the_apps_is_theirs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_federation(tmp_path)
    # A variable of an outer run would win over ours, and serve one shop's data to all nodes.
    monkeypatch.setenv("FEDTAIL_SHOP", str(tmp_path / "shops" / "1" / "shop.toml"))
    monkeypatch.setenv("FEDTAIL_SERVER", "/of/an/outer/run")
    before, threads = dict(os.environ), torch.get_num_threads()
    inside: list[int] = []
    run(tmp_path, PLAN, "server", on_event=lambda _: inside.append(torch.get_num_threads()))
    assert inside[0] == 1
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


def test_a_run_that_fails_raises_what_the_server_says_and_restores_all(tmp_path: Path) -> None:
    write_federation(tmp_path)
    before = dict(os.environ)
    with pytest.raises(RunError, match="4 shops connected"):
        run(tmp_path, PLAN, "server", run_config={"min-shops": 5, "wait-seconds": 0.05})
    assert dict(os.environ) == before


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("private", "optimizer"),
    [
        (True, "subspace"),
        pytest.param(True, "mean", marks=pytest.mark.slow),
        pytest.param(False, "subspace", marks=pytest.mark.slow),
        pytest.param(False, "mean", marks=pytest.mark.slow),
    ],
)
def test_the_figures_are_those_of_flowers_engine_to_the_last_bit(
    tmp_path: Path, private: bool, optimizer: str
) -> None:
    write_federation(tmp_path, allow_unprotected=not private)
    tuning = {"tuning_round": 1, "validation_from": 1_700_000_036}
    plan = PLAN.model_copy(update={"private": private, **tuning})
    config = SUBSPACE if optimizer == "subspace" else {}
    run_federation(
        plan,
        shops_folder=tmp_path / "shops",
        shops=4,
        server_folder=tmp_path / "flower",
        catalogue_folder=tmp_path / "catalogue",
        run_config=config,
        cpus=2,
    )
    # A process of its own: libraries read the number of their threads once, when they start.
    script = (
        "import sys; from pathlib import Path; from common.protocol import parse_plan\n"
        "from simulations.engine.in_process import run_in_process\n"
        "folder, plan = Path(sys.argv[1]), parse_plan(sys.argv[2])\n"
        "run_in_process(plan, shops_folder=folder / 'shops', shops=4, run_config=eval(sys.argv[3]),"
        " server_folder=folder / 'here', catalogue_folder=folder / 'catalogue')\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), plan.model_dump_json(), repr(config)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        check=True,
    )
    for server_round in range(plan.rounds + 1):
        one, other = (state(tmp_path, name, server_round) for name in ("flower", "here"))
        assert same(one, other), server_round
    moved = state(tmp_path, "here", 2)
    assert any(not np.array_equal(v, state(tmp_path, "here", 0)[k]) for k, v in moved.items())
