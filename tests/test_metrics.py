"""Metrics against their definition, written out plainly, and as mergeable sums."""

import itertools
import math
import time

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from common import metrics
from common.errors import InputError
from common.metrics import MetricSums, evaluate, merge_all, paired_bootstrap, tail_mask
from common.scoring import top_k


def world(
    seed: int, customers: int = 9, n: int = 40
) -> tuple[np.ndarray, sp.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(customers, n))
    targets = sp.csr_matrix(rng.random((customers, n)) < 0.12)
    return scores, targets, rng.integers(0, 9, n)


def measure(scores: np.ndarray, targets: sp.csr_matrix, counts: np.ndarray) -> MetricSums:
    tail = tail_mask(counts)
    top_all, top_tail = top_k(scores, 20)[0], top_k(scores, 20, allowed=tail)[0]
    return evaluate(top_all, top_tail, targets, tail, metrics.popularity_quintiles(counts))


def plain(ranked: list[int], wanted: set[int]) -> tuple[float, float]:
    if not wanted:
        return math.nan, math.nan
    hits = [place for place, item in enumerate(ranked[:20], 1) if item in wanted]
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(wanted), 20) + 1))
    dcg = sum(1 / math.log2(place + 1) for place in hits)
    return dcg / ideal, len(hits) / min(len(wanted), 20)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_per_customer_values_follow_the_definition(seed: int) -> None:
    scores, targets, counts = world(seed)
    found = measure(scores, targets, counts)
    tail = tail_mask(counts)
    for customer in range(scores.shape[0]):
        ranked = sorted(range(scores.shape[1]), key=lambda i: -scores[customer, i])
        wanted = set(targets[customer].indices.tolist())
        expected = plain(ranked, wanted)
        assert (found.ndcg[customer], found.recall[customer]) == pytest.approx(
            expected, nan_ok=True
        )
        expected = plain([i for i in ranked if tail[i]], {i for i in wanted if tail[i]})
        actual = (found.tail_ndcg[customer], found.tail_recall[customer])
        assert actual == pytest.approx(expected, nan_ok=True)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 9), max_size=4))
@settings(max_examples=40, deadline=None)
def test_merging_the_shops_gives_the_pooled_value(seed: int, cuts: list[int]) -> None:
    scores, targets, counts = world(seed)
    pooled = measure(scores, targets, counts)
    edges = [0, *sorted(cuts), 9]
    tail, fifths = tail_mask(counts), metrics.popularity_quintiles(counts)
    rows = top_k(scores, 20)[0], top_k(scores, 20, allowed=tail)[0]
    parts = [
        evaluate(rows[0][a:b], rows[1][a:b], targets[a:b], tail, fifths)
        for a, b in itertools.pairwise(edges)
    ]
    merged = merge_all(parts, 40)
    assert merged.summary() == pytest.approx(pooled.summary(), nan_ok=True)
    for name, values in pooled.by_quintile().items():
        assert merged.by_quintile()[name] == pytest.approx(values, nan_ok=True)
    assert np.array_equal(merged.exposure, pooled.exposure)
    # Arms are compared customer by customer: a value must stay at its place.
    for name in ("ndcg", "tail_recall", "targets"):
        np.testing.assert_allclose(getattr(merged, name), getattr(pooled, name))


def test_exposure_metrics_by_hand() -> None:
    tail = np.array([False, True, True, True])
    top = np.array([[0, 1], [0, -1]])
    found = evaluate(top, top[:, :0], sp.csr_matrix(np.zeros((2, 4), bool)), tail).summary()
    assert found["coverage@20"] == 0.5
    assert found["tail_share@20"] == pytest.approx(1 / 3)
    # exposure 0 0 1 2: sum of |differences| over pairs / (n * total)
    assert found["gini@20"] == pytest.approx((1 + 2 + 1 + 2 + 1) / (4 * 3))
    assert math.isnan(found["ndcg@20"])


def test_a_missing_place_is_never_a_hit() -> None:
    # -1 would index the last product, which is a target here.
    targets = sp.csr_matrix(np.array([[0, 0, 1], [0, 0, 1]], bool))
    tail = np.ones(3, bool)
    none = np.full((2, 20), -1)
    found = evaluate(none, none, targets, tail, np.array([0, 1, 2]))
    assert found.recall.tolist() == [0, 0]
    assert found.tail_recall.tolist() == [0, 0]
    assert found.exposure.sum() == 0
    # Of what was never shown there is no share, as there is none of the tail.
    assert math.isnan(found.summary()["tail_share@20"])


def test_a_list_that_is_short_is_held_against_all_that_was_to_be_found() -> None:
    targets = sp.csr_matrix(np.array([[1, 1, 1, 0]]))
    top = np.array([[0]])
    found = evaluate(top, top, targets, np.ones(4, bool))
    assert found.recall[0] == pytest.approx(1 / 3)
    assert found.ndcg[0] == pytest.approx(1 / (1 + 1 / math.log2(3) + 1 / 2))


def test_targets_are_what_is_stored_and_not_zero_in_any_order() -> None:
    stored = (np.array([1.0, 0.0, 1.0]), np.array([3, 1, 0]), np.array([0, 3]))
    top = np.array([[3, 1, 0]])
    found = evaluate(top, top, sp.csr_matrix(stored, shape=(1, 4)), np.ones(4, bool))
    assert found.targets.tolist() == [2]
    assert found.ndcg[0] == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))


def test_hits_are_found_where_customers_times_products_exceed_32_bits() -> None:
    customers, n = 3000, 1_000_000
    last = sp.csr_matrix(([1.0], ([customers - 1], [n - 1])), shape=(customers, n))
    top = np.full((customers, 1), n - 1)
    found = evaluate(top, top, last, np.ones(n, bool))
    assert found.summary()["recall@20"] == 1


def test_a_product_of_the_short_head_in_a_tail_list_is_no_hit_of_the_tail() -> None:
    targets = sp.csr_matrix(np.array([[1, 1, 0]]))
    tail = np.array([False, True, True])
    for first, expected in ((0, 0.0), (1, 1.0)):
        top = np.array([[first]])
        assert evaluate(top, top, targets, tail).tail_recall[0] == expected


def test_quintiles_split_hits_by_popularity_of_the_target() -> None:
    counts = np.arange(10)
    fifths = metrics.popularity_quintiles(counts)
    assert fifths.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    targets = sp.csr_matrix(np.eye(10, dtype=bool)[[0]] | np.eye(10, dtype=bool)[[9]])
    top = np.array([[9, 5]])
    found = evaluate(top, top[:, :0], targets, tail_mask(counts), fifths).by_quintile()
    assert found["recall@20"][0] == 0
    assert found["recall@20"][4] == found["ndcg@20"][4] == 1
    assert math.isnan(found["recall@20"][2])


def test_a_fifth_is_a_mean_over_customers_of_their_places_in_the_full_list() -> None:
    fifths = np.array([0, 0, 1, 1])
    # The second customer has two targets in the fifth; the third has none.
    targets = sp.csr_matrix(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]))
    top = np.array([[3, 0], [1, 2], [0, 1]])
    found = evaluate(top, top[:, :0], targets, np.ones(4, bool), fifths).by_quintile()
    second = 1 / math.log2(3)
    assert found["ndcg@20"][0] == pytest.approx((second + 1 / (1 + second)) / 2)
    assert found["recall@20"][0] == pytest.approx((1 + 1 / 2) / 2)
    assert found["recall@20"][1] == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
@settings(deadline=None)
def test_the_last_quintile_is_the_short_head(counts: list[int]) -> None:
    array = np.array(counts)
    tail = tail_mask(array)
    assert np.array_equal(~tail, metrics.popularity_quintiles(array) == 4)
    assert array[~tail].min(initial=9) >= array[tail].max(initial=0)


def test_gini_is_nought_for_even_and_near_one_for_a_single_product() -> None:
    assert metrics.gini(np.full(100, 3)) == pytest.approx(0)
    assert metrics.gini(np.eye(1, 100)[0]) == pytest.approx(0.99)
    assert math.isnan(metrics.gini(np.zeros(3, int)))


def test_shapes_that_do_not_fit_are_refused() -> None:
    targets, tail = sp.csr_matrix(np.zeros((2, 4), bool)), np.ones(4, bool)
    top = np.zeros((2, 20), int)
    with pytest.raises(InputError, match="lists for 2 customers"):
        evaluate(top[:1], top, targets, tail)
    with pytest.raises(InputError, match="20 products at most"):
        evaluate(np.zeros((2, 21), int), top, targets, tail)
    with pytest.raises(InputError, match="one catalogue"):
        MetricSums.empty(3).merge(MetricSums.empty(4))
    with pytest.raises(InputError, match="per-customer"):
        MetricSums.empty(3).per_customer("gini@20")


def test_bootstrap_covers_the_planted_difference_and_leaves_out_missing() -> None:
    rng = np.random.default_rng(3)
    b = rng.random(400)
    a = b + 0.05 + 0.2 * rng.normal(size=400)
    whole = paired_bootstrap(a, b, seed=1)
    assert whole["low"] < 0.05 < whole["high"]
    assert whole["p"] < 0.01
    # The normal limit of the mean's interval: 1.96 s / sqrt(n).
    half = 1.96 * (a - b).std() / 20
    assert whole["high"] - whole["low"] == pytest.approx(2 * half, rel=0.1)
    gaps = np.concatenate([[np.nan] * 5, a]), np.concatenate([[1.0] * 5, b])
    assert paired_bootstrap(*gaps, seed=1) == whole
    assert paired_bootstrap(a, b, seed=1) == whole != paired_bootstrap(a, b, seed=2)
    # Two-sided: no draw of 2,000 lies beyond 0, whichever of the two is the better one.
    sure = b + 1.0 + 0.1 * rng.random(400)
    for pair in ((sure, b), (b, sure)):
        assert paired_bootstrap(*pair, seed=1)["p"] == pytest.approx(2 / 2001)


def test_the_gain_of_one_lucky_customer_is_never_taken_for_a_loss() -> None:
    """Customers are drawn; a normal interval around their mean reaches below all of them."""
    lucky = np.zeros(20)
    lucky[7] = 1.0
    found = paired_bootstrap(lucky, np.zeros(20), seed=0)
    assert found["low"] == 0
    assert found["high"] > 0.1


def test_bootstrap_at_its_edges() -> None:
    same = np.array([0.1, 0.2])
    assert paired_bootstrap(same, same, seed=0) == {"mean": 0, "low": 0, "high": 0, "p": 1}
    assert math.isnan(paired_bootstrap(same[:0], same[:0], seed=0)["p"])


def test_of_one_customer_there_is_a_gain_and_no_interval() -> None:
    # All draws are of the same one: the interval had no width, and p was .001.
    found = paired_bootstrap(np.array([0.5, np.nan]), np.array([0.2, 0.1]), seed=0)
    assert found.pop("mean") == pytest.approx(0.3)
    assert all(map(math.isnan, found.values()))
    assert found.keys() == {"low", "high", "p"}


def test_bootstrap_is_the_same_however_many_draws_are_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A last part that is not cut short draws more than p divides by."""
    stream = np.random.default_rng(5)
    a, b = stream.normal(0.05, 1.0, (2, 90))
    whole = paired_bootstrap(a, b, seed=1)
    for held in (7, 64, 1999):
        monkeypatch.setattr(metrics, "_BOOTSTRAP_CHUNK", held * 90)
        assert paired_bootstrap(a, b, seed=1) == whole


def test_bootstrap_of_many_customers_keeps_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(5000), rng.random(5000)
    exact = paired_bootstrap(a, b, seed=1)
    monkeypatch.setattr(metrics, "_BOOTSTRAP_LIMIT", 100)
    limit = paired_bootstrap(a, b, seed=1)
    width = exact["high"] - exact["low"]
    assert limit["low"] == pytest.approx(exact["low"], abs=0.05 * width)
    assert limit["high"] == pytest.approx(exact["high"], abs=0.05 * width)


@pytest.mark.slow  # It measures time.
def test_the_reference_size_is_ranked_and_measured_in_seconds() -> None:
    rng = np.random.default_rng(0)
    n, customers = 20_800, 2_300
    scores = rng.random((customers, n), dtype=np.float32)
    targets = sp.csr_matrix(rng.random((customers, n), dtype=np.float32) < 0.003)
    counts = rng.integers(0, 500, n)
    start = time.process_time()
    found = measure(scores, targets, counts)
    assert time.process_time() - start < 3
    assert found.exposure.sum() == customers * 20
