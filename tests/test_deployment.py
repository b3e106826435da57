"""One whole federation of real processes: from plan.toml to a recommendation at a shop."""

import json
from pathlib import Path

import pytest

from deployment_support import deployed
from server.registry.versions import Registry

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_a_federation_trains_publishes_and_brings_the_model_home(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        said = federation.trained()
        run = federation.events()[-1]["run"]
        for shop in federation.shops.values():
            assert federation.paid(shop) == [(run, 0), (run, 1), (run, 2)]
            assert federation.brought_home(shop) == run
        federation.check_accounts()
        assert [e["accepted"] for e in federation.events("round")] == [2, 2], said
        assert federation.versions() == [1]
        record, artifact = Registry(federation.operator / "registry").read()
        assert record.version == 1
        assert artifact.manifest.version == run
        assert artifact.manifest.privacy is not None
        north = federation.shops["north"]
        answer = json.loads(federation.client(north, "recommend", "--user", "u1", "--json"))
        assert answer["model"]["version"] == run
        # Whom we asked for buys within one category.
        assert answer["recommendations"][0]["category"] == "c1"
        # u1 has bought four of the six products of c1: the other two are what is new to them.
        bought = set((north.folder / "data" / "interactions.csv").read_text().split())
        assert not {f"u1,{r['item_id']}" for r in answer["recommendations"]} & bought
        assert federation.close(north) == 143
        assert not federation.processes(north)
    assert not federation.programs.running()
