"""The report's figures, its page and its words, also where parts of a run are missing."""

import dataclasses
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError, DataError, InputError
from common.metrics import MetricSums
from report_support import N_ITEMS, PRIVACY, arm, run_of, shown_text, sums, whole_run
from simulations.documents import to_json
from simulations.machine import machine_facts
from simulations.report.answer import interval, pays, percent
from simulations.report.building import (
    ArmResult,
    ShopPart,
    ShopResult,
    build_report,
    write_report,
)
from simulations.report.compare import compare
from simulations.report.page import render_report
from simulations.report.plots import report_figures
from simulations.report.recommendations import RecommendationWriter
from simulations.report.tables import comparison_table, result_table
from simulations.sweep.figures import arm_figures


class _Fetches(HTMLParser):
    """Collects whatever a page would fetch: attributes that load or lead away, and style."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        loads = {"src", "href", "action", "srcset", "data", "poster", "background"}
        self.found += [f"{tag} {name}" for name, _ in attrs if name in loads]

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.found += re.findall(r"@import|url\(", data)


def external(page: str) -> list[str]:
    parser = _Fetches()
    parser.feed(page)
    return parser.found


def test_figures_are_those_of_the_pooled_customers() -> None:
    run = whole_run()
    report = build_report(run)
    federated = report["arms"]["federated"]
    values = np.concatenate([shop.sums.ndcg for shop in run.arms[3].shops.values()])
    local = np.concatenate([shop.sums.ndcg for shop in run.arms[0].shops.values()])
    whole = np.concatenate([shop.sums.ndcg for shop in run.arms[2].shops.values()])
    assert federated["metrics"]["ndcg@20"] == pytest.approx(values.mean())
    gain = federated["vs_local"]["ndcg@20"]
    assert gain["mean"] == pytest.approx((values - local).mean())
    assert gain["low"] < gain["mean"] < gain["high"]
    way = (values.mean() - local.mean()) / (whole.mean() - local.mean())
    assert federated["way"]["ndcg@20"] == pytest.approx(way)
    assert report["arms"]["local"]["way"]["ndcg@20"] == 0
    assert report["arms"]["centralized"]["way"]["tail_ndcg@20"] == 1
    assert federated["vs_better"]["ndcg@20"]["against"] == "home-only"
    assert federated["vs_better"]["ndcg@20"]["mean"] < gain["mean"]
    assert set(federated["per_shop"]) == {"a", "bb"}
    assert report["arms"]["federated-dp"]["privacy"]["epsilon"] == 8.0
    assert federated["privacy"] is None
    assert report["answer"]["verdict"] == "yes"
    assert report["answer"]["arm"] == "federated-dp"


def test_figures_do_not_depend_on_the_order_of_shops() -> None:
    run = whole_run()
    turned = [
        dataclasses.replace(arm, shops=dict(reversed(list(arm.shops.items())))) for arm in run.arms
    ]
    assert to_json(build_report(dataclasses.replace(run, arms=turned))) == to_json(
        build_report(run)
    )


@pytest.mark.parametrize(("shift", "share"), [(-0.001, 1.0), (-0.0011, 0.5)])
def test_level_share_allows_a_thousandth(shift: float, share: float) -> None:
    local = arm("local", {"a": 0.0, "b": 0.0})
    shops = {
        "a": ShopResult(dataclasses.replace(local.shops["a"].sums)),
        "b": ShopResult(
            dataclasses.replace(local.shops["b"].sums, ndcg=local.shops["b"].sums.ndcg + shift)
        ),
    }
    report = build_report(run_of(local, ArmResult("federated", shops)))
    assert report["arms"]["federated"]["level_share"] == share


@pytest.mark.parametrize(
    ("shifts", "verdict"),
    [
        ({"a": 0.03, "b": 0.03}, "yes"),
        ({"a": 0.06, "b": -0.02}, "mixed"),
        ({"a": 0.0, "b": 0.0}, "no"),
        ({"a": -0.03, "b": -0.03}, "no"),
    ],
)
def test_the_verdict_follows_gains_and_shops(shifts: dict[str, float], verdict: str) -> None:
    base = sums(0.1 + 0.01 * np.arange(40) / 40)
    flat = {
        key: ShopResult(dataclasses.replace(base, ndcg=base.ndcg + shift), ShopPart(8.0))
        for key, shift in shifts.items()
    }
    local = ArmResult("local", {key: ShopResult(base) for key in shifts})
    report = build_report(run_of(local, ArmResult("federated-dp", flat, privacy=PRIVACY)))
    assert report["answer"]["verdict"] == verdict


def test_a_gain_that_home_adaptation_has_too_is_no_reason_to_federate() -> None:
    local = arm("local", {"a": 0.0, "b": 0.0})
    home = arm("home-only", {"a": 0.05, "b": 0.05})
    same = ArmResult("federated", home.shops)
    report = build_report(run_of(local, home, same))
    assert report["arms"]["federated"]["vs_local"]["ndcg@20"]["low"] > 0
    assert report["answer"]["verdict"] == "no"


def test_an_arm_that_changes_nothing_is_said_to_be_the_same() -> None:
    local = arm("local", {"a": 0.0})
    report = build_report(run_of(local, ArmResult("federated", local.shops)))
    assert "the same as local" in report["answer"]["details"][0]
    assert "– against" not in report["answer"]["details"][0]


@pytest.mark.parametrize(("customers", "verdict"), [(1, "unknown"), (9, "unknown"), (10, "yes")])
def test_a_handful_of_lucky_customers_is_no_answer(customers: int, verdict: str) -> None:
    arms = [
        ArmResult(name, {"a": ShopResult(sums(0.1 + np.zeros(customers), shift))})
        for name, shift in (("local", 0.0), ("federated", 0.05))
    ]
    report = build_report(run_of(*arms))
    assert report["answer"]["verdict"] == verdict
    assert ("10 at least" in report["answer"]["details"][0]) == (verdict == "unknown")


@pytest.mark.parametrize(
    ("shift", "tail_shift", "verdict"), [(0.0, 0.1, "no"), (0.05, -0.1, "yes")]
)
def test_a_handful_of_customers_of_the_tail_decides_nothing(
    shift: float, tail_shift: float, verdict: str
) -> None:
    # One customer's interval had no width: he alone gained, or lost, for sure.
    tail = np.full(40, np.nan)
    tail[7] = 0.2

    def of(shift: float, tail_shift: float) -> dict[str, ShopResult]:
        found = sums(0.1 + np.zeros(40), shift)
        return {"a": ShopResult(dataclasses.replace(found, tail_ndcg=tail + tail_shift))}

    arms = ArmResult("local", of(0, 0)), ArmResult("federated-dp", of(shift, tail_shift))
    report = build_report(run_of(*arms))
    assert report["answer"]["verdict"] == verdict
    assert any("Of 1 customer with a tail product" in s for s in report["answer"]["details"])
    gain = report["arms"]["federated-dp"]["vs_local"]["tail_ndcg@20"]
    assert interval(gain) == f"{tail_shift:+.4f} (– to –)"
    assert interval(report["arms"]["local"]["vs_local"]["tail_ndcg@20"]) == "–"
    point = arm_figures(report["arms"]["federated-dp"])
    assert not pays(point, "tail_ndcg@20")
    assert pays(point, "ndcg@20") == (shift > 0)


def test_nothing_is_not_less_than_nothing() -> None:
    # "goes -9% on ndcg@20 and -0% on tail_ndcg@20 of the way"
    assert [percent(way) for way in (-0.004, 0.004, -0.006, None)] == ["0%", "0%", "-1%", "–"]


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "no"), (0.05, "yes")])
def test_where_nobody_bought_of_the_tail_the_whole_is_answered(shift: float, verdict: str) -> None:
    # As with one such customer, who decides nothing: all others were asked.
    def of(shift: float) -> dict[str, ShopResult]:
        found = sums(0.1 + np.zeros(40), shift)
        return {"a": ShopResult(dataclasses.replace(found, tail_ndcg=np.full(40, np.nan)))}

    arms = ArmResult("local", of(0)), ArmResult("federated-dp", of(shift), privacy=PRIVACY)
    report = build_report(run_of(*arms))
    assert report["answer"]["verdict"] == verdict
    said = report["answer"]["details"]
    assert "tail_ndcg@20 –, of nobody." in said[0]
    assert said[1].startswith("Of 0 customers with a tail product")
    assert external(render_report(report)) == []


def test_json_holds_null_and_never_nan() -> None:
    nothing = ShopResult(
        MetricSums.empty(N_ITEMS), ShopPart(reason="no customer in the test period")
    )
    one = ShopResult(sums([0.2]))
    untested = ShopResult(sums([math.nan]))
    arms = [
        ArmResult(name, {"empty": nothing, "one": one, "untested": untested})
        for name in ("local", "centralized", "federated")
    ]
    report = build_report(run_of(*arms))
    text = to_json(report)
    assert "NaN" not in text
    shops = json.loads(text)["arms"]["federated"]["per_shop"]
    assert shops["empty"]["ndcg@20"] is None
    assert shops["empty"]["vs_local"]["ndcg@20"]["mean"] is None
    assert shops["one"]["vs_local"]["ndcg@20"] == {"mean": 0.0, "low": None, "high": None}
    assert report["arms"]["federated"]["way"]["ndcg@20"] is None
    assert report["arms"]["federated"]["level_share"] == 1.0
    assert external(render_report(report)) == []
    assert "no customer in the test period" in render_report(report)


@pytest.mark.parametrize(
    "arms",
    [
        [],
        [arm("popularity", {"a": 0.0})],
        [arm("federated-dp", {"a": 0.0}, privacy=PRIVACY)],
        [arm("local", {"a": 0.0})],
        [arm("local", {"a": 0.0}), arm("federated", {"a": 0.03})],
        [ArmResult("local", {}), ArmResult("federated", {}, privacy=PRIVACY)],
    ],
    ids=lambda arms: "+".join(arm.name for arm in arms) or "none",
)
def test_a_run_of_some_arms_still_gives_report_page_and_table(arms: list[ArmResult]) -> None:
    report = build_report(run_of(*arms))
    page = render_report(report)
    assert external(page) == []
    assert all(arm.name in page for arm in arms)
    table = shown_text(result_table(report))
    assert "Should these shops federate?" in table.strip().splitlines()[-1]
    known = {"local", "federated"} <= {arm.name for arm in arms} and arms[0].shops
    assert (report["answer"]["verdict"] != "unknown") == bool(known)


def test_a_shop_that_took_no_part_is_named_with_its_reason() -> None:
    run = whole_run()
    dp = run.arms[4]
    part = ShopPart(took_part=False, reason="over-budget")
    away = dataclasses.replace(dp.shops["a"], part=part)
    dp = dataclasses.replace(dp, shops={**dp.shops, "a": away})
    report = build_report(dataclasses.replace(run, arms=[*run.arms[:4], dp]))
    assert report["arms"]["federated-dp"]["per_shop"]["a"]["took_part"] is False
    assert any(
        "1 of 2 shops took no part (a: over-budget)" in s for s in report["answer"]["details"]
    )
    assert "no: over-budget" in render_report(report)


def test_shops_that_are_not_measured_spend_and_stay_away_too() -> None:
    # Where the measured shops' caps were too low, an answer named an ε of 0.
    run = whole_run()
    others = {"far": ShopPart(9.5), "off": ShopPart(0.0, took_part=False, reason="its cap")}
    private = dataclasses.replace(run.arms[-1], others=others)
    report = build_report(run_of(*run.arms[:-1], private))
    arm = report["arms"]["federated-dp"]
    assert arm["privacy"]["epsilon"] == 9.5
    assert list(arm["per_shop"]) == ["a", "bb"]
    assert arm["other_shops"]["off"] == {"epsilon": 0.0, "took_part": False, "reason": "its cap"}
    assert "1 of 4 shops took no part (off: its cap)." in report["answer"]["details"]
    kept = arm_figures(arm)
    assert (kept["took_part"], kept["shops"], kept["spent"]) == (3, 4, 9.5)


def test_no_epsilon_is_told_as_less_than_it_is() -> None:
    run = whole_run()
    part = ShopPart(7.9941)
    shops = {key: dataclasses.replace(s, part=part) for key, s in run.arms[-1].shops.items()}
    private = dataclasses.replace(run.arms[-1], shops=shops)
    report = build_report(run_of(*run.arms[:-1], private))
    assert any("with ε = 7.995 for each" in text for text in report["answer"]["details"])
    table = shown_text(result_table(report))
    assert " 7.995\n" in table
    assert "7.99 " not in table
    assert render_report(report).count(">7.995<") == 1 + len(shops)


def test_ids_are_text_and_never_markup() -> None:
    evil = "<script>alert(1)</script><img src=x>"
    run = run_of(
        arm("local", {evil: 0.0}), arm("federated", {evil: 0.02}), warnings=[f"shop {evil}"]
    )
    page = render_report(build_report(run))
    assert evil not in page
    assert "<img" not in page
    assert external(page) == []
    assert "&lt;script&gt;alert(1)" in page


def test_a_name_with_quotes_is_whole_in_the_plots() -> None:
    # Plotly reads markup, but shows escapes of quotes as they stand.
    name = """L'Épicerie "du coin" & <co>"""
    run = run_of(arm("local", {name: 0.0}), arm("federated", {name: 0.02}))
    page = render_report(build_report(run))
    labels = [json.loads(found) for found in re.findall(r'"y":(\["[^]]*\])', page)]
    assert ["""L'Épicerie "du coin" &amp; &lt;co&gt;"""] in labels


@pytest.mark.parametrize(
    ("federated", "words"),
    [
        (0.05, "a loss of ndcg@20 and tail_ndcg@20 is certain, though without privacy there is a"),
        (-0.05, "can do alone, and a loss of ndcg@20 and tail_ndcg@20 is certain."),
    ],
)
def test_a_headline_does_not_hide_a_certain_loss(federated: float, words: str) -> None:
    # "No gain is certain" was all it said of arms that surely lose.
    run = run_of(
        arm("local", {"a": 0.0}),
        arm("federated", {"a": federated}),
        arm("federated-dp", {"a": -0.05}, privacy=PRIVACY),
    )
    answer = build_report(run)["answer"]
    assert answer["verdict"] == "no"
    assert words in answer["headline"]


def test_long_names_leave_the_plot_its_room_and_stay_apart() -> None:
    # One name of 60 letters left the gains of all shops a strip of an inch.
    start, end = "a" * 30, "z" * 30
    long = [start + "1" + end, start + "2" + end, "short"]
    run = run_of(arm("local", dict.fromkeys(long, 0.0)), arm("federated", dict.fromkeys(long, 0.1)))
    page = render_report(build_report(run))
    labels = [json.loads(found) for found in re.findall(r'"y":(\["[^]]*\])', page)]
    (shops,) = {tuple(sorted(found)) for found in labels if "short" in found}
    assert len(set(shops)) == 3
    assert all(len(shop) <= 32 for shop in shops)
    assert all(name in page for name in long)  # whole in the table


def test_a_run_without_federated_arms_has_no_empty_plot() -> None:
    shops = {"a": 0.0, "bb": 0.0}
    report = build_report(run_of(arm("local", shops), arm("centralized", shops)))
    gains = [html for title, _, html in report_figures(report) if "gain over local" in title]
    assert len(gains) == 2
    assert not any("legendonly" in html for html in gains)


def test_a_fifth_of_which_nothing_is_found_has_no_dot_on_a_logarithmic_axis() -> None:
    # plotly draws a line down to the axis there, as if there were some value.
    local = arm("local", {"a": 0.0})
    none = np.array([0.0, 0.0, 1.0, 1.0, 1.0])
    sums = dataclasses.replace(local.shops["a"].sums, quintile_ndcg=none)
    shops = {"a": dataclasses.replace(local.shops["a"], sums=sums)}
    page = render_report(build_report(run_of(dataclasses.replace(local, shops=shops))))
    (drawn,) = re.findall(r'"x":\["rarest"[^]]*\],"y":\[([^]]*)\]', page)
    assert drawn.split(",")[:2] == ["null", "null"]
    assert "has no dot" in page


def test_the_page_forbids_itself_to_fetch_anything() -> None:
    page = render_report(build_report(whole_run()))
    assert "default-src 'none'" in page
    assert page.count("plotly.js v") <= 2
    for title in (
        "gain over local, all",
        "gain over local, tail",
        "popularity of the product",
        "Quality over rounds",
        "ε spent by round",
        "Catalogue coverage",
    ):
        assert title in page


def test_customers_must_be_the_same_in_all_arms() -> None:
    short = ArmResult("federated", {"a": ShopResult(sums([0.1]))})
    with pytest.raises(InputError, match="differ between two arms"):
        build_report(run_of(arm("local", {"a": 0.0}), short))
    with pytest.raises(InputError, match="same name"):
        build_report(run_of(short, short))


def test_home_weights_are_means_over_shops() -> None:
    # A shop that mixes nothing, as one without a history, is no part of the mean.
    base = arm("local", {"a": 0.0, "b": 0.0, "c": 0.0})
    weights = [{"content": 0.2, "own_ease": 0.8, "kin": 1.0}, {"content": 0.6, "own_ease": 0.4}]
    shops = {
        key: dataclasses.replace(shop, home_weights=w)
        for (key, shop), w in zip(base.shops.items(), [*weights, None], strict=True)
    }
    report = build_report(run_of(base, ArmResult("federated", shops)))
    assert report["arms"]["federated"]["home_weights"] == pytest.approx(
        {"content": 0.4, "own_ease": 0.6, "kin": 0.5}
    )


def test_recommendations_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "recommendations.parquet"
    users, items = np.array(["u1", "u2"], object), np.array(["x", "y", "z"], object)
    rows = np.array([[2, 0], [1, -1]])
    scores = np.array([[0.9, 0.1], [0.5, -np.inf]])
    with RecommendationWriter(path) as writer:
        writer.write("federated", "all", "a", users, rows, scores, items)
        writer.write("federated", "tail", "a", users[:0], rows[:0], scores[:0], items)
        assert not path.exists()
    table = pq.read_table(path).to_pydict()
    assert table["item_id"] == ["z", "x", "y"]
    assert table["rank"] == [1, 2, 1]
    assert table["user_id"] == ["u1", "u1", "u2"]
    with pytest.raises(RuntimeError, match="stop"), RecommendationWriter(tmp_path / "no") as writer:
        raise RuntimeError("stop")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_runs_side_by_side(tmp_path: Path) -> None:
    for name, epsilon in (("eight", 8.0), ("two", 2.0)):
        run = whole_run()
        warnings = ["noise is seeded", *(["δ promises little"] if name == "two" else [])]
        experiment = {"privacy": {"target_epsilon": epsilon}}
        run = dataclasses.replace(run, experiment=experiment, warnings=warnings)
        report = build_report(run)
        write_report(tmp_path / name, report, render_report(report))
    found = compare([tmp_path / "eight", tmp_path / "two"], out=tmp_path / "both")
    assert found["changed"] == {"privacy.target_epsilon": {"eight": 8.0, "two": 2.0}}
    assert [run["name"] for run in found["runs"]] == ["eight", "two"]
    assert json.loads(to_json(found)) == found
    page = (tmp_path / "both" / "compare.html").read_text(encoding="utf-8")
    assert external(page) == []
    assert "privacy.target_epsilon" in page
    table = shown_text(comparison_table(found))
    assert "federated-dp" in table
    assert "privacy.target_epsilon: eight = 8.0, two = 2.0" in table
    # What the runs' own pages warn of is not lost here.
    assert "! eight, two: noise is seeded" in table
    assert "! two: δ promises little" in table
    assert page.count("noise is seeded") == 2
    assert page.count("δ promises little") == 1
    # On the narrowest terminal: a figure that is broken over two lines is another figure.
    gain = interval(found["runs"][0]["arms"]["federated-dp"]["vs_local"]["ndcg@20"])
    ends = re.sub(r"\b0\.", ".", gain[gain.index("(") + 1 : -1].replace(" to ", "…"))
    long = {**found, "runs": [{**run, "name": "a/long/way/" * 9} for run in found["runs"]]}
    assert ends in shown_text(comparison_table(long), 100)
    shutil.copytree(tmp_path / "eight", tmp_path / "elsewhere" / "eight")
    again = compare([tmp_path / "eight", tmp_path / "elsewhere" / "eight"])
    assert len(again["runs"]) == 2
    # One of the two was left out, in silence.
    with pytest.raises(ConfigError, match="eight is given twice"):
        compare([tmp_path / "eight", tmp_path / "two", tmp_path / "eight"])
    # Under two spellings it stood beside itself.
    with pytest.raises(ConfigError, match="eight is given twice"):
        compare([tmp_path / "eight", tmp_path / "two" / ".." / "eight"])


def test_a_folder_without_a_good_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finished runs"):
        compare([tmp_path])
    for text, words in (
        ("{", "not JSON"),
        ("[]", "not a report"),
        ('{"arms": {}}', "missing"),
        # Ended in tracebacks.
        ("[" * 10_000, "not JSON"),
        ('{"arms": []}', "arms"),
        ('{"arms": {"local": 1}}', "arms.local"),
    ):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(DataError, match=words):
            compare([tmp_path])


def test_what_a_report_lacks_is_named(tmp_path: Path) -> None:
    report = build_report(whole_run())
    del report["warnings"], report["arms"]["federated"]["way"]
    (tmp_path / "report.json").write_text(to_json(report), encoding="utf-8")
    words = r"report\.json .*missing \['warnings', 'arms\.federated\.way'\]"
    with pytest.raises(DataError, match=words):
        compare([tmp_path])


def test_machine_facts_are_plain() -> None:
    facts = machine_facts()
    assert facts["cpus"] >= 1
    assert facts["memory_gb"] > 0
    assert json.dumps(facts)
