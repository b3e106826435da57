"""What the page's plots draw is what the report says."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from report_support import PRIVACY, arm, run_of, sums, whole_run
from simulations.documents import Document
from simulations.report.building import ArmResult, RunResult, build_report
from simulations.report.plots import comparison_figures, report_figures


def traces(fragment: str) -> dict[str, dict[str, Any]]:
    """Return name -> what plotly is given to draw."""
    start = fragment.index("[", fragment.index("Plotly.newPlot("))
    drawn, _ = json.JSONDecoder().raw_decode(fragment[start:])
    return {trace.get("name", ""): trace for trace in drawn}


def plots(document: Document) -> dict[str, dict[str, dict[str, Any]]]:
    """Return title -> the traces of each plot of a report."""
    return {title: traces(fragment) for title, _, fragment in report_figures(document)}


def unequal() -> RunResult:
    """Return a run in which no two figures are the same, and shops' gains cross."""
    found = whole_run()
    shifts = {"federated": {"a": 0.01, "bb": 0.04, "c": 0.02}, "federated-dp": {"a": 0.03, "bb": 0}}
    arms = [arm("local", {"a": 0.0, "bb": 0.0, "c": 0.0}), arm("home-only", {"a": 0.0, "bb": 0.0})]
    arms += [dataclasses.replace(arm(n, s), rounds=found.arms[3].rounds) for n, s in shifts.items()]
    arms = [_unlike(one, place) for place, one in enumerate(arms, 1)]
    arms[-1] = dataclasses.replace(arms[-1], privacy=PRIVACY)
    return run_of(*arms)


def _unlike(found: ArmResult, place: int) -> ArmResult:
    stream = np.random.default_rng(place)
    shops = {}
    for number, (key, shop) in enumerate(found.shops.items(), 1):
        exposure = np.where(np.arange(30) < 5 * place, number, 0)
        of = dataclasses.replace(
            shop.sums,
            exposure=exposure,
            tail_ndcg=shop.sums.ndcg * stream.random(40) / place,
            quintile_ndcg=np.arange(1.0, 6.0) * place,
            quintile_recall=np.arange(5.0, 0.0, -1.0),
        )
        weights = {"content": 0.1 * place} | ({"kin": 0.5} if place > 2 else {})
        shops[key] = dataclasses.replace(shop, sums=of, home_weights=weights)
    return dataclasses.replace(found, shops=shops)


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("ndcg@20", "Each merchant's gain over local, all products"),
        ("tail_ndcg@20", "Each merchant's gain over local, tail products"),
    ],
)
def test_a_merchants_gain_stands_beside_its_name(metric: str, title: str) -> None:
    report = build_report(unequal())
    drawn = plots(report)[title]
    assert list(drawn) == ["federated-dp", "federated", "home-only"]
    first = report["arms"]["federated-dp"]["per_shop"]
    rest = report["arms"]["federated"]["per_shop"]["c"]["vs_local"][metric]["mean"]
    order = {**{k: s["vs_local"][metric]["mean"] for k, s in first.items()}, "c": rest}
    assert drawn["federated"]["y"] == sorted(order, key=lambda key: order[key])
    for name, trace in drawn.items():
        shops = report["arms"][name]["per_shop"]
        for key, x, half in zip(trace["y"], trace["x"], trace["error_x"]["array"], strict=True):
            if key not in shops:
                assert x is None
                continue
            gain = shops[key]["vs_local"][metric]
            assert x == gain["mean"]
            assert half == gain["high"] - gain["mean"]


def test_quality_coverage_rounds_and_weights_are_those_of_the_report() -> None:
    report = build_report(unequal())
    drawn = plots(report)
    for name, found in report["arms"].items():
        fifths = drawn["Quality by popularity of the product bought"][name]
        assert fifths["y"] == found["quintiles"]["ndcg@20"]
    (coverage,) = drawn["Catalogue coverage"].values()
    assert dict(zip(coverage["y"], coverage["x"], strict=True)) == {
        name: found["metrics"]["coverage@20"] for name, found in report["arms"].items()
    }
    rounds = drawn["Quality over rounds"]["federated ndcg@20"]
    assert rounds["x"] == [1, 2]
    assert rounds["y"] == pytest.approx([0.11, 0.12])
    assert drawn["ε spent by round"]["federated-dp"]["y"] == [2.0, 4.0]
    assert "federated tail_ndcg@20" not in drawn["Quality over rounds"]
    for part, bars in drawn["What shops mix at home"].items():
        assert dict(zip(bars["y"], bars["x"], strict=True)) == {
            name: found["home_weights"].get(part) for name, found in report["arms"].items()
        }


def test_of_several_draws_each_is_a_dot_and_all_other_plots_show_the_mean() -> None:
    base = np.linspace(0.1, 0.2, 40)
    stream = np.random.default_rng(0)
    local, one, two, three = (
        {"a": sums(base + shift + 0.01 * stream.normal(size=40))} for shift in (0, 0.01, 0.02, 0.06)
    )
    shops = {"a": dataclasses.replace(arm("federated-dp", {"a": 0}).shops["a"], sums=one["a"])}
    private = ArmResult("federated-dp", shops, PRIVACY, further_draws=[two, three])
    alone = ArmResult("local", {"a": dataclasses.replace(shops["a"], sums=local["a"])})
    report = build_report(run_of(alone, private))
    draws = report["arms"]["federated-dp"]["draws"]
    gain = draws["vs_local"]["ndcg@20"]
    drawn = plots(report)
    each, mean = drawn["The gain of each draw of the noise"].values()
    place = each["y"].index("ndcg@20")
    assert each["x"][place : place + 3] == gain["values"]
    assert mean["x"][mean["y"].index("ndcg@20")] == gain["mean"]
    assert mean["error_x"]["array"][mean["y"].index("ndcg@20")] == gain["high"] - gain["mean"]
    title = "Each merchant's gain over local, all products"
    assert drawn[title]["federated-dp"]["x"] == [pytest.approx(gain["mean"])]
    fifths = drawn["Quality by popularity of the product bought"]["federated-dp"]["y"]
    assert fifths == draws["quintiles"]["ndcg@20"]
    values = [np.nansum(found["a"].ndcg) / 40 for found in (one, two, three)]
    assert fifths == pytest.approx([np.mean(values)] * 5)


def test_runs_side_by_side_keep_a_place_for_an_arm_that_one_lacks() -> None:
    first, second = build_report(unequal()), build_report(whole_run())
    del second["arms"]["federated-dp"]
    runs = [{"name": n, "arms": d["arms"]} for n, d in (("one", first), ("two", second))]
    for metric, _, fragment in comparison_figures({"runs": runs}):
        drawn = traces(fragment)
        for name, trace in drawn.items():
            assert trace["x"] == ["one", "two"]
            for run, y in zip(runs, trace["y"], strict=True):
                known = run["arms"].get(name)
                assert y == (known and known["metrics"][metric])
    assert set(drawn) == {*first["arms"], *second["arms"]}
