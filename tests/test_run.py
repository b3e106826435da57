"""The analyst's one command, from a folder of tables that it has never seen to the answer."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from client.privacy.ledger import Ledger
from common.accounting import Spend
from common.artifact import load_model
from experiment_support import BIG, DAY, EMPTY, LONELY, ODD, SMALL, START, write_folder
from second_accountant import second_opinion
from simulations.federating import ledger_name

# A run takes half a minute on a machine of its own, and several on a busy one.
pytestmark = pytest.mark.timeout(1200)

ROOT = Path(__file__).resolve().parent.parent
METRICS = (
    *("ndcg@20", "recall@20", "tail_ndcg@20", "tail_recall@20"),
    *("coverage@20", "tail_share@20", "gini@20"),
)
FILES = {
    "catalogue",
    "experiment.json",
    "ledgers",
    "models",
    "recommendations.parquet",
    "report.html",
    "report.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tables") / "shops")


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def command(toml: Path, out: Path, *settings: str) -> list[str]:
    changes = [part for setting in settings for part in ("--set", setting)]
    program = [sys.executable, "-m", "simulations", "run", str(toml), "--out", str(out)]
    return [*program, *changes, "--json"]


def run(toml: Path, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(toml, out, *settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def whole(folder: Path, toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of every arm, in which one shop's cap is too low."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = run(toml, out, f"data.path={folder}", f"privacy.caps.{ODD}=0.5")
    assert done.returncode == 0, done.stderr
    # One JSON document and nothing else.
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text("utf-8"))
    return out


@pytest.fixture(scope="module")
def report(whole: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.e2e
def test_every_file_of_the_contract_is_there_and_no_draft(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == FILES
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]
    shops = (BIG, ODD, LONELY, EMPTY)
    assert {p.name for p in (whole / "ledgers").iterdir()} == {ledger_name(shop) for shop in shops}
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "<script src=" not in page
    for arm in ("federated", "federated-dp"):
        model = load_model(whole / "models" / arm)
        assert len(model.item_ids) == 60
        assert (model.manifest.privacy is None) == (arm == "federated")
    # Nobody named when training ends: the records did.
    assert model.manifest.privacy is not None
    assert "first and last record of all shops" in " ".join(model.manifest.privacy["not_covered"])


@pytest.mark.e2e
def test_the_report_holds_what_the_contract_names(report: dict[str, Any]) -> None:
    data = report["data"]
    assert (data["shops"], data["customers"], data["products"]) == (4, 41, 60)
    assert data["interactions"] == 41 * 14
    arms = report["arms"]
    assert set(arms) == {
        *("popularity", "local", "home-only", "centralized"),
        *("federated", "federated-global", "federated-dp", "federated-dp-global"),
    }
    for name, arm in arms.items():
        assert set(METRICS) <= set(arm["metrics"])
        assert set(arm["per_shop"]) == {BIG, ODD, LONELY, EMPTY}
        assert {"epsilon", "took_part", "reason"} <= set(arm["per_shop"][EMPTY])
        for metric in ("ndcg@20", "tail_ndcg@20"):
            assert set(arm["vs_local"][metric]) >= {"mean", "low", "high", "p"}
        assert 0 <= arm["level_share"] <= 1
        assert "ndcg@20" in arm["way"]
        assert arm["seconds"] > 0
        assert arm["peak_mb"] > 0
        assert (arm["privacy"] is not None) == name.startswith("federated-dp")
    # Tastes are planted by category: whoever reads content finds them.
    assert arms["local"]["metrics"]["ndcg@20"] > arms["popularity"]["metrics"]["ndcg@20"]


@pytest.mark.e2e
def test_a_second_accountant_finds_the_same_epsilon(whole: Path, report: dict[str, Any]) -> None:
    privacy = report["arms"]["federated-dp"]["privacy"]
    assert (privacy["unit"], privacy["trust"], privacy["delta"]) == ("customer", "shop", 1e-5)
    worst = 0.0
    for shop, facts in report["arms"]["federated-dp"]["per_shop"].items():
        with Ledger.open(whole / "ledgers" / ledger_name(shop)) as ledger:
            events = [entry.event for entry in ledger.verify()]
        spends = [Spend(e.noise_multiplier, e.sample_rate, e.steps) for e in events if e.steps]
        expected = second_opinion(spends, 1e-5) if spends else 0.0
        assert abs(facts["epsilon"] - expected) <= max(0.01 * expected, 0.01), shop
        worst = max(worst, expected)
    assert abs(privacy["epsilon"] - worst) <= max(0.01 * worst, 0.01)
    assert worst == pytest.approx(8.0, rel=0.01)


@pytest.mark.e2e
def test_a_cap_below_the_plan_keeps_a_shop_out(whole: Path, report: dict[str, Any]) -> None:
    shop = report["arms"]["federated-dp"]["per_shop"][ODD]
    assert not shop["took_part"]
    assert "cap" in shop["reason"]
    assert shop["epsilon"] == 0
    with Ledger.open(whole / "ledgers" / ledger_name(ODD)) as ledger:
        assert not ledger.events()
    # The cap is about privacy: where none is promised there is nothing to cap.
    assert report["arms"]["federated"]["per_shop"][ODD]["took_part"]


@pytest.mark.e2e
def test_a_shop_of_nobody_and_one_of_a_single_customer_take_part(
    whole: Path, report: dict[str, Any]
) -> None:
    shops = report["arms"]["federated-dp"]["per_shop"]
    for name in (EMPTY, LONELY):
        assert shops[name]["took_part"]
        assert "noise" in shops[name]["reason"]
        assert shops[name]["epsilon"] == shops[BIG]["epsilon"]
        with Ledger.open(whole / "ledgers" / ledger_name(name)) as ledger:
            assert [e.event.server_round for e in ledger.verify()] == [0, 1, 2]


@pytest.mark.e2e
def test_recommendations_leave_out_what_was_bought(whole: Path, folder: Path) -> None:
    lists = pd.read_parquet(whole / "recommendations.parquet")
    events = pd.read_csv(folder / "interactions.csv")
    cut = START + round(0.75 * 99 * DAY)
    bought = events[events["timestamp"] < cut - DAY]
    keys = ["merchant_id", "user_id", "item_id"]
    assert not len(lists.merge(bought[keys].drop_duplicates(), on=keys))
    for _, group in lists.groupby(["arm", "list", "merchant_id", "user_id"]):
        assert group["rank"].tolist() == list(range(1, len(group) + 1))
        assert group["score"].is_monotonic_decreasing
    everything = lists[lists["list"] == "all"]
    assert (everything.groupby(["arm", "merchant_id", "user_id"]).size() == 20).all()
    assert set(lists["merchant_id"]) == {BIG, ODD, LONELY}


ARMS = ("local", "federated-dp", "federated-dp-global")


def settings_of(folder: Path, arms: tuple[str, ...] = ARMS) -> tuple[str, ...]:
    return (f"data.path={folder}", f"privacy.caps.{ODD}=0.5", f"run.arms={json.dumps(arms)}")


def without_epsilon(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_epsilon(v) for key, v in value.items() if key != "epsilon"}
    return value


def epsilon_of(document: Any) -> float:
    spent: float = document["arms"]["federated-dp"]["privacy"]["epsilon"]
    return spent


def assert_same_figures(again: Any, report: dict[str, Any], arms: tuple[str, ...] = ARMS) -> None:
    """Compare arms that do not depend on which other arms were run."""
    assert set(again["arms"]) == set(arms)
    for arm in arms:
        for key in ("metrics", "quintiles", "per_shop", "vs_local", "home_weights", "privacy"):
            found, expected = again["arms"][arm][key], report["arms"][arm][key]
            assert without_epsilon(found) == without_epsilon(expected), (arm, key)


@pytest.mark.e2e
def test_the_same_seed_gives_the_same_figures(
    folder: Path, toml: Path, tmp_path: Path, report: dict[str, Any]
) -> None:
    done = run(toml, tmp_path / "again", *settings_of(folder))
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert_same_figures(again, report)
    assert epsilon_of(again) == epsilon_of(report)


@pytest.mark.e2e
def test_a_folder_in_use_is_left_alone(toml: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("do not touch", encoding="utf-8")
    done = run(toml, out)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "in use" in done.stderr
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda frame: frame.drop(columns="item_id"), ("item_id",)),
        (lambda frame: frame.assign(timestamp="soon"), ("timestamp", "soon")),
        (lambda frame: frame.assign(item_id="never-heard-of"), ("never-heard-of",)),
    ],
)
def test_a_bad_table_is_refused_and_leaves_nothing_behind(
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    words: tuple[str, ...],
    toml: Path,
    tmp_path: Path,
) -> None:
    tables = write_folder(tmp_path / "tables")
    path = tables / "interactions.csv"
    spoil(pd.read_csv(path)).to_csv(path, index=False)
    done = run(toml, tmp_path / "out", f"data.path={tables}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words)
    assert [p.name for p in tmp_path.iterdir()] == ["tables"]


def _interrupt(arguments: list[str], after: str, how: signal.Signals) -> tuple[int, str]:
    """Run until a line of stderr holds ``after``, then send a signal.

    Returns
    -------
    tuple
        The exit status, and what stderr said after that line.
    """
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    watchdog = threading.Timer(400, process.kill)
    watchdog.start()
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if after in line:
                process.send_signal(how)
                break
        else:
            pytest.fail(f"{after!r} never came: {''.join(lines[-20:])}")
        rest = process.stderr.read()
        return process.wait(timeout=60), rest
    finally:
        watchdog.cancel()
        process.stderr.close()
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("arm", ["federated", "federated-dp"])
def test_an_interrupted_run_goes_on_to_the_same_figures(
    arm: str,
    how: signal.Signals,
    folder: Path,
    toml: Path,
    tmp_path: Path,
    report: dict[str, Any],
) -> None:
    out, arms = tmp_path / "cut", ("local", arm)
    settings = settings_of(folder, arms)
    status, words = _interrupt(command(toml, out, *settings), "round 1: ", how)
    assert status == (-signal.SIGKILL if how == signal.SIGKILL else 1)
    assert ("goes on where it stopped" in words) == (how == signal.SIGINT)
    assert not out.exists()
    done = run(toml, out, *settings)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert_same_figures(again, report, arms)
    if arm == "federated-dp":
        # A round that was charged and cut off is done, and charged, again.
        assert epsilon_of(report) <= epsilon_of(again) < 1.5 * epsilon_of(report)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
