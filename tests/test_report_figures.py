"""Each figure of a report by hand: counts, intervals, shares, and what the answer makes of them."""

import dataclasses
import html
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from report_support import PRIVACY, arm, run_of, shown_text, sums, whole_run
from simulations.audit.section import _arm, _canary
from simulations.experiment import ARMS
from simulations.report.answer import answer, away_words, interval, percent
from simulations.report.building import ArmResult, ShopPart, ShopResult, build_report, write_report
from simulations.report.compare import compare
from simulations.report.glossary import words_of
from simulations.report.page import render_report
from simulations.report.recommendations import RecommendationWriter
from simulations.report.tables import HEADINGS, all_cells, result_table
from simulations.sweep.figures import arm_figures
from simulations.sweep.page import _cells


def test_customers_are_counted_whether_found_or_not_and_shops_have_their_own_interval() -> None:
    """Who had a target and found nothing counts; who had none does not widen an interval."""
    ndcg = np.array([0.0, 0.3, 0.1, 0.2, np.nan, np.nan])
    found = dataclasses.replace(
        sums(ndcg), tail_ndcg=np.array([0.0, 0.5, np.nan, np.nan, np.nan, np.nan])
    )
    base = dataclasses.replace(sums(np.where(np.isnan(ndcg), np.nan, 0.1)))
    of = {name: {"a": ShopResult(s)} for name, s in (("local", base), ("federated", found))}
    report = build_report(run_of(*(ArmResult(name, shops) for name, shops in of.items())))
    whole = report["arms"]["federated"]
    shop = whole["per_shop"]["a"]
    assert (whole["customers"], whole["customers_with_targets"]) == (6, 4)
    assert whole["customers_with_tail_targets"] == 2
    assert (shop["customers"], shop["customers_with_targets"]) == (6, 4)
    gain = shop["vs_local"]["ndcg@20"]
    # Gains -.1, .2, 0, .1: mean .05, their standard deviation .1291.
    assert gain["mean"] == pytest.approx(0.05)
    assert gain["high"] - gain["mean"] == pytest.approx(1.96 * 0.129099 / 2, rel=1e-4)
    assert gain["mean"] - gain["low"] == pytest.approx(gain["high"] - gain["mean"])


def test_shops_figures_make_those_of_all_by_the_counts_beside_them() -> None:
    """Those of the tail did not: over how many customers each shop has its mean was not told."""
    shops = {}
    for name, tail in (("a", [0.1, 0.4, np.nan]), ("b", [0.9, np.nan, np.nan])):
        shop = dataclasses.replace(sums([0.2, 0.5, 0.3]), tail_ndcg=np.array(tail))
        shops[name] = ShopResult(shop)
    whole = build_report(run_of(ArmResult("local", shops)))["arms"]["local"]
    weights = [shop["customers_with_tail_targets"] for shop in whole["per_shop"].values()]
    values = [shop["tail_ndcg@20"] for shop in whole["per_shop"].values()]
    assert weights == [2, 1]
    assert np.average(values, weights=weights) == pytest.approx(whole["metrics"]["tail_ndcg@20"])


def test_level_counts_shops_that_were_asked_and_that_local_has() -> None:
    local = arm("local", {"a": 0.0, "b": 0.0, "asked nobody": np.nan})
    shifts = {"a": -0.05, "b": 0.05, "asked nobody": np.nan, "not in local": -0.1}
    other = arm("federated", shifts)
    report = build_report(run_of(local, other))
    assert report["arms"]["federated"]["level_share"] == 0.5


def test_a_share_of_shops_says_of_how_many_it_is() -> None:
    """A shop that opens late is tested at nobody: 100% of the shops was that of the others."""
    none = ShopResult(sums([math.nan, math.nan]))
    arms = [arm(name, {"a": 0.0, "bb": 0.0}) for name in ("local", "federated")]
    told = []
    for more in ({}, {"late": none}):
        run = (dataclasses.replace(one, shops={**one.shops, **more}) for one in arms)
        told.append(" ".join(build_report(run_of(*run))["answer"]["details"]))
    assert "100% of the shops are level" in told[0]
    assert "100% of the 2 shops tested, of 3, are level" in told[1]


def test_the_answer_says_at_how_many_customers_it_was_found() -> None:
    # Of ratings that most people give in one sitting, 122 of 734 customers are behind the answer.
    some = ShopResult(sums([*np.linspace(0.1, 0.2, 12), *[math.nan] * 5]))
    arms = [ArmResult(name, {"a": some}) for name in ("local", "federated")]
    told = build_report(run_of(*arms))["answer"]["details"]
    assert any(text.startswith("Tested: 12 of 17 customers with a history") for text in told)


def test_the_page_says_what_its_arms_and_figures_are() -> None:
    """Who reads the page alone met home-only, gini@20 and ε without a word on them."""
    words = dict(words_of(ARMS))
    assert set(ARMS) < set(words)
    page = html.unescape(render_report(build_report(whole_run())))
    headings = {*re.findall("<th>([a-z_]+@20)</th>", page), "ε"}
    assert (
        {"ndcg@20", "gini@20"} < headings <= {name for word in words for name in word.split(", ")}
    )
    assert words["home-only"] in page
    assert words["popularity"] not in page  # no arm of this run


def test_the_better_alone_is_chosen_for_each_metric_and_local_where_they_are_alike() -> None:
    base = sums(0.1 + 0.001 * np.arange(40))

    def of(name: str, shift: float, tail: float) -> ArmResult:
        shifted = dataclasses.replace(
            base, ndcg=base.ndcg + shift, tail_ndcg=base.tail_ndcg + tail, recall=base.recall
        )
        return ArmResult(name, {"a": ShopResult(shifted)})

    arms = of("local", 0.0, 0.02), of("home-only", 0.01, 0.0), of("federated", 0.02, 0.01)
    versus = build_report(run_of(*arms))["arms"]["federated"]["vs_better"]
    assert versus["ndcg@20"]["against"] == "home-only"
    assert versus["tail_ndcg@20"]["against"] == "local"
    assert versus["recall@20"]["against"] == "local"
    assert versus["ndcg@20"]["mean"] == pytest.approx(0.01)
    assert versus["tail_ndcg@20"]["mean"] == pytest.approx(-0.01)
    # A mean of nobody is no better than any.
    none = ArmResult("home-only", {"b": ShopResult(sums([math.nan]))})
    versus = build_report(run_of(arms[0], none, arms[2]))["arms"]["federated"]["vs_better"]
    assert {gain["against"] for gain in versus.values()} == {"local"}


def test_there_is_no_way_to_a_goal_that_lies_behind() -> None:
    # Federated would have gone twice the way, and have lost by it.
    shops = {"local": 0.0, "centralized": -0.05, "federated": -0.1}
    report = build_report(run_of(*(arm(name, {"a": s}) for name, s in shops.items())))
    assert report["arms"]["federated"]["way"]["ndcg@20"] is None


@pytest.mark.parametrize(("ceiling", "share"), [(0.0, None), (0.05, "40%")])
def test_no_share_is_told_of_a_way_that_may_be_none(ceiling: float, share: str | None) -> None:
    """A dash and words, where the gain of centralized may be none: it was told as -22325%."""
    shops = {"local": 0.0, "centralized": ceiling, "federated": 0.02}
    document = build_report(run_of(*(arm(name, {"a": s}) for name, s in shops.items())))
    federated = document["arms"]["federated"]
    federated["way"] = dict.fromkeys(federated["way"], 0.4 if share else -223.25)
    document["answer"] = answer(document)
    cells = dict(zip(HEADINGS, all_cells(document["arms"])["federated"], strict=True))
    assert cells["way"] == cells["tail way"] == (share or "–")
    told = " ".join(document["answer"]["details"])
    none = "No share of the way from local to centralized can be told on ndcg@20 and tail_ndcg@20"
    assert (none in told) is not bool(share)
    assert ("federated goes 40% on ndcg@20 and 40% on tail_ndcg@20 of the way" in told) is bool(
        share
    )
    assert "22325%" not in told + shown_text(result_table(document))
    assert "22325%" not in render_report(document)


@pytest.mark.parametrize(("asked", "share"), [(9, "–"), (10, "40%")])
def test_no_share_is_told_of_a_way_that_a_handful_had(asked: int, share: str) -> None:
    """Beside 'tail_ndcg@20 says nothing for sure' stood how much of the tail's way was gone."""
    arms = [
        arm(name, {"a": shift})
        for name, shift in (("local", 0.0), ("centralized", 0.05), ("federated", 0.02))
    ]
    for one in arms:
        one.shops["a"].sums.tail_ndcg[asked:] = np.nan
    document = build_report(run_of(*arms))
    document["arms"]["federated"]["way"] = dict.fromkeys(("ndcg@20", "tail_ndcg@20"), 0.4)
    told = answer(document)["details"]
    cells = dict(zip(HEADINGS, all_cells(document["arms"])["federated"], strict=True))
    assert (cells["way"], cells["tail way"]) == ("40%", share)
    (way,) = (sentence for sentence in told if "of the way" in sentence and "goes" in sentence)
    assert ("tail_ndcg@20" in way) is (share != "–")


def test_a_bound_that_is_only_an_upper_one_is_told_as_such() -> None:
    loose = dataclasses.replace(PRIVACY, statement={"accountant": {"upper_bound": True}})
    for privacy, expected in ((PRIVACY, False), (loose, True)):
        report = build_report(run_of(arm("federated-dp", {"a": 0.0}, privacy=privacy)))
        assert report["arms"]["federated-dp"]["privacy"]["upper_bound"] is expected


@pytest.mark.parametrize(
    ("level", "shift", "tail", "verdict"),
    [
        (8, 0.05, 0.0, "yes"),
        (7, 0.05, 0.0, "mixed"),
        (10, 0.05, -0.05, "mixed"),
        (10, 0.0, 0.05, "yes"),
        (10, -0.0005, 0.05, "mixed"),
    ],
)
def test_a_plain_yes_takes_four_shops_of_five_and_no_loss(
    level: int, shift: float, tail: float, verdict: str
) -> None:
    base = sums(np.full(40, 0.1))
    shops = {}
    for number in range(10):
        own = shift if number < level else -0.002
        found = dataclasses.replace(base, ndcg=base.ndcg + own, tail_ndcg=base.tail_ndcg + tail)
        shops[str(number)] = ShopResult(found, ShopPart(8.0))
    local = ArmResult("local", {key: ShopResult(base) for key in shops})
    report = build_report(run_of(local, ArmResult("federated-dp", shops, privacy=PRIVACY)))
    assert report["answer"]["verdict"] == verdict


def test_what_may_be_a_loss_is_none_for_sure() -> None:
    base = sums(np.full(40, 0.1))
    either_way = base.tail_ndcg + np.where(np.arange(40) % 2, 0.03, -0.031)
    found = dataclasses.replace(base, ndcg=base.ndcg + 0.05, tail_ndcg=either_way)
    arms = (ArmResult(n, {"a": ShopResult(s)}) for n, s in (("local", base), ("federated", found)))
    report = build_report(run_of(*arms))
    gain = report["arms"]["federated"]["vs_better"]["tail_ndcg@20"]
    assert gain["low"] < gain["mean"] < 0 < gain["high"]
    assert report["answer"]["verdict"] == "yes"


def test_a_gain_of_nought_with_an_interval_is_told_and_a_share_of_nought_too() -> None:
    assert interval({"mean": 0.0, "low": -0.01, "high": 0.01}) == "+0.0000 (-0.0100 to +0.0100)"
    assert percent(0.0) == "0%"
    assert percent(None) == "–"


def test_of_many_shops_that_stayed_away_five_are_named_and_the_others_counted() -> None:
    away = {f"s{n}": {"took_part": False, "reason": "its cap"} for n in range(6)}
    words = away_words({**away, "there": {"took_part": True, "reason": ""}})
    assert words.startswith("6 of 7 shops took no part (s0: its cap; ")
    assert words.endswith("s4: its cap; and 1 more)")


def test_recommendations_hold_each_places_own_score(tmp_path: Path) -> None:
    path = tmp_path / "recommendations.parquet"
    users, items = np.array(["u1", "u2"], object), np.array(["x", "y", "z"], object)
    with RecommendationWriter(path) as writer:
        rows, scores = np.array([[2, 0], [1, -1]]), np.array([[0.9, 0.1], [0.5, -np.inf]])
        writer.write("local", "tail", "a", users, rows, scores, items)
    table = pq.read_table(path).to_pydict()
    assert table["score"] == pytest.approx([0.9, 0.1, 0.5])
    assert set(zip(table["arm"], table["list"], strict=True)) == {("local", "tail")}


def test_each_cell_of_the_table_is_its_headings() -> None:
    shifts = {"local": 0.0, "centralized": 0.05, "federated": 0.02}
    arms = [arm(name, {"a": shift}) for name, shift in shifts.items()]
    document = build_report(run_of(*arms))
    found = document["arms"]["federated"]
    found["way"] = {"ndcg@20": 0.25, "tail_ndcg@20": 0.75}
    found["metrics"] |= {"recall@20": 0.5, "tail_recall@20": 0.6}
    cells = dict(zip(HEADINGS, all_cells(document["arms"])["federated"], strict=True))
    assert cells["ndcg@20"] == f"{found['metrics']['ndcg@20']:.4f}"
    assert cells["tail_ndcg@20"] == f"{found['metrics']['tail_ndcg@20']:.4f}"
    assert cells["gain"] == interval(found["vs_local"]["ndcg@20"])
    assert cells["tail gain"] == interval(found["vs_local"]["tail_ndcg@20"])
    assert (cells["way"], cells["tail way"], cells["level"]) == ("25%", "75%", "100%")


def test_no_epsilon_of_a_sweep_or_an_audit_is_told_as_less_than_it_is() -> None:
    shops = arm("federated-dp", {"a": 0.0}).shops
    spent = {key: dataclasses.replace(shop, part=ShopPart(7.9941)) for key, shop in shops.items()}
    report = build_report(run_of(ArmResult("federated-dp", spent, PRIVACY)))
    assert _cells(arm_figures(report["arms"]["federated-dp"]), [])[-1] == "7.995"
    record = {"arm": "federated-dp", "epsilon": 7.9941, "claimed_epsilon": 7.9941, "canaries": 9}
    record |= {"step": "sound", "refuted": False, "lower_bound": 1.0, "correct": 5, "guesses": 9}
    assert _canary(record)[1][0] == "7.995"
    assert _arm(record) == "federated-dp (ε = 7.995)"


def test_whatever_differs_between_runs_is_told(tmp_path: Path) -> None:
    """A setting that one run lacks, the seed, and the data differ like any other setting."""
    for name, seed in (("one", 3), ("two", 4)):
        run = dataclasses.replace(whole_run(), seed=seed)
        if name == "two":
            experiment = {**run.experiment, "data": {"path": "mine"}}
            run = dataclasses.replace(run, data={**run.data, "shops": 5}, experiment=experiment)
        report = build_report(run)
        write_report(tmp_path / name / "out", report, render_report(report))
    found = compare([tmp_path / "one" / "out", tmp_path / "two" / "out"])
    one, two = (str(tmp_path / name / "out") for name in ("one", "two"))
    # Folders of one name go by their paths.
    assert found["changed"] == {
        "seed": {one: 3, two: 4},
        "data.path": {one: None, two: "mine"},
        "data facts: shops": {one: 2, two: 5},
    }
