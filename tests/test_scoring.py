"""Lists, filters and the tail dial."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import FedtailError, InputError
from common.scoring import re_rank, score_blocks, top_k, top_lists

LEVELS = st.sampled_from([-1.0, 0.0, 0.5, 2.0, -np.inf])
SCORES = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 30)), elements=LEVELS)


@given(SCORES, st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_top_k_is_a_stable_sort_of_what_is_allowed(scores: np.ndarray, k: int, random) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    customers, n = scores.shape
    bought = np.array([[random.random() < 0.3 for _ in range(n)] for _ in range(customers)])
    allowed = np.array([random.random() < 0.7 for _ in range(n)])
    everything = random.random() < 0.3
    allowed |= everything
    before = scores.copy()
    rows, best = top_k(scores, k, sp.csr_matrix(bought), None if everything else allowed)
    for customer in range(customers):
        open_ = [
            i
            for i in range(n)
            if allowed[i] and not bought[customer, i] and scores[customer, i] > -np.inf
        ]
        expected = sorted(open_, key=lambda i: (-scores[customer, i], i))[:k]
        assert rows[customer].tolist() == expected + [-1] * (k - len(expected))
        assert best[customer, : len(expected)].tolist() == [scores[customer, i] for i in expected]
    assert np.array_equal(scores, before)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(FedtailError, match="not a number"):
        top_k(np.array([[0.0, np.nan, 1.0]]), 1)
    with pytest.raises(FedtailError, match="not a number"):
        top_k(np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]]), 2)


def test_blocks_hold_their_size_and_give_the_same_lists() -> None:
    scores = np.random.default_rng(0).random((7, 50), dtype=np.float32)
    blocks = list(score_blocks(lambda rows: scores[rows], 7, 50, max_bytes=3 * 50 * 4))
    assert [block.stop - block.start for block, _ in blocks] == [3, 3, 1]
    bought = sp.csr_matrix(scores > 0.8)
    half = np.arange(50) % 2 == 0
    lists = top_lists(lambda rows: scores[rows], 7, 50, 5, exclude=bought, allowed=(None, half))
    for found, mask in zip(lists, (None, half), strict=True):
        rows, best = top_k(scores, 5, bought, mask)
        assert np.array_equal(found.rows, rows)
        assert np.array_equal(found.scores, best)
    # So wide that two customers are a block: each keeps what is theirs.
    (narrow,) = top_lists(lambda rows: scores[rows], 7, 2**23, 5, exclude=bought)
    assert np.array_equal(narrow.rows, lists[0].rows)
    assert top_lists(lambda rows: scores[rows], 0, 50, 5)[0].rows.shape == (0, 5)


def test_a_million_products_are_scored_a_few_customers_at_a_time() -> None:
    sizes = [
        block.stop - block.start
        for block, _ in score_blocks(lambda rows: np.empty((0, 0)), 40, 1_000_000)
    ]
    assert max(sizes) * 4e6 <= 64 * 2**20
    assert sum(sizes) == 40


@given(SCORES, st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_the_dial_at_nought_changes_nothing(scores: np.ndarray, k: int) -> None:
    rows, best = top_k(scores, 20)
    exposure = np.arange(scores.shape[1])[::-1]
    again, same = re_rank(rows, best, k, 0.0, exposure)
    assert np.array_equal(again, rows[:, :k])
    assert np.array_equal(same, best[:, :k])


def test_the_dial_lowers_exposure_step_by_step() -> None:
    rng = np.random.default_rng(2)
    exposure = (1e4 / np.arange(1, 201)).astype(int)
    scores = np.log1p(exposure) + 0.5 * rng.normal(size=(30, 200))
    rows, best = top_k(scores, 100)
    seen = []
    for dial in (0.0, 0.3, 0.7, 1.0):
        chosen, kept = re_rank(rows, best, 10, dial, exposure)
        assert np.array_equal(kept, np.take_along_axis(scores, chosen, axis=1))
        seen.append(np.log1p(exposure[chosen]).mean())
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > seen[-1] + 1
    with pytest.raises(InputError, match="from 0 to 1"):
        re_rank(rows, best, 10, 1.5, exposure)


def test_the_dial_never_lists_a_missing_place_first() -> None:
    rows, best = top_k(np.array([[3.0, 1.0, -np.inf]]), 3)
    chosen, _ = re_rank(rows, best, 3, 1.0, np.array([5, 1, 0]))
    assert chosen.tolist() == [[1, 0, -1]]
    for dial in (0.0, 0.5, 1.0):
        empty = re_rank(np.full((1, 3), -1), np.full((1, 3), -np.inf), 3, dial, np.zeros(3, int))
        assert empty[0].tolist() == [[-1, -1, -1]]
