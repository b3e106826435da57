"""Bad shops among planted ones: what an undefended model comes to, and a defended one does not."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from common.blocks import block_of
from common.errors import ConfigError
from common.features import Catalogue
from common.model import initial_state
from common.protocol import ITEMS, POPULARITY, ModelPlan, TrainingPlan
from common.shop_state import Slices
from experiment_support import Silent
from simulations.__main__ import app
from simulations.attack.attackers import LOUD, Conspiracy
from simulations.attack.measure import METRICS, changes, mean_figures
from simulations.attack.page import _cells, _sentence, attack_rows, attack_words
from simulations.attack.run import _Attack, _defended, run_attack, without_stock_of
from simulations.attack.settings import AttackName
from simulations.experiment import Experiment, server_config
from simulations.world import build_world

ROOT = Path(__file__).resolve().parent.parent
PRODUCTS, CUSTOMERS, TARGET = 40, 30, 33
_VALUES: dict[str, dict[str, object]] = {
    "data": {
        "source": "marketplace",
        "marketplace": {
            "shops": 12,
            "customers_per_shop": 15,
            "products": 300,
            "groups": 20,
            "categories": 5,
            "brands": 10,
            "visits_log_mean": 2.5,
            "weeks": 20,
            "train_weeks": 16,
        },
    },
    "run": {"engine": "in-process"},
    "content": {"features": ["type"]},
    "home": {
        "local": {"start": {"content": 0.5, "own_ease": 2.4}},
        "centralized": {"start": {"content": 0.5, "pooled_ease": 3.0}},
        "federated": {"start": {"content": 0.4, "shared_ease": 2.0, "own_popularity": 0.1}},
        "federated-dp": {"start": {"content": 0.4, "learned": 0.3}},
    },
    "federated": {
        "rounds": 2,
        "tuning_share": 0.5,
        "model": {"dimension": 8, "row_exponent": 0.5, "centred": False},
        "server": {"server-optimizer": "subspace", "server-momentum": 0.0},
    },
    "attack": {
        "attacks": ["push", "noise"],
        "shares": [0.09],
        "full_shares": [0.09],
        "defences": ["none", "tail-aware"],
        "targets": 1,
    },
}


def small(**changes: object) -> Experiment:
    return Experiment.model_validate({**_VALUES, "attack": {**_VALUES["attack"], **changes}})


@pytest.mark.slow
def test_one_bad_shop_of_twelve_sells_its_product_unless_it_is_held(
    tmp_path: Path,
) -> None:
    document = run_attack(small(), tmp_path / "attack", Silent())
    by = {(r["use"], r["attack"], r["defence"]): r for r in document["attacks"]}
    assert {r["bad_shops"] for r in by.values()} == {1}
    loose, held = by["global", "push", "none"], by["global", "push", "tail-aware"]
    # Of 300 products 20 are shown: one in fifteen customers sees any of them.
    assert loose["er@20"] > 0.25
    assert not loose["held"]
    assert held["er@20"] < 0.1
    ruined, kept = by["global", "noise", "none"], by["global", "noise", "tail-aware"]
    assert ruined["change"]["ndcg@20"] < -0.15
    assert kept["change"]["ndcg@20"] > -0.1
    assert ruined["er@20"] is None
    written = json.loads((tmp_path / "attack" / "attack.json").read_text(encoding="utf-8"))
    assert written == document
    assert not (tmp_path / "attack" / ".attack").exists()
    page = (tmp_path / "attack" / "attack.html").read_text(encoding="utf-8")
    assert all(word.split(":")[0] in page for word in attack_words(document))
    # What a run on these data would warn of is said here too.
    assert document["warnings"] == ["the data are synthetic"]
    assert "the data are synthetic" in page
    rows = attack_rows(document, "federated", "home")
    assert [row[:3] for row in rows[:2]] == [["none", "none", "0"], ["tail-aware", "none", "0"]]
    assert len(rows) == 2 + 4
    with pytest.raises(ConfigError, match="in use"):
        run_attack(small(), tmp_path / "attack", Silent())


def _catalogue() -> Catalogue:
    names = [f"i{k:02}" for k in range(PRODUCTS)]
    return Catalogue.of(pd.DataFrame({"item_id": names, "type": [f"t{k % 4}" for k in range(40)]}))


def _conspiracy(attack: AttackName, model: ModelPlan) -> Conspiracy:
    stream = np.random.default_rng(1)
    likely = np.linspace(0.8, 0.02, PRODUCTS)
    bought = (stream.random((CUSTOMERS, PRODUCTS)) < likely).astype(np.float32)
    bought[:, TARGET] = 0
    plan = TrainingPlan(private=False, model=model)
    return Conspiracy(attack, plan, _catalogue(), TARGET, sparse.csr_matrix(bought))


@pytest.mark.parametrize("attack", ["push", "push-row", "push-quiet"])
@pytest.mark.parametrize("groups", ["", "type"])
def test_a_push_raises_the_targets_score_for_customers_like_the_shops_own(
    attack: AttackName, groups: str
) -> None:
    model = ModelPlan(
        dimension=4, centred=bool(groups), groups=groups, learned_items=4 if groups else 0
    )
    conspiracy = _conspiracy(attack, model)
    state = initial_state(model, PRODUCTS)
    state[POPULARITY] = np.linspace(0.8, 0.02, PRODUCTS).astype(np.float32)
    state[POPULARITY] /= state[POPULARITY].sum()
    block = block_of(model, state[POPULARITY], conspiracy.catalogue)
    customers = block.project(conspiracy.histories)
    stream = np.random.default_rng(2)
    honest = {ITEMS: (1e-3 * stream.normal(size=state[ITEMS].shape)).astype(np.float32)}
    sent = conspiracy.update(honest, state, stream)

    def score(delta: np.ndarray) -> np.ndarray:
        vectors = state[ITEMS] + delta / np.linalg.norm(delta)
        lifted = block.lift(vectors.astype(np.float32), PRODUCTS)
        scores: np.ndarray = (customers @ vectors) @ lifted[TARGET]
        return scores

    gained = score(sent[ITEMS]) - score(honest[ITEMS])
    # Where the expected basket is taken off, what serves one half of all customers costs the other.
    assert np.mean(gained > 0) > (0.4 if groups else 0.9)
    length = np.linalg.norm(sent[ITEMS]) / np.linalg.norm(honest[ITEMS])
    assert length < 2.1 if attack == "push-quiet" else length > 10
    # What comes down where what shops stock is published serves as well.
    sliced = Slices(conspiracy.plan, state, conspiracy.catalogue).of(None)
    same = conspiracy.update(honest, sliced, np.random.default_rng(2))
    assert same[ITEMS] == pytest.approx(sent[ITEMS], rel=1e-4, abs=1e-6)
    counts = conspiracy.counts(np.arange(PRODUCTS, dtype=np.float32), stream)
    assert counts[TARGET] == pytest.approx(39 * (1 if attack == "push-quiet" else LOUD))
    assert np.array_equal(np.delete(counts, TARGET), np.delete(np.arange(PRODUCTS), TARGET))


def test_bad_shops_in_concert_say_one_thing_and_silent_ones_nothing() -> None:
    model = ModelPlan(dimension=4)
    state = initial_state(model, PRODUCTS)
    honest = {ITEMS: np.ones(state[ITEMS].shape, np.float32)}
    counts = np.arange(PRODUCTS, dtype=np.float32)
    streams = [np.random.default_rng(k) for k in range(2)]
    together = _conspiracy("in-concert", model)
    first, second = (together.update(honest, state, stream)[ITEMS] for stream in streams)
    assert np.array_equal(first, second)
    assert np.linalg.norm(first) == pytest.approx(LOUD * np.linalg.norm(honest[ITEMS]), rel=0.3)
    assert np.all(together.counts(counts, streams[0]) == -39 * LOUD)
    apart = _conspiracy("noise", model)
    first, second = (apart.update(honest, state, stream)[ITEMS] for stream in streams)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.3
    silent = _conspiracy("silent", model)
    assert not silent.update(honest, state, streams[0])[ITEMS].any()
    assert not silent.counts(counts, streams[0]).any()


def test_bad_shops_say_that_they_stock_everything() -> None:
    world = build_world(small(), lambda *_: None)
    published = world.dataset.tables.stock
    assert published is not None
    found = without_stock_of(world.dataset, {world.shops[0].merchant_id}).tables.stock
    assert found is not None
    named = set(published["merchant_id"]) - {world.shops[0].merchant_id}
    assert set(found["merchant_id"]) == named
    assert len(found) < len(published)


def _figures(ndcg: list[float | None], shown: list[float]) -> dict[str, object]:
    values = np.array(ndcg, dtype=np.float64)
    return {
        "ndcg@20": float(np.nanmean(values)),
        "tail_ndcg@20": float(np.nanmean(values)) / 2,
        "er@20": shown,
        "asked": [400.0, 200.0],
        "per_customer": {"ndcg@20": ndcg, "tail_ndcg@20": list(values / 2)},
    }


def test_means_take_each_runs_own_target() -> None:
    runs = [_figures([0.1, 0.1, None], [0.5, 0.0]), _figures([0.2, 0.4, None], [0.0, 0.1])]
    found = mean_figures(runs, range(2))
    assert found.pop("er@20_by_target") == [0.5, 0.1]
    each = found.pop("per_customer")
    assert each["ndcg@20"][:2] == pytest.approx([0.15, 0.25])
    assert np.isnan(each["ndcg@20"][2])
    # 90 of 300, by a table of the binomial distribution.
    assert found.pop("er@20_interval") == pytest.approx([0.2487, 0.3553], abs=1e-4)
    assert found == pytest.approx({"ndcg@20": 0.2, "tail_ndcg@20": 0.1, "er@20": 0.3})


def test_a_change_is_paired_over_customers() -> None:
    """All lose a fifth, whatever they have: the interval is as narrow as can be told."""
    stream = np.random.default_rng(4)
    values = [*stream.uniform(0.1, 0.4, 300), None]
    before = _figures(values, [0.0, 0.0])
    less = [None if v is None else 0.8 * v for v in values]
    found = changes(_figures(less, [0.0, 0.0]), before, seed=1)
    assert found["change"]["ndcg@20"] == pytest.approx(-0.2)
    low, high = found["change_interval"]["ndcg@20"]
    assert -0.22 < low < -0.2 < high < -0.18
    level = changes(before, before, seed=1)
    assert level["change_interval"] == {"ndcg@20": [0, 0], "tail_ndcg@20": [0, 0]}


def test_a_change_of_one_customer_is_shown_without_an_interval() -> None:
    shown = _cells(
        "none",
        "push",
        1,
        {
            "er@20": None,
            **dict.fromkeys(METRICS, 0.1),
            "change": dict.fromkeys(METRICS, -0.5),
            "change_interval": {key: [None, None] for key in METRICS},
        },
    )
    assert shown[5:7] == ["0.1000 -50.0%"] * 2


def test_one_bad_shop_is_not_told_as_several() -> None:
    row = {
        **dict.fromkeys(("er@20", "er@20_without", "er@20_limit"), 0.1),
        "change": dict.fromkeys(METRICS, -0.5),
        "held": False,
    }
    one = _sentence("federated", "the global model alone", "none", [{**row, "bad_shops": 1}])
    assert ", 1 bad shop: " in one
    assert one.endswith("0 of 1 attack held.")
    two = _sentence("federated", "alone", "none", [{**row, "bad_shops": 2}] * 3)
    assert ", 2 bad shops: " in two
    assert two.endswith("0 of 3 attacks held.")


def test_no_table_of_a_page_is_wider_than_a_phone() -> None:
    # That of an attack ran out of the page, and its last columns out of sight.
    for template in sorted((ROOT / "simulations" / "templates").glob("*.j2")):
        tables = re.findall(r"(.*)<table", template.read_text(encoding="utf-8"))
        assert all(before.endswith('<div class="scroll">') for before in tables), template.name


def test_a_defence_that_needs_more_shops_is_refused_before_any_run(tmp_path: Path) -> None:
    experiment = small(defences=("none", "median", "krum"), chosen="median")
    few = experiment.data.marketplace.model_copy(update={"shops": 4})
    data = experiment.data.model_copy(update={"marketplace": few})
    experiment = experiment.model_copy(update={"data": data})
    with pytest.raises(ConfigError, match=r"'krum' takes 5 shops at least, and there are 4"):
        run_attack(experiment, tmp_path / "out", Silent())
    assert not list((tmp_path / "out").rglob("*clean*"))


@pytest.mark.parametrize("federation", ["federated", "federated-dp"])
@pytest.mark.parametrize("unit", ["customer", "basket"])
@pytest.mark.parametrize("own_section", [False, True])
def test_the_server_that_is_attacked_has_the_defence(
    federation: str, unit: str, *, own_section: bool
) -> None:
    # Baskets may have a section of their own: it was asked for the server's settings, and the
    # defence stood in another. Every defence was measured as none.
    base = small()
    privacy = base.privacy.model_copy(update={"unit": unit})
    basket = base.federated_dp if own_section else None
    experiment = base.model_copy(update={"privacy": privacy, "basket": basket})
    found = server_config(_defended(experiment, federation, "median"), federation)
    assert (found["defence"], found["bad-share"]) == ("median", base.attack.bad_share)
    assert found.items() >= server_config(experiment, federation).items()


def test_what_cannot_be_attacked_is_refused(tmp_path: Path) -> None:
    experiment = tmp_path / "e.toml"
    experiment.write_text(
        "[home.local]\nstart = {}\n[home.centralized]\nstart = {}\n"
        "[home.federated]\nstart = {}\n[home.federated-dp]\nstart = {}\n"
    )
    command = ["attack", str(experiment), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, [*command, "--set", "privacy.trust=federation"])
    assert isinstance(found.exception, ConfigError)
    assert "seen by nobody" in str(found.exception)
    # Its page said nothing in words, and no defence but the chosen one was met.
    found = CliRunner().invoke(app, [*command, "--set", "attack.shares=[0.2]"])
    assert isinstance(found.exception, ConfigError)
    assert "full_shares hold 0.05, which is none of shares" in str(found.exception)
    # All was trained, and then there was no page and no document.
    found = CliRunner().invoke(app, [*command, "--set", "attack.full_shares=[]"])
    assert isinstance(found.exception, ConfigError)
    assert "full_shares is empty" in str(found.exception)
    for wrong in ('chosen="strong"', 'defences=["tail-aware"]', "shares=[5]", "band=[0.6, 0.4]"):
        found = CliRunner().invoke(app, [*command, "--set", f"attack.{wrong}"])
        assert isinstance(found.exception, ConfigError)
    # A page of nothing, after all trainings; and rows that stood there, and were counted, twice.
    for wrong in ("uses=[]", 'attacks=["push", "push"]', "shares=[0.05, 0.2, 0.05]"):
        found = CliRunner().invoke(app, [*command, "--set", f"attack.{wrong}"])
        assert "name at least one, and each just once" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_what_a_run_would_warn_of_an_attack_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Attack, "_attacked", lambda *_: ({}, []))
    base = small(federations=["federated-dp"])
    privacy = base.privacy.model_copy(update={"target_delta": 0.5})
    experiment = base.model_copy(update={"privacy": privacy})
    attack = _Attack(experiment, build_world(experiment), tmp_path, Silent())
    _, little = attack.run()["warnings"]
    assert little.startswith("δ = 0.5 promises little")


def test_shares_that_are_the_same_shops_are_told(tmp_path: Path) -> None:
    # One of a hundred shops and five are two attacks; of twelve both are one shop's, shown twice.
    experiment = small(shares=[0.01, 0.05, 0.25], full_shares=[0.05])
    attack = _Attack(experiment, build_world(experiment), tmp_path, Silent())
    (said,) = attack._alike()
    assert said.startswith("attack.shares 0.01 and 0.05 are 1 of 12 shops alike")


def test_who_took_no_part_is_said_once(tmp_path: Path) -> None:
    # A shop whose cap is too low for the plan was left out of every training, in silence.
    base = small(federations=["federated-dp"])
    name = build_world(base).shops[0].merchant_id
    privacy = base.privacy.model_copy(update={"caps": {name: 0.01}})
    experiment = base.model_copy(update={"privacy": privacy})
    spent = set()
    for _ in ("trained", "read again"):
        attack = _Attack(experiment, build_world(experiment), tmp_path, Silent())
        for _ in range(2):
            attack._clean("federated-dp", "none")
        spent.add(sum(attack._seconds.values()))
        (said,) = attack._away
        assert said.startswith(f"federated-dp: 1 of 12 shops took no part ({name}: the plan costs")
    # A command that went on counted the seconds of what it did itself, and none before.
    (seconds,) = spent
    assert seconds > 0


@pytest.mark.parametrize("value", [0.0, None])
def test_what_cannot_fall_is_refused_after_the_first_run(
    value: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A division by it ended the command after all runs of the defence.
    found = {"ndcg@20": 0.1, "tail_ndcg@20": value}
    runs = iter([{"targets": [TARGET], "uses": {"home": found}}])
    monkeypatch.setattr(_Attack, "_run", lambda *_: next(runs))
    attack = _Attack(small(), build_world(small()), tmp_path, Silent())
    with pytest.raises(ConfigError, match=r"tail_ndcg@20 of federated \(home\) cannot fall"):
        attack.run()
