"""The operator's plan.toml."""

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from client.joining.starting import start_shop
from client.privacy.events import SHARED_HISTOGRAM, SHARED_STEP
from client.privacy.plan import planned_events
from common.accounting import epsilon, fits, plan_spends
from common.artifact import ModelArtifact
from common.blocks import block_of
from common.errors import ConfigError
from common.features import Catalogue
from common.model import initial_state, state_spec
from common.protocol import POPULARITY, parse_plan
from server.operating.default_plan import DEFAULT_PLAN
from server.settings import read_run_config
from server.training.plan import (
    PlanFile,
    prepare,
    read_plan_file,
    run_defaults,
)
from server.training.request import _day

NOW = 1_700_000_000
SUMS = "[privacy]\ntrust = 'federation'\nhonest_shops = 4\ncolluding_shops = 1\n"


def catalogue(size: int, columns: int = 2) -> Catalogue:
    table = {
        "item_id": [f"p{n}" for n in range(size)],
        "type": [f"t{n % 5}" for n in range(size)],
        "brand": [f"b{n % 3}" for n in range(size)],
    }
    return Catalogue.of(pd.DataFrame(dict(list(table.items())[: 1 + columns])))


def plan_file(tmp_path: Path, text: str) -> PlanFile:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return read_plan_file(path)


def test_the_default_is_the_simulated_federation_s(tmp_path: Path) -> None:
    found = plan_file(tmp_path, DEFAULT_PLAN)
    server = found.server
    assert found.model_copy(update={"server": {}}) == PlanFile()
    demo = tomllib.loads(
        (Path(__file__).parents[1] / "simulations/experiments/demo.toml").read_text()
    )
    federated = demo["federated-dp"]
    model = federated.pop("model")
    assert server["server_optimizer"] == federated.pop("server")["server-optimizer"]
    federated.pop("tuning_share")  # The model of the tuning round does not travel.
    popularity_share = federated.pop("popularity_share")
    training = found.training.model_dump(mode="json")
    assert {key: training[key] for key in federated} == federated
    assert found.privacy.popularity_share == popularity_share
    assert (model.pop("groups"), found.training.model.groups) == ("type*brand", "auto")
    assert {key: getattr(found.training.model, key) for key in model} == model


def test_a_new_shop_has_room_for_several_runs_of_the_default(tmp_path: Path) -> None:
    shop = tomllib.loads(start_shop(tmp_path / "corner")[0].read_text())
    plan = prepare(PlanFile(), catalogue(20), now=NOW).plan
    spends = plan_spends(plan)
    assert fits(spends * 3, shop["cap_delta"], shop["cap_epsilon"])
    assert plan.unit == shop["unit"]


@pytest.mark.parametrize(("size", "columns"), [(1, 0), (3, 2), (40, 1), (5000, 2)])
def test_the_default_fits_a_catalogue_of_any_size(size: int, columns: int) -> None:
    products = catalogue(size, columns)
    run = prepare(PlanFile(), products, now=NOW)
    assert run.plan.model.groups == ("type*brand" if columns == 2 else "type" if columns else "")
    cost = epsilon(plan_spends(run.plan), run.plan.target_delta).value
    assert 0.998 * 4 <= cost <= 4
    state = initial_state(run.plan.model, products.size)
    assert {n: a.shape for n, a in state.items()} == state_spec(run.plan.model, products.size)
    popularity = np.full(products.size, 1 / products.size, np.float32)
    assert block_of(run.plan.model, popularity, products).project is not None
    assert state[POPULARITY].shape == popularity.shape


@pytest.mark.parametrize(("delta", "told"), [(0.5, "2 customers or more"), (1e-3, ""), (1e-5, "")])
def test_a_delta_that_promises_little_to_a_small_shop_is_told(
    tmp_path: Path, delta: float, told: str
) -> None:
    """A run of δ = .5 was priced as any other; no operator can count the shops' customers."""
    file = plan_file(tmp_path, f"[privacy]\ntarget_delta = {delta}")
    notes = " ".join(prepare(file, catalogue(20), now=NOW).notes)
    assert told in notes
    assert ("target_delta" in notes) == bool(told)


def test_a_run_s_config_is_what_the_server_s_app_reads(tmp_path: Path) -> None:
    text = '[privacy]\ntarget_epsilon = 2.0\n[server]\nmin-shops = 3\nserver_optimizer = "adam"\n'
    run = prepare(plan_file(tmp_path, text), catalogue(20), now=NOW, rounds=7)
    assert set(run.config) <= set(run_defaults())
    plan, settings = read_run_config(run.config)
    assert (plan, settings) == (run.plan, run.settings)
    assert (plan.rounds, plan.reference_time % 86400) == (7, 0)
    assert 0 <= NOW - plan.reference_time < 86400
    assert (settings.min_shops, settings.server_optimizer, settings.quorum) == (3, "adam", 0.5)
    assert parse_plan(str(run.config["plan"])) == plan


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nround = 3", "'training.round'.*did you mean 'rounds'"),
        ("[training.model]\ndimensions = 3", "did you mean 'dimension'"),
        ("[training]\nmodel = 3", "training.model"),
        ("[server]\nmin_shop = 3", "'server.min_shop'.*did you mean 'min_shops'"),
        ("[server]\nquorum = 3.0", "server: quorum"),
        ("[server]\nplan = '{}'", "unknown key 'server.plan'"),
        ("[privicy]\nunit = 3", "did you mean 'privacy'"),
        ("[privacy]\ntarget_epsilon = -1", "privacy.target_epsilon"),
        ("[privacy]\nunit = 'person'", "privacy.unit"),
        ("[privacy]\ntrust = 'nobody'", "privacy.trust"),
        ("[privacy]\nhonest_shop = 3", "did you mean 'honest_shops'"),
        ("[privacy]\ntrust = 'federation'", "needs honest_shops"),
        ("[privacy]\nhonest_shops = 3", "take them out, or set trust"),
        ("[privacy]\ntrust = 'federation'\nhonest_shops = -1", "privacy.honest_shops"),
        ("[privacy]\nrare_rows = 'some'", "privacy.rare_rows"),
        ("[privacy", "not valid TOML"),
        ("[server]\nwait_seconds = inf", "server.wait_seconds: give a finite number.*got inf"),
        ("[server]\nseed = 9223372036854775808", "server.seed: give a finite number of 64 bits"),
        ("[training]\nmax_grad_norm = inf", "training.max_grad_norm: give a finite number"),
        ("[training]\nfirst_norms = [0.1, inf]", "training.first_norms: give a finite number"),
        ("[training.model]\ncontent_scale = inf", "training.model.content_scale: give a finite"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"plan.toml.*{words}"):
        plan_file(tmp_path, text)
    with pytest.raises(ConfigError, match="copy the one that `python -m server init` writes"):
        read_plan_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privacy]\nunit = 'interaction'", "rounds = 0"),
        ("[privacy]\npopularity_share = 1.0", "popularity_share"),
        (f"{SUMS}[training]\nlocal_steps = 2", "one sum a round"),
        (f"{SUMS}[training]\nsample_rate = 0.5", "one sum a round"),
        (f"{SUMS}[server]\nmax_update_norm = 1.0", "sees only their sum: set it to 0"),
        (f"{SUMS}[server]\ndefence = 'median'", "sees only their sum: set defence"),
        ("[privacy]\ntarget_epsilon = 1e-9", "target_epsilon|no noise costs"),
        ("[privacy]\ntarget_epsilon = 1e4", "Lower target_epsilon, or let updates be larger"),
        ("[training]\ntuning_share = 0.5", "validation_days"),
        ("[training.model]\ngroups = 'aisle*brand'", "no column 'aisle'.*it has type, brand"),
        ("[training.model]\nfeature_rows = 8\ngroups = ''", "hashes into 8192 rows: set it to"),
        ("[training.model]\nfeature_rows = 8192\ngroups = ''", "subspace"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(tmp_path: Path, text: str, words: str) -> None:
    text = text if "[server]" in text else f"{text}\n[server]\nserver_optimizer = 'subspace'\n"
    found = plan_file(tmp_path, text)
    with pytest.raises(ConfigError, match=words):
        prepare(found, catalogue(20), now=NOW)


def test_a_plan_of_secure_sums_shares_its_noise(tmp_path: Path) -> None:
    plan = prepare(plan_file(tmp_path, SUMS), catalogue(20), now=NOW).plan
    assert (plan.trust, plan.honest_shops, plan.colluding_shops) == ("federation", 4, 1)
    assert (plan.honest_stockers, plan.rare_rows) == (3, "all")
    assert 0.99 * 4 <= epsilon(plan_spends(plan), plan.target_delta).value <= 4
    events = planned_events(plan, "r")
    assert [e.mechanism for e in events] == [SHARED_HISTOGRAM, *[SHARED_STEP] * plan.rounds]
    assert {(e.parameters["honest_shops"], e.parameters["colluding_shops"]) for e in events} == {
        (4, 1)
    }


@pytest.mark.parametrize("items", [140_000_000, 2**63 - 1])
def test_a_model_that_no_message_holds_is_refused_before_it_is_made(
    tmp_path: Path, items: int
) -> None:
    text = f"[training.model]\nlearned_items = {items}"
    with pytest.raises(ConfigError, match=r"GiB goes into no message.*fewer learned_items"):
        prepare(plan_file(tmp_path, text), catalogue(20), now=NOW)


def test_days_that_the_first_rounds_leave_out(tmp_path: Path) -> None:
    text = "[training]\ntuning_share = 0.5\nvalidation_days = 10"
    plan = prepare(plan_file(tmp_path, text), catalogue(20), now=NOW).plan
    assert plan.tuning_round == 2
    assert plan.reference_time - plan.validation_from == 10 * 86400


@pytest.mark.parametrize(("share", "days"), [(0.0, 0), (0.5, 0), (1.0, 10)])
def test_a_run_goes_on_from_the_last_record_that_the_earlier_one_saw(
    tmp_path: Path, share: float, days: int
) -> None:
    text = f"[training]\ntuning_share = {share}\nvalidation_days = 10"
    plan = prepare(plan_file(tmp_path, text), catalogue(20), now=NOW).plan
    manifest = SimpleNamespace(version="m", config={"plan": plan.model_dump(mode="json")})
    model = cast(ModelArtifact, SimpleNamespace(manifest=manifest))
    # With no round that saw the days left out, nobody would ever learn from them.
    assert plan.reference_time - _day(model) == days * 86400


def test_a_defence_goes_to_the_server_or_is_refused_before_anything_runs(tmp_path: Path) -> None:
    asked = "[server]\nmin_shops = 3\ndefence = 'tail-aware'\nbad_share = 0.3\n"
    run = prepare(plan_file(tmp_path, asked), catalogue(20), now=NOW)
    _, settings = read_run_config(run.config)
    defence = settings.defender(run.plan)
    assert (defence.name, defence.bad(10)) == ("tail-aware", 3)
    for text, word in (
        (asked.replace("= 3", "= 2"), "min_shops to 3"),
        (asked + SUMS, "only their sum"),
        (asked.replace("tail-aware", "strong"), "defence"),
    ):
        with pytest.raises(ConfigError, match=word):
            prepare(plan_file(tmp_path, text), catalogue(20), now=NOW)
