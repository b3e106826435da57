"""The shop's command line: what a plan costs, the ledger, the shop's statement."""

import csv
import io
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_support import document_of, status_of
from client.__main__ import app
from client.commands.home_tables import evaluation_table
from client.commands.tables import epsilon_words
from client.forecast import find_shops
from client.home_settings import EvaluationSettings
from client.inspection import Place, export, write_export
from client.privacy.evaluation import evaluation_event
from client.privacy.events import SHARED_HISTOGRAM, SHARED_STEP, UNPROTECTED
from client.privacy.ledger import DP_SGD, HISTOGRAM, Event, Ledger
from client.privacy.plan import planned_events
from common.accounting import Spend, epsilon, plan_spends
from common.cli import print_json
from common.errors import BudgetError, ConfigError
from common.protocol import TrainingPlan
from common.statement import at_least
from report_support import shown_text

DELTA = 1e-5
PLAN = TrainingPlan(
    rounds=4, noise_multiplier=6.0, popularity_noise_multiplier=5.0, local_steps=2, sample_rate=0.5
)
COST = epsilon(plan_spends(PLAN), DELTA).value


def shop(folder: Path, *, cap: float = 8.0, unit: str = "customer") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "shop.toml"
    path.write_text(
        f'merchant_id = "{folder.name}"\ndata = "data"\ncatalogue = "/c"\n'
        f'ledger = "ledger.sqlite"\ncap_epsilon = {cap}\nunit = "{unit}"\n',
        encoding="utf-8",
    )
    return path


def train(folder: Path, runs: int, cap: float = 1e3) -> None:
    """Charge whole runs of the plan."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        for number in range(runs):
            for event in planned_events(PLAN, f"run-{number}", noise="system"):
                ledger.charge(event, cap_epsilon=cap, delta=DELTA)


def call(*arguments: object) -> int:
    return status_of(app, *arguments)


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return document_of(capsys, app, *arguments)


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(PLAN.model_dump_json(), encoding="utf-8")
    return path


def test_a_plan_is_priced_by_mechanism_and_in_all(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = ask(capsys, "plan", "--plan", plan_file)["cost"]
    assert cost["epsilon"] == COST
    assert [part["mechanism"] for part in cost["mechanisms"]] == [HISTOGRAM, DP_SGD]
    assert [part["steps"] for part in cost["mechanisms"]] == [1, 8]
    alone = [part["epsilon"] for part in cost["mechanisms"]]
    assert max(alone) < COST < sum(alone)


def test_what_is_said_to_fit_is_what_the_ledger_admits(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cap = epsilon(plan_spends(PLAN) * 3, DELTA).value + 1e-3
    settings = shop(tmp_path / "a", cap=cap)
    train(tmp_path / "a", 1)
    (found,) = ask(capsys, "plan", settings, "--plan", plan_file)["shops"]
    assert found["spent"]["epsilon"] == COST
    assert found["after"]["epsilon"] == epsilon(plan_spends(PLAN) * 2, DELTA).value
    assert found["left_after"] == cap - found["after"]["epsilon"]
    assert (found["joins"], found["reason"]) == (True, "")
    assert (found["whole_runs"], found["rounds"]) == (2, 8)
    train(tmp_path / "a", 2, cap)
    event = planned_events(PLAN, "one too many")[0]
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger, pytest.raises(BudgetError):
        ledger.charge(event, cap_epsilon=cap, delta=DELTA)
    (found,) = ask(capsys, "plan", settings, "--plan", plan_file)["shops"]
    assert (found["whole_runs"], found["rounds"], found["joins"]) == (0, 0, False)
    assert "cap_epsilon" in found["reason"]


def test_what_a_shop_releases_besides_is_counted_where_a_run_asks_for_it(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a", cap=epsilon(plan_spends(PLAN) * 3, DELTA).value + 1e-3)
    (found,) = ask(capsys, "plan", settings, "--plan", plan_file)["shops"]
    assert (found["whole_runs"], found["with_figures"]) == (3, None)
    with settings.open("a") as file:
        file.write("\n[evaluation]\nepsilon = 0.5\n")
    (found,) = ask(capsys, "plan", settings, "--plan", plan_file)["shops"]
    assert found["whole_runs"] == 3
    cost = epsilon_words(found["with_figures"])
    assert call("plan", settings, "--plan", plan_file) == 0
    assert f"ε {cost} after such a run, 2 whole" in capsys.readouterr().out
    released = evaluation_event(EvaluationSettings(epsilon=0.5), "customer", "run")
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        for run in ("first", "second"):
            for event in (*planned_events(PLAN, run), released):
                ledger.charge(event, cap_epsilon=found["cap_epsilon"], delta=DELTA)
            if run == "first":
                assert ledger.epsilon(DELTA)["customer"].value == pytest.approx(
                    found["with_figures"]["epsilon"]
                )
        with pytest.raises(BudgetError):
            ledger.check(planned_events(PLAN, "3"), cap_epsilon=found["cap_epsilon"], delta=DELTA)


def test_a_price_of_figures_that_no_noise_has_is_named(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a")
    with settings.open("a") as file:
        file.write("\n[evaluation]\nepsilon = 1e300\n")
    assert call("plan", settings, "--plan", plan_file) == 2
    assert "[evaluation] of a: no noise costs just epsilon 1e+300" in capsys.readouterr().err


def test_runs_of_secure_sums_are_counted_by_the_bound_that_their_ledger_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = TrainingPlan(
        rounds=4,
        noise_multiplier=6.0,
        popularity_noise_multiplier=5.0,
        trust="federation",
        honest_shops=3,
    )
    (tmp_path / "sums.json").write_text(sums.model_dump_json(), encoding="utf-8")
    # PRV, which is not known to hold for whole numbers, would let a second run in.
    cap = epsilon(plan_spends(sums) * 2, DELTA).value * 0.999
    settings = shop(tmp_path / "a", cap=cap)
    (found,) = ask(capsys, "plan", settings, "--plan", tmp_path / "sums.json")["shops"]
    assert (found["whole_runs"], found["rounds"]) == (1, 7)
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        first, second = (planned_events(sums, run) for run in ("first", "second"))
        for event in [*first, *second[:-1]]:
            ledger.charge(event, cap_epsilon=cap, delta=DELTA)
        with pytest.raises(BudgetError):
            ledger.charge(second[-1], cap_epsilon=cap, delta=DELTA)


def test_rounds_of_a_run_that_does_not_fit_whole_are_counted(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly = [Spend(5.0, 1.0, 1), Spend(6.0, 0.5, 4)]
    settings = shop(tmp_path / "a", cap=epsilon(partly, DELTA).value)
    (found,) = ask(capsys, "plan", settings, "--plan", plan_file)["shops"]
    assert (found["whole_runs"], found["rounds"], found["joins"]) == (0, 2, False)


def test_shops_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "²"):  # A digit to Python, and no number.
        shop(tmp_path / name)
    assert [path.parent.name for path, _ in find_shops([tmp_path])] == ["²", "9", "10"]


def test_a_forecast_creates_no_ledger_and_changes_none(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop(tmp_path / "shops" / "a")
    shop(tmp_path / "shops" / "b", unit="basket")
    train(tmp_path / "shops" / "a", 1)
    ledger = tmp_path / "shops" / "a" / "ledger.sqlite"
    before, when = ledger.read_bytes(), ledger.stat().st_mtime_ns
    shops = ask(capsys, "plan", tmp_path / "shops", "--plan", plan_file)["shops"]
    assert [(s["shop"], s["ledger_exists"]) for s in shops] == [("a", True), ("b", False)]
    assert shops[1]["spent"]["epsilon"] == 0
    assert "demands basket" in shops[1]["reason"]
    assert (ledger.read_bytes(), ledger.stat().st_mtime_ns) == (before, when)
    assert [p.name for p in (tmp_path / "shops" / "b").iterdir()] == ["shop.toml"]
    assert [p.name for p in ledger.parent.iterdir()].count("ledger.sqlite-journal") == 0


def test_a_target_is_calibrated_for_and_noise_is_taken_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cost = ask(capsys, "plan", "--target-epsilon", 2, "--rounds", 3)["cost"]
    assert 0.998 * 2 <= cost["epsilon"] <= 2
    cost = ask(
        capsys, "plan", "--rounds", 0, "--popularity-noise-multiplier", 5, "--unit", "interaction"
    )["cost"]
    assert (cost["unit"], len(cost["mechanisms"])) == ("interaction", 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--target-epsilon"),
        (("--noise-multiplier", 3), "two releases"),
        (("--target-epsilon", 2, "--noise-multiplier", 3), "either"),
        (("--target-epsilon", 2, "--unit", "person"), "unit"),
        (("--target-epsilon", 2, "--delta", 2), "delta"),
        (("--target-epsilon", 2, "--unit", "interaction"), "rounds = 0"),
        (("--popularity-noise-multiplier", 0, "--noise-multiplier", 1), "above 0"),
        (("--target-epsilon", 2, "nowhere/shop.toml"), "nowhere"),
        (("--plan", "nowhere.json"), "nowhere.json: No such file or directory\n"),
        (("--plan", __file__), "it is no JSON (Extra data"),
        (("--target-epsilon", 2, "--honest-shops", 3), "goes with --trust federation"),
        (("--plan", "nowhere.json", "--rounds", 20), "leave out --rounds"),
        # The same as the default: 10 rounds were asked for, and the file's were priced.
        (
            ("--plan", "nowhere.json", "--rounds", 10, "--delta", 1e-5),
            "leave out --rounds, --delta",
        ),
    ],
)
def test_bad_input_is_status_two_and_one_line(
    arguments: tuple[object, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("plan", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_plan_of_brackets_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan is somebody else's file: of more than Python reads the command ended in a trace."""
    (tmp_path / "plan.json").write_text("[" * 10_000)
    assert call("plan", "--plan", tmp_path / "plan.json") == 2
    assert "it is no JSON (maximum recursion" in capsys.readouterr().err


def test_a_plan_is_found_in_checkpoints_and_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, document in enumerate(
        (
            {"format": 1, "plan": PLAN.model_dump_json()},
            {"version": "x", "config": {"plan": PLAN.model_dump(mode="json")}},
        )
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        assert ask(capsys, "plan", "--plan", path)["cost"]["epsilon"] == COST
    path.write_text('{"version": "x"}', encoding="utf-8")
    assert call("plan", "--plan", path) == 2


def test_the_tables_name_shops_figures_and_bounds(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "corner-shop")
    train(tmp_path / "corner-shop", 1)
    assert call("plan", settings, "--plan", plan_file) == 0
    text = capsys.readouterr().out
    for word in ("corner-shop", HISTOGRAM, DP_SGD, f"{COST:.4g}", "PRV", "whole runs"):
        assert word in text
    assert "≤" not in text
    with Ledger.open(tmp_path / "corner-shop" / "ledger.sqlite") as ledger, ledger._writing():
        for i in range(60):
            ledger._insert(Event(DP_SGD, 90.0 + i, 0.1, 50, "customer"))
    for arguments in (("ledger", "show", settings), ("plan", settings, "--plan", plan_file)):
        assert call(*arguments) == 0
        text = capsys.readouterr().out
        assert "≤" in text
        assert "looser RDP bound" in text
    assert call("statement", settings) == 0
    assert "at most" in capsys.readouterr().out


def test_a_ledger_is_shown_in_groups_with_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a", cap=20.0)
    assert ask(capsys, "ledger", "show", settings)["units"] == {}
    assert not (tmp_path / "a" / "ledger.sqlite").exists()
    train(tmp_path / "a", 2)
    found = ask(capsys, "ledger", "show", settings)
    spent = epsilon(plan_spends(PLAN) * 2, DELTA).value
    assert found["units"]["customer"]["epsilon"] == spent
    assert found["units"]["customer"]["left"] == 20.0 - spent
    assert [(g["run_id"], g["mechanism"], g["events"], g["steps"]) for g in found["groups"]] == [
        ("run-0", HISTOGRAM, 1, 1),
        ("run-0", DP_SGD, 4, 8),
        ("run-1", HISTOGRAM, 1, 1),
        ("run-1", DP_SGD, 4, 8),
    ]
    alone = ask(capsys, "ledger", "show", tmp_path / "a" / "ledger.sqlite")
    assert (alone["cap_epsilon"], alone["head"]) == (None, found["head"])
    assert call("ledger", "show", tmp_path / "nowhere.sqlite") == 2
    capsys.readouterr()
    assert call("ledger", "show", settings) == 0
    text = capsys.readouterr().out
    assert "last (UTC)" in text
    assert f"left {at_least(20.0 - spent)}" in text
    assert found["head"] in text


def test_the_ledgers_table_names_runs_without_privacy_beside_what_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a")
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        ledger.append(Event(UNPROTECTED, 0.0, 1.0, 0, "customer", run_id="run-0"))
    assert call("ledger", "show", settings) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Without any privacy, and in no ε: all that left in 1 run." in text


def test_verify_names_the_first_wrong_entry_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, path = shop(tmp_path / "a"), tmp_path / "a" / "ledger.sqlite"
    assert call("ledger", "verify", settings) == 2
    train(tmp_path / "a", 1)
    capsys.readouterr()
    head = ask(capsys, "ledger", "verify", settings)["head"]
    assert ask(capsys, "ledger", "verify", path, "--known-head", head)["entries"] == 5
    assert call("ledger", "verify", settings, "--known-head", "a" * 64, "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["ok"] is False
    assert "older copy" in printed.err
    # A part of the head, or none, is no sign of a ledger that was put back.
    assert call("ledger", "verify", settings, "--known-head", head[:16]) == 2
    assert "is no head: give all 64 digits" in capsys.readouterr().err
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP TRIGGER events_no_update; UPDATE events SET steps = 0 WHERE seq = 3"
    )
    connection.close()
    for command in ("verify", "show", "export"):
        assert call("ledger", command, settings) == 1
        printed = capsys.readouterr()
        assert "entry 3 of the ledger" in printed.err
        assert printed.out == ""
    assert call("statement", settings) == 1


def test_an_empty_file_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = shop(tmp_path / "a")
    (tmp_path / "a" / "ledger.sqlite").touch()
    for words in (("ledger", "show"), ("ledger", "export"), ("statement",), ("plan",)):
        more = ("--target-epsilon", "4") if words == ("plan",) else ()
        assert call(*words, settings, *more) == 1
        printed = capsys.readouterr()
        assert "is empty (0 bytes): it is not a ledger" in printed.err
        assert printed.out == ""


def test_a_run_s_name_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    names = ['=HYPERLINK("http://x","y")', "+1", "-1", "@SUM(1)", "plain=1"]
    with Ledger.open(tmp_path / "l") as ledger:
        for name in names:
            ledger.append(Event(DP_SGD, 2.5, 1.0, 1, "customer", run_id=name))
    place = Place.of(tmp_path / "l")
    rows = list(csv.DictReader(io.StringIO(export(place, "csv"))))
    assert [row["run_id"] for row in rows] == [*(f"'{name}" for name in names[:4]), names[4]]
    assert rows[0]["noise_multiplier"] == "2.5"
    lines = [json.loads(line) for line in export(place, "jsonl").splitlines()]
    assert [line["run_id"] for line in lines] == names


def test_an_export_holds_every_entry_and_is_written_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a")
    train(tmp_path / "a", 1)
    entries = Ledger.read(tmp_path / "a" / "ledger.sqlite")
    for name in ("l.csv", "l.jsonl"):
        assert call("ledger", "export", settings, "--out", tmp_path / name) == 0
    rows = [json.loads(x) for x in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [row["hash"] for row in rows] == [entry.hash for entry in entries]
    assert rows[1]["parameters"]["noise"] == "system"
    table = list(csv.DictReader(io.StringIO((tmp_path / "l.csv").read_text())))
    assert [int(row["seq"]) for row in table] == [1, 2, 3, 4, 5]
    assert json.loads(table[1]["parameters"]) == rows[1]["parameters"]
    assert capsys.readouterr().out == ""
    assert call("ledger", "export", settings, "--out", tmp_path / "l.csv") == 2
    assert call("ledger", "export", settings, "--out", tmp_path / "l.txt") == 2
    assert call("ledger", "export", settings, "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("seq,at,mechanism,")
    with pytest.raises(ConfigError, match="cannot write"):
        write_export(tmp_path / "no" / "folder.csv", "x")


def test_the_shops_statement_says_what_was_spent_and_what_is_not_covered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a", cap=20.0)
    empty = ask(capsys, "statement", settings)
    assert (empty["epsilon"], empty["unit"], empty["runs"]) == (0.0, "customer", 0)
    train(tmp_path / "a", 2, 19.0)
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        basket = Event(
            DP_SGD, 3.0, 1.0, 1, "basket", server_round=1, parameters={"noise": "seeded"}
        )
        ledger.charge(basket, cap_epsilon=20.0, delta=DELTA)
    found = ask(capsys, "statement", settings)
    assert found["epsilon"] == epsilon(plan_spends(PLAN) * 2, DELTA).value
    assert (found["runs"], found["rounds"], found["relation"]) == (2, 8, "add-or-remove")
    assert [(m["mechanism"], m["steps"]) for m in found["mechanisms"]] == [
        (HISTOGRAM, 2),
        (DP_SGD, 16),
    ]
    assert [part["unit"] for part in found["units"]] == ["customer", "basket"]
    assert found["units"][1]["epsilon"] == epsilon([Spend(3.0, 1.0, 1)], DELTA).value
    assert found["noise"] == ["seeded", "system"]
    assert found["caps_raised"][0]["to"] == 20.0
    assert found["caps_raised"][0]["from_delta"] is None
    assert call("statement", settings) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "several shops",
        "tuned on the same data",
        "Floating point",
        "Mironov 2012",
        "n baskets has n times",
        "Releases for another unit",
        "knows the seed",
        "2 runs and 8 training rounds",
        "planned in view of what earlier ones had released",
        "Cap raised on",
        "Timing",
    ):
        assert words in text
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        ledger.charge(basket, cap_epsilon=20.0, delta=1e-2)
    assert call("statement", settings) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "from 20 to 20, delta from 1e-05 to 0.01." in text


def test_one_sampled_run_among_others_is_said_to_be_proven_for_fixed_plans_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rate may follow from what an unsampled run released; figures have no sample to choose."""
    settings, words = shop(tmp_path / "a", cap=1e3), "planned in view of"
    whole, sampled = (PLAN.model_copy(update={"sample_rate": rate}) for rate in (1.0, 0.5))
    figures = evaluation_event(EvaluationSettings(epsilon=0.5), "customer", "first")
    first = planned_events(sampled, "first")
    for events, told in (
        ([*first, figures], False),
        ([*first, *planned_events(whole, "second")], True),
        # Nor was it planned which release is done again.
        ([*first, first[0]], True),
        ([*planned_events(whole, "first"), *planned_events(whole, "second")], False),
    ):
        (tmp_path / "a" / "ledger.sqlite").unlink(missing_ok=True)
        with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
            for event in events:
                ledger.charge(event, cap_epsilon=1e3, delta=DELTA)
        said = " ".join(ask(capsys, "statement", settings)["not_covered"])
        assert (words in said) == told


def test_what_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("inf"), "b": [float("nan"), 1.5]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_a_bound_without_noise_is_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a")
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        ledger.append(replace(Event(DP_SGD, 0.0, 1.0, 1, "customer"), server_round=1))
    assert ask(capsys, "statement", settings)["epsilon"] is None
    assert call("statement", settings) == 0
    assert "no bound" in capsys.readouterr().out


def test_a_runs_name_cannot_hide_lines_of_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The server chose the name: escapes in it would reach the engineer's terminal.
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        ledger.append(Event(HISTOGRAM, 5.0, 1.0, 1, "customer", run_id="r\x1b[2J"))
    assert call("ledger", "show", tmp_path / "l.sqlite") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_delta_of_zero_is_refused_not_replaced(tmp_path: Path) -> None:
    train(tmp_path, 1)
    assert call("ledger", "show", tmp_path / "ledger.sqlite", "--delta", 0) == 2


def test_a_gain_of_one_customer_is_shown_without_an_interval() -> None:
    nothing = float("nan")
    gain = {"mean": 0.25, "low": nothing, "high": nothing, "p": nothing}
    metrics = ("ndcg@20", "recall@20", "tail_ndcg@20", "coverage@20")
    document = {
        "shop": "corner",
        "model": "federated-3",
        "figures": dict.fromkeys(("own", "global", "mixed"), dict.fromkeys(metrics, 0.5)),
        "vs_own": dict.fromkeys(("global", "mixed"), dict.fromkeys(metrics, gain)),
        "asked": 1,
        "train_until": "2024-01-01",
        "until": "2024-02-01",
        "notes": [],
    }
    shown = shown_text(evaluation_table(document))
    assert shown.count("0.5000") == 12
    assert "nan" not in shown


def test_a_runs_name_stands_in_one_line_beside_secure_sums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # It had what the other columns left it: two letters a line, ten lines for each mechanism.
    run = "20261130-190342-e331"
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        for name in (SHARED_HISTOGRAM, SHARED_STEP):
            event = Event(name, 5.0992, 1.0, 1, "interaction", run_id=run)
            ledger.append(replace(event, parameters={"noise": "system"}))
    assert call("ledger", "show", tmp_path / "l.sqlite") == 0
    told = capsys.readouterr().out.splitlines()
    lines = told[[line.strip() for line in told].index(run) :]  # After a title as long as its path.
    assert [line.split()[0] for line in lines[1:3]] == [SHARED_HISTOGRAM, SHARED_STEP]
    assert lines[3].startswith("Spent")


def test_one_is_not_told_as_several(
    tmp_path: Path, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = shop(tmp_path / "a", unit="basket")
    one = PLAN.model_copy(update={"rounds": 1, "unit": "basket"})
    with Ledger.open(tmp_path / "a" / "ledger.sqlite") as ledger:
        for event in planned_events(one, "r", noise="system"):
            ledger.charge(event, cap_epsilon=1e3, delta=DELTA)
    assert call("statement", settings) == 0
    assert "What left the shop, in 1 run and 1 training round:" in capsys.readouterr().out
    popularity = PLAN.model_copy(update={"rounds": 0, "unit": "interaction"})
    plan_file.write_text(popularity.model_dump_json(), encoding="utf-8")
    assert call("plan", settings, "--plan", plan_file) == 0
    assert "the plan's unit is interaction, the shop demands basket" in shown_text(
        capsys.readouterr().out
    )
