"""What is deployed is what was simulated: the same data, plan and seeds give the same model."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from common.artifact import load_model
from common.config import ConfigValue
from deployment_support import deployed
from server.catalogue.versions import Catalogues
from server.checkpoints import read_checkpoint
from server.training.records import Runs
from simulations.engine.in_process import run_in_process
from simulations.loopback.deployment import change

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]

#: As a test's noise may be, and no shop's: the same whoever draws it.
SEEDED: Mapping[str, ConfigValue] = {
    "noise": "seeded",
    "insecure_seeded_noise": True,
    "noise_seed": 11,
}


def test_the_deployed_model_is_the_simulated_one(tmp_path: Path) -> None:
    with deployed(tmp_path / "deployed", ("north", "south", "west"), start=False) as federation:
        for shop in federation.shops.values():
            change(shop.settings, SEEDED)
        federation.start()
        said = federation.trained("--force")
        assert [e["accepted"] for e in federation.events("round")] == [3, 3], said
        (name,) = Runs(federation.operator / "runs").names()
        record = Runs(federation.operator / "runs").read(name)
        catalogue = Catalogues(federation.operator / "catalogue").current()

        # A simulation knows shops by number: other folders and ledgers, the same data and seeds.
        simulated = tmp_path / "simulated"
        for number, shop in enumerate(federation.shops.values()):
            home = simulated / "shops" / str(number)
            shutil.copytree(shop.folder / "data", home / "data")
            shutil.copy(shop.settings, home)
            (home / "ledger").mkdir()
            change(home / "shop.toml", {"catalogue": str(catalogue)})
        config = {k: v for k, v in record.config.items() if k not in ("plan", "run-name")}
        run_in_process(
            record.plan,
            shops_folder=simulated / "shops",
            shops=len(federation.shops),
            server_folder=simulated / "server",
            catalogue_folder=catalogue,
            run_config=config,
        )
        checkpoints = federation.operator / "runs" / name / "checkpoints"
        for server_round in range(record.plan.rounds + 1):
            here = read_checkpoint(simulated / "server" / "checkpoints", server_round)
            there = read_checkpoint(checkpoints, server_round)
            assert here.plan == there.plan
            assert here.state.keys() == there.state.keys()
            for key, array in here.state.items():
                np.testing.assert_allclose(there.state[key], array, rtol=1e-5, atol=1e-6)
        final = load_model(federation.operator / "runs" / name / "model").arrays
        for key, array in final.items():
            np.testing.assert_allclose(array, here.state[key], rtol=1e-5, atol=1e-6)
        # It has learned something, so that equal is not just untouched.
        start = read_checkpoint(simulated / "server" / "checkpoints", 0).state
        assert any(not np.allclose(final[key], start[key]) for key in final)
        # Every shop paid the same in both.
        assert all(len(federation.paid(shop)) == 3 for shop in federation.shops.values())
