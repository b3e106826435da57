"""Several draws of the noise: the interval's coverage, the verdict on it, and what is trained."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from common.errors import ConfigError
from common.metrics import MetricSums
from common.protocol import TrainingPlan
from experiment_support import BIG, SMALL, Silent, write_folder
from report_support import PRIVACY, run_of, shown_text, sums
from server.checkpoints import read_checkpoint
from simulations.engine import in_process
from simulations.experiment import Experiment, read_experiment
from simulations.report.answer import answer
from simulations.report.building import ArmResult, ShopPart, ShopResult, build_report, write_report
from simulations.report.compare import compare
from simulations.report.draws import gain_over_draws, noise_seed, shown
from simulations.report.page import render_report
from simulations.report.tables import comparison_table, result_table
from simulations.run import run_experiment
from simulations.sweep.plan import read_sweep

DRAWS, SHOPS, CUSTOMERS, TRIALS = 5, 10, 200, 400


# --- the interval ------------------------------------------------------------------------------


def planted(
    stream: np.random.Generator, between: float, rest: float, shops: float
) -> tuple[np.ndarray, float, float]:
    """Return gains of known make, their true mean, and what the next training truly brings.

    ``between`` is the draws' standard deviation in units of what the draw of customers moves a
    mean by, ``shops`` what a draw does to all customers of one shop; customers' own gains have
    heavy tails.
    """
    mean, unit = 0.3, 1 / math.sqrt(CUSTOMERS)
    customers = stream.standard_t(4, CUSTOMERS) / math.sqrt(2)
    draws = unit * between * stream.normal(size=(DRAWS + 1, 1))
    at_shop = unit * shops * math.sqrt(SHOPS) * stream.normal(size=(DRAWS + 1, SHOPS))
    by_draw = draws + np.repeat(at_shop, CUSTOMERS // SHOPS, axis=1)
    gains = mean + customers + by_draw[1:] + rest * stream.normal(size=(DRAWS, CUSTOMERS))
    return gains, mean, mean + float(by_draw[0].mean())


@pytest.mark.parametrize(
    ("between", "rest", "shops"),
    [(0.0, 0.3, 0.0), (1.0, 0.3, 0.0), (1.0, 1.0, 0.0), (3.0, 0.3, 0.0), (0.0, 0.3, 1.5)],
)
def test_the_intervals_cover_as_often_as_they_say(
    between: float, rest: float, shops: float
) -> None:
    stream = np.random.default_rng(1)
    held = {"one": 0, "many": 0, "customers alone": 0}
    for _ in range(TRIALS):
        gains, mean, following = planted(stream, between, rest, shops)
        found = gain_over_draws(gains)
        alone = stats.ttest_1samp(gains[0], 0).confidence_interval()
        held["one"] += found["low"] <= following <= found["high"]
        held["many"] += found["mean_low"] <= mean <= found["mean_high"]
        held["customers alone"] += bool(alone.low <= following <= alone.high)
    # Four standard errors of a share of 95% in so many trials are .044.
    assert held["one"] / TRIALS > 0.906
    assert held["many"] / TRIALS > 0.906
    assert held["one"] / TRIALS < 0.995
    if between + shops >= 1:  # what one draw's interval leaves out
        assert held["customers alone"] / TRIALS < 0.85


def test_draws_that_change_nothing_leave_the_interval_of_the_customers() -> None:
    gains = np.random.default_rng(2).normal(0.2, 1, 60)
    found = gain_over_draws(np.stack([gains] * 4))
    test = stats.ttest_1samp(gains, 0)
    expected = test.confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert (found["mean_low"], found["mean_high"]) == pytest.approx((found["low"], found["high"]))
    assert found["p"] == pytest.approx(test.pvalue)
    assert found["sd"] == pytest.approx(0)


def test_customers_that_are_alike_leave_the_interval_of_the_draws() -> None:
    draws = np.array([0.1, 0.3, 0.2, 0.6])
    found = gain_over_draws(np.repeat(draws[:, None], 50, axis=1))
    mean, sd = draws.mean(), draws.std(ddof=1)
    half = stats.t.ppf(0.975, 3) * sd
    # A single further observation (Hahn & Meeker 1991, Statistical Intervals, section 4.7).
    assert found["high"] - mean == pytest.approx(half * math.sqrt(1 + 1 / 4))
    assert found["mean_high"] - mean == pytest.approx(half / 2)
    assert mean - found["low"] == pytest.approx(found["high"] - mean)
    assert found["values"] == pytest.approx(draws.tolist())
    assert found["sd"] == pytest.approx(sd)


def test_a_customer_without_a_target_is_left_out() -> None:
    gains = np.random.default_rng(3).normal(size=(3, 20))
    more = np.concatenate([gains, np.full((3, 2), np.nan)], axis=1)
    assert gain_over_draws(more) == gain_over_draws(gains)
    for few in (more[:, 20:], more[:, :1]):
        found = gain_over_draws(few)
        assert math.isnan(found["low"])
        assert math.isnan(found["p"])
        assert len(found["values"]) == 3


def test_each_draw_has_noise_of_its_own_and_the_first_is_the_runs() -> None:
    seeds = {noise_seed(seed, draw) for seed in range(20) for draw in range(1, 6)}
    assert len(seeds) == 100
    assert [noise_seed(seed, 1) for seed in range(3)] == [0, 1, 2]


# --- the report --------------------------------------------------------------------------------


def drawn(shifts: Sequence[float]) -> dict[str, Any]:
    """Return the report on a private arm whose draws are ``local`` shifted by so much."""
    stream = np.random.default_rng(4)
    local = {key: sums(0.1 + 0.02 * stream.random(60)) for key in ("a", "b")}

    def shifted(shift: float) -> dict[str, MetricSums]:
        rest = {key: 0.004 * stream.normal(size=60) for key in local}
        return {k: sums(s.ndcg + shift + rest[k] - rest[k].mean()) for k, s in local.items()}

    first, *further = map(shifted, shifts)
    arm = ArmResult(
        "federated-dp",
        {key: ShopResult(found, ShopPart(8.0)) for key, found in first.items()},
        PRIVACY,
        further_draws=further,
    )
    whole = ArmResult("centralized", {k: ShopResult(sums(s.ndcg + 0.04)) for k, s in local.items()})
    base = ArmResult("local", {key: ShopResult(found) for key, found in local.items()})
    return build_report(run_of(base, whole, arm))


def test_a_lucky_first_draw_is_no_yes() -> None:
    lucky = drawn([0.01, -0.012, 0.0, 0.004, -0.006])
    arm = lucky["arms"]["federated-dp"]
    assert arm["vs_local"]["ndcg@20"]["low"] > 0
    assert lucky["answer"]["verdict"] == "no"
    alone = drawn([0.01])
    assert alone["arms"]["federated-dp"]["draws"] is None
    assert alone["answer"]["verdict"] == "yes"
    assert drawn([0.01, 0.011, 0.009, 0.0105])["answer"]["verdict"] == "yes"


def test_draws_that_change_nothing_are_said_to_be_the_same() -> None:
    # A dash in a sentence reads as a figure that was not measured.
    local = {key: ShopResult(sums(np.linspace(0.1, 0.2, 60))) for key in ("a", "b")}
    same = [{key: shop.sums for key, shop in local.items()}]
    arm = ArmResult("federated-dp", local, PRIVACY, further_draws=same)
    details = build_report(run_of(ArmResult("local", local), arm))["answer"]["details"]
    (mean,) = [words for words in details if words.startswith("The mean gain")]
    assert "tail_ndcg@20 the same as local; one training" in mean


def test_a_sure_mean_is_not_yet_a_sure_training() -> None:
    shifts = [0.012, 0.004, 0.008, 0.002, 0.009]
    arm = drawn(shifts)["arms"]["federated-dp"]
    gain = arm["draws"]["vs_local"]["ndcg@20"]
    assert gain["low"] < 0 < gain["mean_low"] < gain["mean"]
    assert gain["values"] == pytest.approx(shifts)


def test_levels_and_ways_are_those_of_each_draw() -> None:
    draws = drawn([0.01, -0.02, 0.03])["arms"]["federated-dp"]["draws"]
    assert draws["level_share"]["values"] == [1.0, 0.0, 1.0]
    assert draws["way"]["ndcg@20"]["values"] == pytest.approx([0.25, -0.5, 0.75])


def test_what_is_kept_is_of_the_first_draw_and_what_is_shown_of_all() -> None:
    report = drawn([0.01, 0.02, 0.03])
    arm, local = report["arms"]["federated-dp"], report["arms"]["local"]
    base = local["metrics"]["ndcg@20"]
    assert arm["metrics"]["ndcg@20"] == pytest.approx(base + 0.01)
    assert arm["per_shop"]["a"]["vs_local"]["ndcg@20"]["mean"] == pytest.approx(0.01)
    draws = arm["draws"]
    assert draws["count"] == 3
    values = draws["metrics"]["ndcg@20"]["values"]
    assert values == pytest.approx([base + 0.01, base + 0.02, base + 0.03])
    assert draws["metrics"]["ndcg@20"]["sd"] == pytest.approx(0.01)
    assert set(draws["metrics"]) == set(arm["metrics"])
    assert draws["way"]["ndcg@20"]["mean"] == pytest.approx(0.5)
    assert draws["level_share"] == {"mean": 1.0, "sd": 0.0, "values": [1.0, 1.0, 1.0]}
    figures = shown(arm)
    assert figures["metrics"]["ndcg@20"] == pytest.approx(base + 0.02)
    assert figures["vs_local"]["ndcg@20"]["mean"] == pytest.approx(0.02)
    assert figures["per_shop"]["a"]["vs_local"]["ndcg@20"]["mean"] == pytest.approx(0.02)
    assert figures["per_shop"]["a"]["epsilon"] == 8.0
    assert figures["quintiles"]["ndcg@20"][0] > arm["quintiles"]["ndcg@20"][0]
    assert shown(figures) == figures
    assert shown(local) == local
    assert answer(report) == report["answer"]


@pytest.mark.parametrize("values", [[0.1, 0.2], [0.1], []], ids=["two", "one", "none"])
def test_without_local_or_with_hardly_a_customer_there_is_no_verdict(values: list[float]) -> None:
    def one(name: str, shift: float, **more: Any) -> ArmResult:
        return ArmResult(name, {"a": ShopResult(sums(values, shift), ShopPart(8.0))}, **more)

    further = [{"a": sums(values, shift)} for shift in (0.02, 0.03)]
    private = one("federated-dp", 0.01, privacy=PRIVACY, further_draws=further)
    arms = [private] if len(values) == 2 else [one("local", 0.0), private]
    report = build_report(run_of(*arms))
    assert report["answer"]["verdict"] == "unknown"
    assert report["arms"]["federated-dp"]["draws"]["count"] == 3
    assert "federated-dp" in render_report(report)
    assert "federated-dp" in shown_text(result_table(report))


def test_page_table_and_comparison_show_the_same(tmp_path: Path) -> None:
    report = drawn([0.01, 0.02, 0.03])
    page = render_report(report)
    assert "The gain of each draw of the noise" in page
    assert "trained 3 times, each with other noise" in page
    assert "The gain of each draw" not in render_report(drawn([0.01]))
    gain = report["arms"]["federated-dp"]["draws"]["vs_local"]["ndcg@20"]
    words = f"+0.0200 ({gain['low']:+.4f} to {gain['high']:+.4f})"
    assert words in page
    narrow = f"{gain['low']:+.4f}…{gain['high']:+.4f}".replace("0.", ".")
    table = shown_text(result_table(report))
    assert narrow in table
    assert "private arms over 3 draws of the noise" in " ".join(table.split())
    for name in ("one", "two"):
        write_report(tmp_path / name, report, page)
    both = compare([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    assert narrow in shown_text(comparison_table(both))
    side_by_side = (tmp_path / "both" / "compare.html").read_text(encoding="utf-8")
    assert f"{gain['low']:+.4f} to {gain['high']:+.4f}" in side_by_side


# --- what is trained ---------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    folder = write_folder(tmp_path / "tables")
    arms = 'run.arms=["local", "federated-dp"]'
    changes = [f"data.path={folder}", arms, "run.engine=in-process", "run.noise_draws=3"]
    return read_experiment(tmp_path / "small.toml", changes)


class Watched:
    """The real training in this process, remembering what went in and came out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int = 0) -> None:
        self.plans: list[TrainingPlan] = []
        self.states: list[dict[str, np.ndarray]] = []
        self.settings: list[list[str]] = []
        self._run, self._stop_at = in_process.run_in_process, stop_at
        monkeypatch.setattr(in_process, "run_in_process", self)

    def __call__(self, plan: TrainingPlan, **more: Any) -> None:
        if len(self.plans) + 1 == self._stop_at:
            raise KeyboardInterrupt
        self._run(plan, **more)
        self.plans.append(plan)
        folder = more["server_folder"] / "checkpoints"
        self.states.append(read_checkpoint(folder, plan.rounds).state)
        settings = (more["shops_folder"] / "0" / "shop.toml").read_text(encoding="utf-8")
        self.settings.append(settings.splitlines())


def test_draws_differ_in_their_noise_alone_and_a_cut_run_goes_on(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        first = Watched(patch, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, out, Silent())
    with monkeypatch.context() as patch:
        second, watcher = Watched(patch), Silent()
        report = run_experiment(experiment, out, watcher)
    # What was finished before the interruption is not trained again.
    assert (len(first.plans), len(second.plans)) == (2, 1)
    states = [*first.states, *second.states]
    assert all(plan == first.plans[0] for plan in [*first.plans, *second.plans])
    one, other, last = states
    assert not np.array_equal(one["popularity"], other["popularity"])
    assert not np.array_equal(other["popularity"], last["popularity"])
    changed = set(first.settings[0]) ^ set(first.settings[1])
    assert {line.partition(" ")[0] for line in changed if "seed" in line} == {"noise_seed"}
    assert {line.partition(" ")[0] for line in changed} <= {
        "noise_seed",
        *("ledger", "data", "catalogue"),  # the same places, seen from another folder
    }
    assert any("federated-dp with noise 3 of 3" in stage for stage in watcher.stages)
    # An arm that had been trained seemed to take no time.
    (cut,) = [text for text in report["warnings"] if "interrupted" in text]
    assert cut.startswith("federated-dp: the run was interrupted, so seconds and memory are")

    draws = report["arms"]["federated-dp"]["draws"]
    assert len(set(draws["metrics"]["ndcg@20"]["values"])) == 3
    assert not any("not that of the noise" in text for text in report["warnings"])
    # Nothing of the further draws stays, and the ledgers show what one training costs.
    assert {path.name for path in out.iterdir()} == {
        *("catalogue", "experiment.json", "ledgers", "models"),
        *("recommendations.parquet", "report.html", "report.json"),
    }
    spent = report["arms"]["federated-dp"]["per_shop"][BIG]["epsilon"]
    assert spent == pytest.approx(8.0, rel=0.01)

    single = experiment.model_copy(
        update={"run": experiment.run.model_copy(update={"noise_draws": 1})}
    )
    alone = run_experiment(single, tmp_path / "alone", Silent())
    kept = {**report["arms"]["federated-dp"], "draws": None}
    for key in ("metrics", "vs_local", "vs_better", "quintiles", "home_weights", "privacy"):
        assert kept[key] == alone["arms"]["federated-dp"][key], key


def test_a_sweep_has_one_draw_a_point_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL + "[run]\nnoise_draws = 4\n", encoding="utf-8")
    (setting,) = read_sweep(path).settings
    assert setting.experiment.run.noise_draws == 1
    with pytest.raises(ConfigError, match="one draw of the noise"):
        read_sweep(path, ["run.noise_draws=2"])


def test_a_sweep_may_be_told_the_one_draw_that_it_has(tmp_path: Path) -> None:
    path, swept = tmp_path / "small.toml", tmp_path / "sweep.toml"
    path.write_text(SMALL + "[run]\nnoise_draws = 4\n", encoding="utf-8")
    plain = read_sweep(path)
    assert read_sweep(path, ["run.noise_draws=1"]) == plain
    assert read_sweep(path, [" run.noise_draws = 1 "]) == plain
    grid = 'experiment = "small.toml"\ntitle = "small"\nset = ["run.noise_draws=1"]\n[[grid]]\n'
    swept.write_text(grid, encoding="utf-8")
    assert read_sweep(swept) == plain
    swept.write_text(grid + 'vary = "run.noise_draws"\nvalues = [1, 2]\n', encoding="utf-8")
    for changes in ([], ["run.noise_draws=2"], ["run . noise_draws=0"]):
        with pytest.raises(ConfigError, match="one draw of the noise"):
            read_sweep(swept, changes)
