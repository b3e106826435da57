"""What an interrupted or refused run leaves, and what the same command makes of it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.privacy.budget import epsilon_of
from client.privacy.ledger import Ledger
from common.errors import ConfigError, DataError
from common.features import read_catalogue
from common.model import initial_state
from common.protocol import TrainingPlan, shop_key
from common.statement import at_most
from experiment_support import BIG, EMPTY, LONELY, ODD, SMALL, Silent, write_folder
from ledger_support import HIST, ROUND
from server.checkpoints import Checkpoint, write_checkpoint
from simulations import federating
from simulations.evaluating import _few, spent_by_round
from simulations.experiment import Experiment, read_experiment
from simulations.federating import ledger_name
from simulations.run import run_experiment


class Federations:
    """Stand in for Flower: write the last round's checkpoint, and what the server tells."""

    def __init__(self, stop_at: str = "") -> None:
        self.trained: list[str] = []
        self._stop_at = stop_at

    def __call__(self, plan: TrainingPlan, *, server_folder: Path, **_: Any) -> None:
        name = server_folder.parent.name
        if name == self._stop_at:
            raise KeyboardInterrupt
        self.trained.append(name)
        catalogue = read_catalogue(server_folder.parent.parent / "catalogue")
        state = initial_state(plan.model, catalogue.size)
        folder = server_folder / "checkpoints"
        for server_round in range(plan.rounds + 1):
            write_checkpoint(
                folder,
                Checkpoint(server_round, "1", plan, "", catalogue.fingerprint, "seeded", state, {}),
            )
        join = {"event": "join", "shops": {shop_key(LONELY): "data-error", shop_key(BIG): "ok"}}
        (folder / "rounds.jsonl").write_text(json.dumps(join) + '\n{"event": "ro', encoding="utf-8")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    folder = write_folder(tmp_path / "tables")
    arms = 'run.arms=["local", "federated", "federated-dp"]'
    return read_experiment(tmp_path / "small.toml", [f"data.path={folder}", arms])


def test_a_finished_federation_is_neither_trained_again_nor_forgotten(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = Federations(stop_at="federated-dp")
    monkeypatch.setattr(federating, "run_federation", first)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, out, Silent())
    assert not out.exists()

    second = Federations()
    monkeypatch.setattr(federating, "run_federation", second)
    report = run_experiment(experiment, out, Silent())
    assert (first.trained, second.trained) == (["federated"], ["federated-dp"])
    shops = report["arms"]["federated"]["per_shop"]
    assert not shops[LONELY]["took_part"]
    assert shops[BIG]["took_part"]
    assert any("another draw may answer otherwise" in text for text in report["warnings"])


def test_a_shop_at_which_nothing_is_measured_is_told_of_too(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federating, "run_federation", Federations())
    fewer = experiment.model_copy(
        update={"run": experiment.run.model_copy(update={"measured_shops": 1})}
    )
    report = run_experiment(fewer, tmp_path / "out", Silent())
    arm = report["arms"]["federated-dp"]
    assert list(arm["per_shop"]) == [ODD]
    assert set(arm["other_shops"]) == {BIG, EMPTY, LONELY}
    assert not arm["other_shops"][LONELY]["took_part"]
    assert any(f"{LONELY}: the shop's data were refused" in t for t in report["answer"]["details"])


@pytest.mark.parametrize(
    ("customers", "private", "words"),
    [
        (0, True, "no customer: it sent little but noise"),
        (1, True, "1 customer: it sent little but noise"),
        (0, False, "no customer: it sent nothing but zeros"),
        (1, False, "1 customer: what it sent is theirs alone, in clear"),
        (2, False, ""),
    ],
)
def test_noise_is_said_to_be_sent_where_any_was(customers: int, private: bool, words: str) -> None:
    assert _few(customers, private=private) == words


def test_a_round_that_was_paid_twice_counts_twice_in_the_plot_of_rounds(tmp_path: Path) -> None:
    # The table showed what the ledgers hold, and the plot beside it what the plan had asked for.
    spent = {}
    for name, rounds in (("once", [0, 1]), ("twice", [0, 1, 1]), ("away", [])):
        with Ledger.open(tmp_path / ledger_name(name)) as ledger:
            for number in rounds:
                ledger.append(replace(ROUND if number else HIST, server_round=number))
            spent[name] = [e.value for e in ledger.epsilon(1e-5).values()]
    world: Any = SimpleNamespace(shops=[SimpleNamespace(merchant_id=name) for name in spent])
    found = spent_by_round(world, TrainingPlan(rounds=1, target_delta=1e-5), tmp_path)
    assert found[1:] == spent["twice"] > spent["once"]
    assert found[0] == epsilon_of([HIST], 1e-5)["customer"].value


def test_what_an_interruption_made_shops_pay_twice_is_told(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An ε above the target stood in the answer and in every table, and nothing said why.
    run = {"engine": "in-process", "arms": ("local", "federated-dp")}
    here = experiment.model_copy(update={"run": experiment.run.model_copy(update=run)})

    def cut(folder: Path, checkpoint: Checkpoint) -> Path:
        if checkpoint.server_round == 1:
            raise KeyboardInterrupt
        return write_checkpoint(folder, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr("server.app.write_checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(here, tmp_path / "out", Silent())
    report = run_experiment(here, tmp_path / "out", Silent())
    (said,) = [text for text in report["warnings"] if "paid for twice" in text]
    privacy = report["arms"]["federated-dp"]["privacy"]
    planned = privacy["statement"]["epsilon"]
    assert privacy["epsilon"] > planned + 0.1
    assert said == (
        "federated-dp: the run was interrupted, and what it cut short is paid for twice: "
        f"ε = {at_most(privacy['epsilon'])} at 4 of 4 shops, where the plan costs "
        f"{at_most(planned)}"
    )
    whole = run_experiment(here, tmp_path / "whole", Silent())
    assert not any("paid for twice" in text for text in whole["warnings"])
    # But for what was paid, it is the same run.
    assert report["arms"]["federated-dp"]["metrics"] == whole["arms"]["federated-dp"]["metrics"]


def test_what_was_trained_on_other_tables_is_not_gone_on_with(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The folder's name was all that a draft knew of its tables: models of the old ones were
    # measured on the new ones, and the report said nothing of it.
    monkeypatch.setattr(federating, "run_federation", Federations(stop_at="federated-dp"))
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "out", Silent())
    table = tmp_path / "tables" / "interactions.csv"
    whole = table.read_text(encoding="utf-8")
    table.write_text("\n".join(whole.splitlines()[:-50]), encoding="utf-8")
    second = Federations()
    monkeypatch.setattr(federating, "run_federation", second)
    with pytest.raises(ConfigError, match="interrupted run of another experiment"):
        run_experiment(experiment, tmp_path / "out", Silent())
    assert second.trained == []
    table.write_text(whole, encoding="utf-8")
    run_experiment(experiment, tmp_path / "out", Silent())
    assert second.trained == ["federated-dp"]


def test_bad_input_leaves_no_draft(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "tables" / "interactions.csv").write_text("user_id\nu1\n", encoding="utf-8")
    with pytest.raises(DataError, match="merchant_id"):
        run_experiment(experiment, tmp_path / "out", Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml", "tables"]
    # An empty folder that was there before was gone.
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="merchant_id"):
        run_experiment(experiment, tmp_path / "mine", Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "small.toml", "tables"]


@pytest.mark.parametrize("name", [".", "link", "dangling"])
def test_a_goal_that_cannot_be_replaced_is_refused_before_anything_is_read(
    name: str, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A link was found out when all was trained, and where one stands ended in a traceback.
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path / ("here" if name == "." else "."))
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="can't be replaced"):
        run_experiment(experiment, Path(name), Silent())
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_stopped_before_anything_was_trained_it_leaves_no_draft(
    experiment: Experiment, tmp_path: Path
) -> None:
    class Impatient(Silent):
        def stage(self, text: str, total: int | None = None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "out", Impatient())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml", "tables"]


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("privacy.unit=basket", "session_id"),
        ("privacy.trust=federation privacy.honest_shops=9", "roster"),
        ("federated-dp.server.server-optimiser=adam", "did you mean 'server_optimizer'"),
        ("federated-dp.server.plan=mine", "unknown key 'plan'"),
        ("federated-dp.server.defence=krum", "means nothing among 4 shops"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused_before_anything_is_trained(
    setting: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federations = Federations()
    monkeypatch.setattr(federating, "run_federation", federations)
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    folder = write_folder(tmp_path / "tables")
    experiment = read_experiment(tmp_path / "small.toml", [f"data.path={folder}", *setting.split()])
    with pytest.raises(ConfigError, match=word):
        run_experiment(experiment, tmp_path / "out", Silent())
    assert federations.trained == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.toml", "tables"]
