"""A run that goes on from an earlier model: its rows, and what its statement must say."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.accounting import epsilon, plan_spends
from common.artifact import Manifest, load_model, save_model
from common.errors import ArtifactError, ConfigError
from common.features import Catalogue
from common.model import initial_state, state_spec
from common.protocol import ITEMS, POPULARITY, ModelPlan, Noise, TrainingPlan
from common.statement import render_statement, statement
from federation_support import make_job
from server.catalogue.versions import Catalogues
from server.checkpoints import read_checkpoint
from server.finishing import finished_model
from server.settings import read_home
from server.starting import from_model, from_seed
from test_home_exchange import PLAN, Deployed

LATER = PLAN.model_copy(update={"rounds": 2, "noise_multiplier": 5.0, "train_from": 1_700_000_030})


def products(items: int = 8, start: int = 0) -> Catalogue:
    ids = [f"i{k:02}" for k in range(start, start + items)]
    return Catalogue.of(pd.DataFrame({"item_id": ids, "kind": [f"k{int(i[1:]) % 3}" for i in ids]}))


def saved(
    folder: Path,
    catalogue: Catalogue,
    plan: TrainingPlan = PLAN,
    privacy: Mapping[str, Any] | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    state = initial_state(plan.model, catalogue.size)
    rates = np.arange(1, catalogue.size + 1, dtype=np.float32)
    state[POPULARITY] = rates / rates.sum()
    found = statement(plan) if privacy is None else dict(privacy)
    manifest = Manifest(
        version="old",
        server_round=plan.rounds,
        data_columns=("item_id",),
        config={"plan": plan.model_dump(mode="json"), **(config or {})},
        code_digest="c" * 64,
        privacy=found if plan.private else None,
        catalogue_fingerprint=catalogue.fingerprint,
    )
    save_model(folder, state, catalogue.item_ids, manifest)
    return folder


def none(fingerprint: str) -> Catalogue:
    raise AssertionError(f"nobody needs catalogue {fingerprint}")


def test_on_the_same_catalogue_all_goes_on_but_the_popularity(tmp_path: Path) -> None:
    catalogue = products()
    folder = saved(tmp_path / "old", catalogue)
    start = from_model(folder, LATER, catalogue, none)
    old = load_model(folder).arrays
    fresh = np.full(8, 0.125, np.float32)
    state = start.settle(start.state, fresh)
    assert np.array_equal(state[ITEMS], old[ITEMS])
    assert np.array_equal(state[POPULARITY], fresh)
    assert [run.version for run in start.earlier] == ["old"]
    assert start.noise == "system"


def test_rows_go_with_their_products_to_a_newer_catalogue(tmp_path: Path) -> None:
    old, new = products(8), products(9, start=2)  # two go, three come
    folder = saved(tmp_path / "old", old)
    start = from_model(folder, LATER, new, none)
    before = load_model(folder).arrays[ITEMS]
    state = start.settle(start.state, np.full(9, 1 / 9, np.float32))
    assert np.array_equal(state[ITEMS][:6], before[2:])
    assert not state[ITEMS][6:].any()


def test_rows_of_the_popular_follow_the_new_popularity(tmp_path: Path) -> None:
    catalogue = products()
    model = ModelPlan(dimension=4, learned_items=3)
    plan = PLAN.model_copy(update={"model": model})
    folder = saved(tmp_path / "old", catalogue, plan)  # learned rows: products 5, 6 and 7
    start = from_model(folder, plan, catalogue, none)
    rates = np.zeros(8, np.float32)
    rates[[1, 5, 7]] = 1 / 3
    state = start.settle(start.state, rates)
    before = load_model(folder).arrays[ITEMS]
    assert np.array_equal(state[ITEMS], [np.zeros(4), before[0], before[2]])


def test_groups_need_the_catalogue_of_the_model(tmp_path: Path) -> None:
    old, new = products(8), products(9, start=2)
    plan = PLAN.model_copy(update={"model": ModelPlan(dimension=2, groups="kind", learned_items=3)})
    folder = saved(tmp_path / "old", old, plan)
    asked: list[str] = []

    def published(fingerprint: str) -> Catalogue:
        asked.append(fingerprint)
        return old

    start = from_model(folder, plan, new, published)
    assert asked == [old.fingerprint]
    assert np.array_equal(start.state[ITEMS], load_model(folder).arrays[ITEMS])
    with pytest.raises(ArtifactError, match="very catalogue"):
        from_model(folder, plan, new, lambda _: new)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelPlan(dimension=5)}, "dimension = 4"),
        ({"model": ModelPlan(dimension=4, learned_items=3)}, "learned_items = 0"),
        ({"unit": "basket"}, "protects a customer, the plan a basket"),
    ],
)
def test_a_model_that_does_not_fit_the_plan_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    catalogue = products()
    folder = saved(tmp_path / "old", catalogue)
    with pytest.raises(ArtifactError, match=message):
        from_model(folder, LATER.model_copy(update=changes), catalogue, none)


def test_a_manifest_that_hides_its_runs_is_refused(tmp_path: Path) -> None:
    catalogue = products()
    cases: list[dict[str, object]] = [{"plan": {}}, {"plan": None}, {"earlier": [{"plan": 7}]}]
    for number, config in enumerate(cases):
        folder = saved(tmp_path / str(number), catalogue, config=config)
        with pytest.raises(ArtifactError, match="start without it"):
            from_model(folder, LATER, catalogue, none)


def test_noise_that_an_earlier_run_does_not_vouch_for_is_the_weakest(tmp_path: Path) -> None:
    catalogue = products()
    seeded = saved(tmp_path / "seeded", catalogue, privacy=statement(PLAN, noise="seeded"))
    silent = saved(tmp_path / "silent", catalogue, privacy={})
    assert from_model(seeded, LATER, catalogue, none).noise == "seeded"
    assert from_model(silent, LATER, catalogue, none).noise == "seeded"
    assert from_seed(LATER, catalogue).noise == "system"


@pytest.mark.parametrize(
    ("plan", "noise", "own", "stated"),
    [
        (PLAN, "seeded", "system", "seeded"),
        (PLAN, "system", "seeded", "seeded"),
        (PLAN, "system", "system", "system"),
        (PLAN.model_copy(update={"private": False}), "system", "system", None),
    ],
)
def test_a_finished_model_states_the_weakest_noise_of_all_its_runs(
    tmp_path: Path, plan: TrainingPlan, noise: Noise, own: Noise, stated: Noise | None
) -> None:
    """Whoever knows the seed of an earlier run's noise can take it off the later model, too."""
    catalogue = products()
    old = saved(tmp_path / "old", catalogue, plan, privacy=statement(plan, noise=noise))
    start = from_model(old, LATER, catalogue, none)
    job = replace(
        make_job(run_name="second"),
        plan=LATER,
        run_name="second",
        catalogue_fingerprint=catalogue.fingerprint,
        shapes=state_spec(LATER.model, catalogue.size),
    )
    state = start.settle(start.state, np.full(8, 0.125, np.float32))
    for _ in range(2):  # The second time it is there already.
        found = finished_model(tmp_path / "new", job, catalogue, state, own, start)
        assert found == load_model(tmp_path / "new").manifest
    if stated is None:
        assert found.privacy is None
    else:
        assert found.privacy == statement(LATER, noise=stated, earlier=[plan])
    assert (found.version, found.server_round) == ("second", LATER.rounds)
    assert [run["version"] for run in found.config["earlier"]] == ["old"]


def test_the_statement_counts_what_all_runs_spent() -> None:
    found = statement(LATER, earlier=[PLAN])
    spends = [*plan_spends(PLAN), *plan_spends(LATER)]
    assert found["epsilon"] == epsilon(spends, LATER.target_delta).value
    assert found["epsilon"] > max(statement(p)["epsilon"] for p in (PLAN, LATER))
    assert (found["rounds"], found["runs"]) == (3, 2)
    assert [part["steps"] for part in found["mechanisms"]] == [1, 1, 1, 2]
    assert "3 rounds of 2 runs" in " ".join(render_statement(found).split())
    assert "runs" not in statement(PLAN)
    assert statement(LATER, earlier=[TrainingPlan(private=False)])["private"] is False


def test_a_whole_run_goes_on_from_the_model_of_another(tmp_path: Path) -> None:
    deployed = Deployed(tmp_path)
    deployed.run("first")
    newer = Catalogue.of(
        pd.concat(
            [deployed.catalogue.products, pd.DataFrame({"item_id": ["new"], "category": ["c1"]})]
        )
    )
    with (versions := Catalogues(deployed.server / "catalogue")).publishing():
        versions.add(versions.next(newer, {}), newer)
    for number in range(4):
        path = deployed.shop(number) / "shop.toml"
        place = str(versions.current())
        path.write_text(path.read_text().replace("../../catalogue", place))
    outcome = deployed.run("second", LATER, initial_model="runs/first/model")
    assert [event["accepted"] for event in outcome.of("round")] == [3, 3]
    begun = read_checkpoint(deployed.server / "runs" / "second" / "checkpoints", 0).state
    first = load_model(deployed.server / "runs" / "first" / "model")
    assert np.array_equal(begun[ITEMS][:30], first.arrays[ITEMS])
    assert not np.array_equal(begun[POPULARITY][:30], first.arrays[POPULARITY])
    manifest = load_model(deployed.server / "runs" / "second" / "model").manifest
    assert [run["version"] for run in manifest.config["earlier"]] == ["first"]
    assert manifest.privacy == statement(LATER, noise="seeded", earlier=[PLAN])
    deployed.run("third", LATER, initial_model="runs/second/model")
    manifest = load_model(deployed.server / "runs" / "third" / "model").manifest
    assert [run["version"] for run in manifest.config["earlier"]] == ["first", "second"]
    assert manifest.privacy == statement(LATER, noise="seeded", earlier=[PLAN, LATER])


def test_a_run_starts_from_nothing_outside_the_servers_folder(tmp_path: Path) -> None:
    deployed = Deployed(tmp_path)
    for path in ("../elsewhere", "/etc", "runs/../../elsewhere"):
        with pytest.raises(ConfigError, match="initial-model"):
            deployed.run("first", initial_model=path)
    text = 'folder = "/"\nruns = "runs"\ncatalogues = "catalogue"\n'
    (deployed.server / "server.toml").write_text(text)
    with pytest.raises(ConfigError, match="folder is not a setting"):
        read_home({"FEDTAIL_SERVER": str(deployed.server)})
