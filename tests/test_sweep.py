"""A sweep: what is measured once, what is kept, and from where on federating pays."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from common.errors import ConfigError
from common.metrics import MetricSums
from report_support import shown_text
from simulations.report.answer import pays
from simulations.report.building import ShopPart
from simulations.sweep.figures import (
    _knees,
    _sentences,
    customers_a_shop,
    first_of,
    goes_half,
    lines,
    sweep_document,
)
from simulations.sweep.page import _measured_ticks, render_sweep, sweep_table
from simulations.sweep.plan import EPSILONS, Point, read_sweep
from simulations.sweep.run import run_sweep
from simulations.sweep.store import SweepFolder

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "simulations" / "experiments"
TINY = f"""
title = "three small shops"
experiment = "{EXPERIMENTS / "marketplace.toml"}"
set = [
  "data.marketplace.products=120", "data.marketplace.shops=3", "data.marketplace.groups=12",
  "data.marketplace.visits_log_mean=1.2", "federated.rounds=1", "federated.model.dimension=4",
  "federated-dp.rounds=1", "federated-dp.model.learned_items=12", "federated-dp.first_norms=[]",
]
[[grid]]
vary = "data.marketplace.customers_per_shop"
values = [8, 16]
units = ["customer"]
epsilons = [1, 8]
"""


class Silent:
    """Watches, and stops the sweep when it has seen enough."""

    def __init__(self, stop_at: str = "", after: int = 0) -> None:
        self.stages: list[str] = []
        self._stop_at, self._left = stop_at, after

    def stage(self, text: str, total: int | None = None) -> None:
        self.stages.append(text)

    def step(self, text: str = "") -> None:
        if self._stop_at and self.stages[-1].startswith(self._stop_at):
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def watched(toml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Silent]:
    out, watcher = tmp_path_factory.mktemp("sweeps") / "whole", Silent()
    run_sweep(read_sweep(toml), out, watcher)
    return out, watcher


@pytest.fixture(scope="module")
def whole(watched: tuple[Path, Silent]) -> Path:
    return watched[0]


def figures(folder: Path) -> dict[str, Any]:
    """Return a sweep's document without what time and machine decide."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            kept = {k: v for k, v in value.items() if k not in ("seconds", "peak_mb", "machine")}
            return {k: timeless(v) for k, v in kept.items()}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    found: dict[str, Any] = timeless(json.loads((folder / "sweep.json").read_text("utf-8")))
    return found


# --- the definition --------------------------------------------------------------------------


def test_a_sweep_is_its_grids_without_repeats(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text(
        TINY + '[[grid]]\nset = ["data.marketplace.customers_per_shop=8"]\nepsilons = [8, 2]\n'
    )
    sweep = read_sweep(path)
    assert len(sweep.settings) == 2
    assert sweep.points == (
        Point(0, "customer", 1.0),
        Point(0, "customer", 8.0),
        Point(0, "customer", 2.0),
        Point(1, "customer", 1.0),
        Point(1, "customer", 8.0),
    )
    promise = sweep.point_experiment(sweep.points[2])
    assert promise.privacy.target_epsilon == 2.0
    assert promise.run.engine == "in-process"
    assert promise.data.marketplace.customers_per_shop == 8


def test_an_experiment_is_swept_over_epsilon() -> None:
    sweep = read_sweep(EXPERIMENTS / "demo.toml", ["run.seed=3"])
    assert [p.epsilon for p in sweep.points] == list(EPSILONS)
    assert {p.unit for p in sweep.points} == {"customer"}
    assert sweep.settings[0].experiment.run.seed == 3


def test_a_grid_without_units_is_of_the_experiment_s_own(tmp_path: Path) -> None:
    # Its points promised something for each customer, whatever the experiment's file says.
    path = tmp_path / "baskets.toml"
    experiment = tmp_path / "experiment.toml"
    text = (EXPERIMENTS / "marketplace.toml").read_text(encoding="utf-8")
    assert 'unit = "customer"' in text
    experiment.write_text(text.replace('unit = "customer"', 'unit = "basket"'))
    path.write_text('experiment = "experiment.toml"\n[[grid]]\nepsilons = [8]\n')
    for file in (path, experiment):
        assert {point.unit for point in read_sweep(file).points} == {"basket"}


def test_the_shipped_sweeps_can_be_read() -> None:
    for path in sorted((ROOT / "simulations" / "sweeps").glob("*.toml")):
        assert read_sweep(path).points, path


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("epsilon = [1]", "unknown key 'grid.1.epsilon'"),
        ('set = ["privacy.unit=basket"]', "privacy.unit is the sweep's own"),
        ('vary = "run.seed"', "vary and values go together"),
        ('set = ["data.sauce=x"]', "sauce"),
        ("epsilons = [8, -1]", r"grid\.1\.epsilons\.1: Input should be greater than 0"),
        ("epsilons = [nan]", r"grid\.1\.epsilons\.0"),
        ("epsilons = []", r"grid\.1\.epsilons: .*at least 1"),
        ("units = []", r"grid\.1\.units: .*at least 1"),
    ],
)
def test_a_wrong_sweep_is_refused_with_the_key(tmp_path: Path, line: str, word: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"{TINY}[[grid]]\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=word):
        read_sweep(path)


def test_points_that_are_nearly_alike_have_files_of_their_own() -> None:
    # One point's figures stood under both.
    near = [Point(0, "customer", epsilon).name for epsilon in (8.0, 8.000001, 0.5)]
    assert near == ["00-customer-8", "00-customer-8.000001", "00-customer-0.5"]


# --- a run -----------------------------------------------------------------------------------


def test_a_point_that_cannot_be_run_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    path, watcher = tmp_path / "far.toml", Silent()
    path.write_text(TINY.replace("[1, 8]", "[8, 1e6]"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"target_epsilon = 1e\+06 is too large"):
        run_sweep(read_sweep(path), tmp_path / "out", watcher)
    assert [stage.partition(" ")[0] for stage in watcher.stages] == ["reading"]


def test_it_leaves_figures_and_no_models(whole: Path) -> None:
    document = json.loads((whole / "sweep.json").read_text("utf-8"))
    assert document["finished"] == document["planned"] == 4
    names = {path.name for path in whole.iterdir()}
    assert names == {
        ".lock", "points", "settings", "sweep-identity.json", "sweep.html", "sweep.json",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in (whole / "points").iterdir()) < 100_000
    for point in document["points"]:
        # What the ledgers add up to, not what was asked for.
        assert 0.9 * point["epsilon"] < point["spent"] <= point["epsilon"]
        assert point["took_part"] == point["shops"] == 3
        assert point["vs_local"]["ndcg@20"]["low"] <= point["vs_local"]["ndcg@20"]["high"]
    small, large = document["settings"]
    assert small["customers_a_shop"] < large["customers_a_shop"]
    assert list(small["arms"]) == ["local", "home-only", "federated", "centralized"]
    experiments = [e["data"]["marketplace"] for e in document["experiments"]]
    assert [e["customers_per_shop"] for e in experiments] == [8, 16]


def test_what_does_not_depend_on_the_promise_is_trained_once(
    watched: tuple[Path, Silent],
) -> None:
    stages = watched[1].stages
    trained = [stage for stage in stages if stage.startswith("training federated in")]
    assert len(trained) == 2  # once for each size, not for each point
    assert sum(stage == "arm local" for stage in stages) == 2
    assert sum(stage == "arm federated-dp" for stage in stages) == 4
    # Of points that take seconds "about 0 min left" was told.
    assert any("1 of 4 are finished, less than a minute left" in stage for stage in stages)


@pytest.mark.parametrize(
    ("stop_at", "after"),
    [
        ("training federated-dp", 1),
        pytest.param("arm home-only", 1, marks=pytest.mark.slow),
        pytest.param("arm federated-dp", 4, marks=pytest.mark.slow),
    ],
)
def test_the_same_command_goes_on_and_changes_no_figure(
    toml: Path, whole: Path, tmp_path: Path, stop_at: str, after: int
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(read_sweep(toml), out, Silent(stop_at, after))
    kept = {p: p.stat().st_mtime_ns for p in out.glob("points/*")}
    assert len(kept) < 4
    run_sweep(read_sweep(toml), out, Silent())
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())
    assert figures(out) == figures(whole)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_sweep_that_was_killed_goes_on(toml: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simulations", "sweep", str(toml), "--out", str(out)]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(out.glob("points/*.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(list(out.glob("points/*.json"))) < 4
    done = subprocess.run(
        [*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
    )
    assert json.loads(done.stdout) == json.loads((out / "sweep.json").read_text("utf-8"))
    assert figures(out) == figures(whole)


def test_another_sweep_may_not_go_on_there(toml: Path, whole: Path, tmp_path: Path) -> None:
    before = (whole / "sweep.json").read_bytes()
    with pytest.raises(ConfigError, match="holds another sweep"):
        run_sweep(read_sweep(toml, ["run.seed=1"]), whole, Silent())
    assert (whole / "sweep.json").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is in use"):
        run_sweep(read_sweep(toml), other, Silent())
    assert [path.name for path in other.iterdir()] == ["mine.txt"]


def test_the_page_is_one_file_with_the_curves_in_it(whole: Path) -> None:
    page = (whole / "sweep.html").read_text("utf-8")
    document = json.loads((whole / "sweep.json").read_text("utf-8"))
    assert "Plotly.newPlot" in page
    assert page.count('class="plotly-graph-div"') == 12  # 3 lines of axes x 4 plots
    assert "default-src 'none'" in page
    assert "src=" not in page.split("<body>")[1]
    for sentence in document["answer"]:
        assert sentence in page
    # A long place was cut before the setting that alone told its rows apart.
    assert page.count('<table class="whole">') == 2
    assert document["rule"][:60] in page


def test_the_terminals_table_has_every_point_and_the_answer(whole: Path) -> None:
    document = json.loads((whole / "sweep.json").read_text("utf-8"))
    told = shown_text(sweep_table(document))
    rows = [line.split() for line in told.splitlines()]
    assert document["points"]
    for found in document["points"]:
        head = [f"{found['customers_a_shop']:.0f}", found["unit"], f"{found['epsilon']:g}"]
        head += [
            f"{found['metrics']['ndcg@20']:.4f}",
            f"{found['vs_local']['ndcg@20']['mean']:+.4f}",
        ]
        assert head in [row[:5] for row in rows]
    for sentence in document["answer"]:
        assert sentence in told


def test_a_sweep_tells_no_share_of_a_way_that_may_be_none(whole: Path) -> None:
    # Its page and table had it, where a run's own have a dash.
    document = json.loads((whole / "sweep.json").read_text("utf-8"))
    for found in document["points"]:
        found["way"] = {"ndcg@20": -223.25, "tail_ndcg@20": 0.4375}
    for setting in document["settings"]:
        pooled = setting["arms"]["centralized"]
        pooled |= {"customers_with_targets": 40, "customers_with_tail_targets": 40}
        for metric, low in (("ndcg@20", -0.001), ("tail_ndcg@20", 0.001)):
            pooled["vs_local"][metric]["low"] = low
    for shown in (shown_text(sweep_table(document)), render_sweep(document)):
        assert "44%" in shown
        assert "22325" not in shown
        assert "-223.25" not in shown


def test_the_terminals_points_are_told_apart_as_the_pages_are(whole: Path) -> None:
    document = json.loads((whole / "sweep.json").read_text("utf-8"))
    points = [
        {**document["points"][0], "curve": "real", "apart": f"privacy.trust={trust}"}
        for trust in ("shop", "federation")
    ]
    told = shown_text(sweep_table({**document, "title": "prices [draft]", "points": points}))
    for point in points:
        assert f"prices [draft], real, {point['apart']}\n" in re.sub(" +\n", "\n", told)


def test_a_page_says_how_much_of_a_sweep_is_missing(toml: Path, whole: Path) -> None:
    sweep = read_sweep(toml)
    folder = SweepFolder(whole)
    first = folder.read("points/00-customer-1")
    setting = folder.read("settings/00")
    document = sweep_document(sweep, [setting, None], [first, None, None, None])
    assert "1 of 4 points are finished" in render_sweep(document)
    assert document["answer"] == []
    assert "There are not yet two points" in render_sweep(document)


def test_what_a_run_would_warn_of_a_sweep_does_too(toml: Path, whole: Path, tmp_path: Path) -> None:
    # A δ that promises little, or groups that the products lack, were said by a run alone.
    text = toml.read_text(encoding="utf-8").replace("values = [8, 16]", "values = [8]")
    changes = ["privacy.target_delta=0.5", "federated-dp.model.groups=colour"]
    (tmp_path / "loose.toml").write_text(text.replace("[1, 8]", "[8]"), encoding="utf-8")
    document = run_sweep(read_sweep(tmp_path / "loose.toml", changes), tmp_path / "x", Silent())
    _, little, groups = document["warnings"]
    assert little.startswith("δ = 0.5 promises little")
    assert groups.startswith("the products have no columns for the groups colour")
    assert groups.endswith("(federated-dp.model.groups names others)")
    page = (tmp_path / "x" / "sweep.html").read_text("utf-8")
    told = shown_text(sweep_table(document))
    for warning in document["warnings"]:
        assert warning in page
        assert f"! {warning}" in told
    assert json.loads((whole / "sweep.json").read_text("utf-8"))["warnings"] == [
        "the data are synthetic"
    ]


def test_who_took_no_part_in_a_point_is_named(toml: Path, tmp_path: Path) -> None:
    # The points alone counted them, in the JSON.
    text = toml.read_text(encoding="utf-8").replace("values = [8, 16]", "values = [8]")
    (tmp_path / "capped.toml").write_text(text.replace("[1, 8]", "[8]"), encoding="utf-8")
    sweep = read_sweep(tmp_path / "capped.toml", ["privacy.caps.shop-002=0.5"])
    *_, away = run_sweep(sweep, tmp_path / "x", Silent())["warnings"]
    assert away.startswith("data.marketplace.customers_per_shop = 8, federated-dp with ε = 7.994 ")
    assert "1 of 3 shops took no part (shop-002: the plan costs more than the shop's cap" in away


def test_points_that_differ_in_the_plan_alone_are_told_apart(whole: Path, tmp_path: Path) -> None:
    # Grids without names that changed the plan alone ended the sweep where its page was drawn.
    head = TINY.split("[[grid]]")[0]
    grids = [f'[[grid]]\nset = ["federated-dp.rounds={n}"]\nepsilons = [1, 8]\n' for n in (1, 2)]
    path = tmp_path / "plans.toml"
    path.write_text(head + "".join(grids), encoding="utf-8")
    folder = SweepFolder(whole)
    setting = {**(folder.read("settings/00") or {}), "curve": "one's", "label": ""}
    points = [
        {**(folder.read(f"points/00-customer-{e}") or {}), "curve": "one's", "setting": n}
        for n in (0, 1)
        for e in (1, 8)
    ]
    document = sweep_document(read_sweep(path), [setting, setting], points)
    assert [p["apart"] for p in document["points"]] == [
        *["federated-dp.rounds=1"] * 2,
        *["federated-dp.rounds=2"] * 2,
    ]
    assert len(document["answer"]) == len(set(document["answer"])) == 2
    assert [knee["measured"] for knee in document["knees"]] == [[1, 8]] * 4
    page = render_sweep(document)
    assert page.count('class="plotly-graph-div"') == 8
    assert "customers a shop, federated-dp.rounds=2" in page
    assert "rounds=2" in shown_text(sweep_table(document))


def test_an_arm_is_kept_to_the_last_bit(whole: Path) -> None:
    folder = SweepFolder(whole)
    kept = folder.read_arm("settings/00", "local")
    assert kept is not None
    folder = SweepFolder(whole.parent)
    folder.write_arm("again", kept)
    again = folder.read_arm("again", "local")
    assert again is not None
    assert list(again.shops) == list(kept.shops)
    for key, shop in kept.shops.items():
        assert again.shops[key].home_weights == shop.home_weights
        for field in fields(MetricSums):
            one, other = (getattr(s.sums, field.name) for s in (shop, again.shops[key]))
            np.testing.assert_array_equal(one, other)
            assert type(one) is type(other)
    assert folder.read_arm("again", "federated") is None


def test_who_took_no_part_is_kept_with_an_arm(whole: Path) -> None:
    # A sweep that went on said of all shops that they had.
    kept = SweepFolder(whole).read_arm("settings/00", "federated")
    assert kept is not None
    key = next(iter(kept.shops))
    part = ShopPart(took_part=False, reason="the shop's data were refused")
    away = replace(kept.shops[key], part=part)
    folder = SweepFolder(whole.parent)
    others = {"far": ShopPart(None, took_part=False, reason="it could not start")}
    folder.write_arm("away", replace(kept, shops={**kept.shops, key: away}, others=others))
    again = folder.read_arm("away", "federated")
    assert again is not None
    assert again.others == others
    for name, shop in again.shops.items():
        assert shop.part == (part if name == key else ShopPart())


# --- the knee --------------------------------------------------------------------------------


def point(epsilon: float, low: float, way: float | None, customers: float = 100.0) -> Any:
    return {
        "setting": int(customers),
        "curve": "",
        "apart": "",
        "label": "",
        "unit": "customer",
        "epsilon": epsilon,
        "customers_a_shop": customers,
        "customers_with_targets": 40,
        "customers_with_tail_targets": 40,
        "vs_better": {"ndcg@20": {"low": low}},
        "way": {"ndcg@20": way},
    }


@pytest.mark.parametrize(
    ("lows", "expected"),
    [
        ((0.1, 0.1, 0.1), 1.0),
        ((-0.1, 0.1, 0.1), 2.0),
        # A value that pays by chance below one that does not is no knee.
        ((0.1, -0.1, 0.1), 4.0),
        ((0.1, 0.1, 0.0), None),
        ((0.1, 0.1, None), None),
    ],
)
def test_it_pays_from_the_smallest_value_at_and_above_which_all_pay(
    lows: tuple[float, ...], expected: float | None
) -> None:
    points = [point(e, low, None) for e, low in zip((1, 2, 4), lows, strict=True)]
    for order in (points, points[::-1]):
        assert first_of(order, "epsilon", lambda p: pays(p, "ndcg@20")) == expected


def test_a_handful_of_lucky_customers_pays_for_nothing() -> None:
    # A run on them says that it cannot answer; a sweep said from where on it pays.
    gain = point(1, 0.1, None)
    assert pays({**gain, "customers_with_targets": 10}, "ndcg@20")
    assert not pays({**gain, "customers_with_targets": 9}, "ndcg@20")


def test_half_the_way_is_half_or_more_and_never_where_there_is_no_way() -> None:
    told = {100: ["ndcg@20"]}
    assert goes_half(point(1, 0.1, 0.5), "ndcg@20", told)
    assert not goes_half(point(1, 0.1, 0.49), "ndcg@20", told)
    assert not goes_half(point(1, 0.1, None), "ndcg@20", told)
    # "pays nowhere, goes half the way from ε = 8": of a gain that may be none, as pooling's may.
    assert not goes_half(point(1, -0.1, 0.58), "ndcg@20", told)


def test_a_sweep_goes_no_half_of_a_way_that_has_a_dash(toml: Path, whole: Path) -> None:
    # "from ε = 1" and "pays overall, half the way" stood beside the dash.
    folder = SweepFolder(whole)
    setting, first = folder.read("settings/00"), folder.read("points/00-customer-1")
    assert setting is not None
    assert first is not None
    found = first["arms"]["federated-dp"]
    found |= {"customers_with_targets": 40, "way": {"ndcg@20": 0.58, "tail_ndcg@20": None}}
    found["vs_better"]["ndcg@20"]["low"] = 0.1
    pooled = setting["arms"]["centralized"]
    points = [first, {**first, "epsilon": 8.0}, None, None]
    for low, half_from, said in ((0.1, 1.0, True), (-0.1, None, False)):
        pooled |= {"customers_with_targets": 40}
        pooled["vs_local"]["ndcg@20"]["low"] = low
        document = sweep_document(read_sweep(toml), [setting, None], points)
        (knee,) = (k for k in document["knees"] if k["metric"] == "ndcg@20")
        assert (knee["pays_from"], knee["half_from"]) == (1.0, half_from)
        assert ("pays overall, half the way" in render_sweep(document)) is said


def test_lines_differ_in_one_thing_alone() -> None:
    points = [point(e, 0, 0, c) for e in (1, 8) for c in (50.0, 100.0, 200.0)]
    points.append({**point(4, 0, 0, 100.0), "unit": "basket"})
    over_epsilon = lines(points, "epsilon")
    assert [[p["epsilon"] for p in line] for line in over_epsilon.values()] == [[1, 8]] * 3
    over_customers = lines(points, "customers_a_shop")
    assert [[p["customers_a_shop"] for p in line] for line in over_customers.values()] == [
        [50.0, 100.0, 200.0]
    ] * 2


def test_many_customers_a_shop_are_said_to_the_last_one() -> None:
    # "1.234e+04 customers a shop" stood in the answer and under the curves.
    points = [point(8, 0.1, 0.6, customers) for customers in (5_000.0, 12_345.0)]
    (sentence,) = _sentences(_knees(points, {5_000: [], 12_345: []}))
    assert "ε = 8, with 5000, 12345 customers a shop: ndcg@20 pays from 5000" in sentence
    assert [customers_a_shop(1.0), customers_a_shop(1.0, 2.0)] == [
        "1 customer a shop",
        "1, 2 customers a shop",
    ]
    figure = go.Figure()
    _measured_ticks(figure, [points], "customers_a_shop")
    assert figure.layout.xaxis.ticktext == ("5000", "12345")
    _measured_ticks(figure, [[point(0.5, 0, 0), point(16, 0, 0)]], "epsilon")
    assert figure.layout.xaxis.ticktext == ("0.5", "16")
