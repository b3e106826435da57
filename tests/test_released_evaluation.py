"""Figures that a shop releases: what one customer can move, the noise, the price, reading them."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from client.home_settings import EvaluationSettings
from client.privacy.evaluation import contributions, evaluation_event, release_evaluation
from client.privacy.ledger import Event, Ledger
from client.privacy.noise import SeededNoise, SystemNoise
from common.accounting import Spend, epsilon
from common.errors import BudgetError, PrivacyError, ProtocolError
from common.evaluation import (
    EVALUATION,
    EVALUATION_NAMES,
    EVALUATION_SCALES,
    ReleasedEvaluation,
    check_evaluation,
    read_evaluation,
)
from common.features import Catalogue, ContentSpec
from common.metrics import tail_mask
from common.model import GlobalModel, initial_state
from common.protocol import POPULARITY, ModelPlan
from common.schema import ShopEvents
from common.statement import RELEASES
from second_accountant import second_opinion

N = 60


@pytest.fixture(scope="module")
def model() -> GlobalModel:
    frame = pd.DataFrame(
        {"item_id": [f"i{k:02}" for k in range(N)], "type": [f"t{k % 5}" for k in range(N)]}
    )
    catalogue = Catalogue.of(frame, ContentSpec(features=("type",), content_width=64))
    rates = np.random.default_rng(4).dirichlet(np.ones(N)).astype(np.float32)
    plan = ModelPlan(dimension=3)
    return GlobalModel(plan, catalogue, initial_state(plan, N) | {POPULARITY: rates})


def events_of(records: list[tuple[str, int, int]]) -> ShopEvents:
    """Return a shop's events from (user, item, time)."""
    records = sorted(records, key=lambda record: (record[0], record[2]))
    names, users = np.unique([record[0] for record in records], return_inverse=True)
    return ShopEvents(
        merchant_id="m",
        user_ids=names.astype(object),
        users=users.astype(np.int32),
        items=np.array([record[1] for record in records], np.int32),
        timestamps=np.array([record[2] for record in records], np.int64),
        weights=np.ones(len(records), np.float32),
    )


def nobody() -> ShopEvents:
    return replace(events_of([("a", 0, 0)]), user_ids=np.empty(0, object)).select(
        np.zeros(1, dtype=bool)
    )


def records(user: str, seed: int, count: int = 25) -> list[tuple[str, int, int]]:
    stream = np.random.default_rng(seed)
    items, times = stream.integers(0, N, count), stream.integers(0, 1000, count)
    return [(user, int(item), int(time)) for item, time in zip(items, times, strict=True)]


@pytest.mark.parametrize("figures", [(5.0, 5.0), (-3.0, 1.0)])
def test_a_figure_that_is_none_moves_the_sums_by_no_more(
    model: GlobalModel, monkeypatch: pytest.MonkeyPatch, figures: tuple[float, float]
) -> None:
    """The bound does not hang on metrics that are right."""
    monkeypatch.setattr("client.privacy.evaluation._figures", lambda *_: figures)
    moved = contributions(model, events_of(records("me", 1)), model.catalogue)
    assert 0 < np.linalg.norm(moved) <= 1
    assert moved.min() >= 0


def test_a_customers_vector_is_the_same_to_the_bit_whoever_else_is_there(
    model: GlobalModel,
) -> None:
    own = records("me", 1)
    alone = contributions(model, events_of(own), model.catalogue)
    assert alone.any()
    for others in (1, 2, 3, 8, 17, 33):
        crowd = [r for k in range(others) for r in records(f"{'az'[k % 2]}{k}", 100 * others + k)]
        shop = events_of([*own, *crowd])
        place = int(np.flatnonzero(shop.user_ids == "me")[0])
        found = contributions(model, shop, model.catalogue)
        assert found[place].tobytes() == alone[0].tobytes()
        assert len(found) == others + 1


def test_no_customer_moves_the_sums_by_more_than_one(model: GlobalModel) -> None:
    assert np.linalg.norm(EVALUATION_SCALES) <= 1.0
    largest = 0.0
    for seed in range(60):
        stream = np.random.default_rng(seed)
        count = int(stream.integers(1, 200))
        found = contributions(model, events_of(records("x", seed, count)), model.catalogue)
        largest = max(largest, float(np.linalg.norm(found)))
        assert (found >= 0).all()
    assert 0.4 < largest <= 1.0


def test_the_best_foreseen_customer_reaches_the_bound_and_no_more(model: GlobalModel) -> None:
    """The largest vector there can be: every figure 1."""
    tail = np.flatnonzero(tail_mask(np.asarray(model.state[POPULARITY])))
    best = tail[np.argmax(np.asarray(model.state[POPULARITY])[tail])]
    head = np.flatnonzero(~tail_mask(np.asarray(model.state[POPULARITY])))
    shop = [("x", int(item), time) for time, item in enumerate(head)]
    found = contributions(model, events_of([*shop, ("x", int(best), 10**6)]), model.catalogue)[0]
    values = dict(zip(EVALUATION_NAMES, found / EVALUATION_SCALES, strict=True))
    assert values["customers"] == pytest.approx(1)
    assert values["popularity_tail_ndcg@20"] > 0.3
    assert np.linalg.norm(found) <= 1.0


def test_sums_are_exact_in_any_order(model: GlobalModel) -> None:
    shop = events_of([r for k in range(40) for r in records(f"u{k}", k)])
    found = contributions(model, shop, model.catalogue)
    forward, backward = found.sum(axis=0), found[::-1].sum(axis=0)
    assert forward.tobytes() == backward.tobytes()
    apart = math.fsum(found[:, 2])
    assert float(forward[2]) == apart


def test_figures_are_those_of_the_metrics(model: GlobalModel) -> None:
    """Held out by hand: the last fifth of the products by first record."""
    own = [("x", item, time) for time, item in enumerate([3, 9, 14, 3, 27, 41, 8, 50, 12, 33, 21])]
    found = contributions(model, events_of(own), model.catalogue)[0] / EVALUATION_SCALES
    items = [3, 9, 14, 27, 41, 8, 50, 12, 33, 21]
    seen, targets = items[:-2], set(items[-2:])
    popularity = np.asarray(model.state[POPULARITY]).copy()
    popularity[seen] = -1
    ranked = np.argsort(-popularity, kind="stable")[:20]
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranked) if item in targets)
    expected = gain / (1 + 1 / math.log2(3))
    assert found[EVALUATION_NAMES.index("popularity_ndcg@20")] == pytest.approx(expected, abs=1e-8)
    assert found[0] == pytest.approx(1)


def test_only_who_was_asked_for_a_tail_product_counts_among_the_tails_customers(
    model: GlobalModel,
) -> None:
    tail = tail_mask(np.asarray(model.state[POPULARITY]))
    head, rare = np.flatnonzero(~tail)[0], np.flatnonzero(tail)[:2]
    for last, expected in ((head, 0.0), (rare[1], 1.0)):
        own = [("x", int(rare[0]), 0), ("x", int(last), 1)]
        found = contributions(model, events_of(own), model.catalogue)[0] / EVALUATION_SCALES
        assert found[EVALUATION_NAMES.index("tail_customers")] == pytest.approx(expected)
        assert found[EVALUATION_NAMES.index("customers")] == pytest.approx(1)


def test_a_retired_product_takes_no_place_in_either_list(model: GlobalModel) -> None:
    """The best product of the tail, or of all, is retired: the next one stands first."""
    rates = np.asarray(model.state[POPULARITY])
    order = np.argsort(-rates, kind="stable")
    tails = order[tail_mask(rates)[order]]
    seen = int(order[-1])
    for best, name in ((order, "popularity_ndcg@20"), (tails, "popularity_tail_ndcg@20")):
        frame = model.catalogue.products.assign(retired=["no"] * N)
        frame.loc[best[0], "retired"] = "yes"
        catalogue = Catalogue.of(frame, model.catalogue.spec)
        shop = events_of([("x", seen, 0), ("x", int(best[1]), 1)])
        found = contributions(replace(model, catalogue=catalogue), shop, catalogue)[0]
        figures = dict(zip(EVALUATION_NAMES, found / EVALUATION_SCALES, strict=True))
        assert figures[name] == pytest.approx(1), name


def test_lists_are_made_from_each_products_own_largest_weight(
    model: GlobalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of one second stand in any order; one product has two weights."""
    asked: list[np.ndarray] = []

    def scores(_: GlobalModel, history: sparse.csr_matrix) -> np.ndarray:
        asked.append(history.toarray()[0])
        return np.zeros(history.shape, np.float32)

    monkeypatch.setattr(GlobalModel, "scores", scores)
    shop = events_of([("x", 9, 5), ("x", 4, 5), ("x", 7, 5), ("x", 4, 6), ("x", 2, 8)])
    weighted = replace(shop, weights=np.array([5, 1, 3, 2, 4], np.float32))
    contributions(model, weighted, model.catalogue)
    assert {int(item): asked[0][item] for item in asked[0].nonzero()[0]} == {9: 5, 4: 2, 7: 3}


def test_who_has_less_than_two_products_adds_nothing(model: GlobalModel) -> None:
    shop = events_of([("a", 1, 1), ("a", 1, 2), ("b", 1, 1), ("b", 2, 2)])
    found = contributions(model, shop, model.catalogue)
    assert not found[0].any()
    assert found[1, 0] > 0


@pytest.mark.parametrize("customers", [0, 1, 3])
def test_an_empty_or_tiny_shop_releases_as_any_other(model: GlobalModel, customers: int) -> None:
    shop = events_of([r for k in range(customers) for r in records(f"u{k}", k)])
    released = release_evaluation(model, shop, model.catalogue, 2.0, SystemNoise())
    assert set(released) == {EVALUATION}
    check_evaluation(released[EVALUATION])
    assert (np.abs(released[EVALUATION]) > 0).all()
    on_grid = released[EVALUATION] * 2**9
    np.testing.assert_array_equal(on_grid, np.rint(on_grid))


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.inf, math.nan])
def test_nothing_is_released_without_noise(model: GlobalModel, multiplier: float) -> None:
    with pytest.raises(PrivacyError, match="noise only"):
        release_evaluation(model, nobody(), model.catalogue, multiplier, SystemNoise())


@pytest.mark.parametrize("customers", [0, pytest.param(1, marks=pytest.mark.statistical)])
def test_the_noise_has_its_variance_in_every_entry(model: GlobalModel, customers: int) -> None:
    draws, sigma = 1500, 1.7
    noise = SeededNoise(np.random.default_rng(3))
    # Without customers to score it is quick enough to hold on every day.
    shop = events_of(records("x", 1)) if customers else nobody()
    true = contributions(model, shop, model.catalogue).sum(axis=0)
    found = np.array(
        [
            release_evaluation(model, shop, model.catalogue, sigma, noise)[EVALUATION]
            for _ in range(draws)
        ]
    )
    # Of a variance's estimate the standard deviation is σ² √(2 / draws).
    assert np.abs(found.var(axis=0) / sigma**2 - 1).max() < 5 * math.sqrt(2 / draws)
    assert np.abs(found.mean(axis=0) - true).max() < 5 * sigma / math.sqrt(draws)
    assert np.abs(np.corrcoef(found.T) - np.eye(len(true))).max() < 5 / math.sqrt(draws)


def test_its_price_is_the_shops_own_epsilon_by_two_accountants() -> None:
    for target in (0.5, 1.0, 4.0):
        event = evaluation_event(EvaluationSettings(epsilon=target), "customer", "r")
        spend = Spend(event.noise_multiplier, event.sample_rate, event.steps)
        assert 0.99 * target <= epsilon([spend], 1e-5).value <= target
        assert second_opinion([spend], 1e-5) <= 1.001 * target


def test_it_composes_with_what_the_ledger_holds(tmp_path: object) -> None:
    event = evaluation_event(EvaluationSettings(epsilon=1.0), "customer", "r", noise="system")
    training = Event("dp-sgd", 3.0, 0.5, 40, "customer", run_id="r", server_round=1)
    with Ledger.open(f"{tmp_path}/ledger.sqlite") as ledger:
        ledger.charge(training, cap_epsilon=50, delta=1e-5)
        alone = ledger.epsilon(1e-5)["customer"].value
        head = ledger.charge(event, cap_epsilon=50, delta=1e-5)
        both = ledger.epsilon(1e-5)["customer"].value
        spends = [Spend(3.0, 0.5, 40), Spend(event.noise_multiplier, 1.0, 1)]
        assert max(alone, 1.0) < both <= alone + 1.0
        assert both >= 0.95 * second_opinion(spends, 1e-5)
        with pytest.raises(BudgetError):
            ledger.charge(event, cap_epsilon=both, delta=1e-5)
        assert ledger.head() == head
    assert event.mechanism in RELEASES


@pytest.mark.parametrize("unit", ["basket", "interaction"])
def test_only_whole_customers_are_measured(unit: str) -> None:
    with pytest.raises(PrivacyError, match="whole customers"):
        evaluation_event(EvaluationSettings(epsilon=1.0), unit, "r")  # type: ignore[arg-type]


# --- reading it ------------------------------------------------------------------------------


def test_without_noise_the_means_are_those_of_the_customers() -> None:
    rows = np.array([[1, 1, 0.5, 0.2, 0.1, 0.3], [1, 0, 0.3, 0.0, 0.3, 0.0]]) * EVALUATION_SCALES
    found = read_evaluation([ReleasedEvaluation(rows.sum(axis=0).astype(np.float32), 1e-9)])
    assert found["customers"] == pytest.approx(2, abs=1e-5)
    means = {name: entry["mean"] for name, entry in found["figures"].items()}
    assert means == pytest.approx(
        {
            "ndcg@20": 0.4,
            "tail_ndcg@20": 0.2,
            "popularity_ndcg@20": 0.2,
            "popularity_tail_ndcg@20": 0.3,
        },
        abs=1e-5,
    )


def test_its_errors_are_what_the_noise_does() -> None:
    stream, sigma, count = np.random.default_rng(0), 2.0, 900
    true = np.array([count, 0.6 * count, 0.12 * count, 0.02 * count, 0.1 * count, 0.01 * count])
    reads = []
    for _ in range(400):
        noisy = (true * EVALUATION_SCALES + stream.normal(0, sigma, 6)).astype(np.float32)
        reads.append(read_evaluation([ReleasedEvaluation(noisy, sigma)])["figures"]["ndcg@20"])
    spread = float(np.std([r["mean"] for r in reads]))
    claimed = float(np.mean([r["noise_error"] for r in reads]))
    assert spread == pytest.approx(claimed, rel=0.15)
    assert all(r["error"] > r["noise_error"] for r in reads)


def test_its_errors_are_those_of_the_formula_where_the_count_matters() -> None:
    """A large mean of few customers: the noise in their number is as much as that in the sum."""
    sigma, count, mean = 2.0, 200, 0.8
    true = np.array([count, count, *[mean * count] * 4]) * EVALUATION_SCALES
    figures = read_evaluation([ReleasedEvaluation(true.astype(np.float32), sigma)])["figures"]
    of_count, of_sum = sigma / EVALUATION_SCALES[0], sigma / EVALUATION_SCALES[2]
    noise = math.hypot(of_sum, mean * of_count) / count
    for figure in figures.values():
        assert figure["noise_error"] == pytest.approx(noise, rel=1e-5)
        spread = math.sqrt(mean * (1 - mean) / count)
        assert figure["error"] == pytest.approx(math.hypot(noise, spread), rel=1e-5)


def test_shops_are_read_together() -> None:
    stream, sigma = np.random.default_rng(1), 3.0
    true = np.array([100, 80, 10, 2, 9, 1]) * EVALUATION_SCALES
    releases = [
        ReleasedEvaluation((true + stream.normal(0, sigma, 6)).astype(np.float32), sigma)
        for _ in range(40)
    ]
    one, all_of_them = read_evaluation(releases[:1]), read_evaluation(releases)
    assert all_of_them["shops"] == 40
    assert all_of_them["customers"] == pytest.approx(4000, rel=0.1)
    figure = all_of_them["figures"]["ndcg@20"]
    assert abs(figure["mean"] - 0.1) < 4 * figure["noise_error"]
    assert one["customers_error"] * math.sqrt(40) == pytest.approx(all_of_them["customers_error"])


def test_pure_noise_says_nothing() -> None:
    released = ReleasedEvaluation(np.array([0.4, -1, 2, 1, 1, 0], np.float32), 2.0)
    found = read_evaluation([released])
    assert set(found["figures"].values()) == {None} or not any(found["figures"].values())
    assert read_evaluation([])["figures"]["ndcg@20"] is None
    assert found["customers"] >= 0
    below = read_evaluation([ReleasedEvaluation(np.full(6, -1, np.float32), 2.0)])
    assert below["customers"] == 0


@pytest.mark.parametrize(("deviations", "said"), [(2.9, False), (3.1, True)])
def test_a_mean_is_told_of_customers_that_are_three_deviations_from_none(
    deviations: float, said: bool
) -> None:
    error = 2.0 / EVALUATION_SCALES[0]
    # What noise makes of a sum may be more than its customers, or less than nothing.
    sums = np.array([1, 1, 1.5, -0.5, 1, 1]) * deviations * error * EVALUATION_SCALES
    found = read_evaluation([ReleasedEvaluation(sums.astype(np.float32), 2.0)])
    figures = found["figures"]
    assert (figures["ndcg@20"] is not None) == said
    if said:
        assert figures["ndcg@20"]["mean"] == 1
        assert figures["tail_ndcg@20"]["mean"] == 0


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5, np.float32),
        np.zeros(6, np.float64),
        np.zeros((6, 1), np.float32),
        np.array([0, 0, 0, 0, 0, np.nan], np.float32),
        np.array([np.inf, 0, 0, 0, 0, 0], np.float32),
    ],
)
def test_what_is_no_release_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match="released figures"):
        check_evaluation(array)
