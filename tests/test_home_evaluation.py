"""What lists are held against what came next, in a shop's own evaluation as in every simulation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from client.home import evaluation
from client.home.adapting import fit_home
from client.home.evaluation import evaluate_shop, measure_lists
from common.protocol import POPULARITY
from home_support import HomeShop, N, purchases

#: From the best to the worst: 0, 1, ..., 5; the tail is all but 0 and 1.
SCORES, TAIL = np.arange(6, 0, -1, dtype=np.float32), np.arange(6) > 1


def rows(*entries: list[int]) -> sparse.csr_matrix:
    dense = np.zeros((len(entries), 6), np.float32)
    for row, items in enumerate(entries):
        dense[row, items] = 1.0
    return sparse.csr_matrix(dense)


def measured(
    history: sparse.csr_matrix, targets: sparse.csr_matrix, stock: np.ndarray | None = None
) -> Any:
    def score(asked: sparse.csr_matrix) -> np.ndarray:
        return np.tile(SCORES, (asked.shape[0], 1))

    return measure_lists(score, history, targets, TAIL, stock)


def test_what_was_bought_is_not_ranked_and_who_bought_nothing_is_shown_nothing() -> None:
    sums, everything, tails = measured(rows([0, 2], []), rows([1, 3], []))
    assert everything.rows[0].tolist()[:5] == [1, 3, 4, 5, -1]
    assert tails.rows[0].tolist()[:4] == [3, 4, 5, -1]
    assert (everything.rows[1] == -1).all()
    assert (tails.rows[1] == -1).all()
    assert (sums.ndcg[0], sums.tail_ndcg[0]) == (1, 1)
    assert sums.exposure.tolist() == [0, 1, 0, 1, 1, 1]


def test_only_what_the_shop_stocks_is_ranked_in_both_lists() -> None:
    stock = np.array([True, False, False, True, True, False])
    sums, everything, tails = measured(rows([5]), rows([0, 3]), stock)
    assert everything.rows[0].tolist()[:4] == [0, 3, 4, -1]
    assert tails.rows[0].tolist()[:3] == [3, 4, -1]
    assert (sums.ndcg[0], sums.tail_ndcg[0]) == (1, 1)


def test_a_shop_is_held_against_what_it_can_do_without_the_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compared with knows no released popularity; all rank what the shop stocks."""
    shop = HomeShop(tmp_path)
    shop.model()
    stocked = [f"i{k:02}" for k in range(0, N, 2)]
    shop.sell(purchases(), stocked)
    models, stocks = [], []

    def fitting(model: Any, *more: Any) -> Any:
        models.append(model)
        return fit_home(model, *more)

    def measuring(*given: Any) -> Any:
        stocks.append(given[4])
        return measure_lists(*given)

    monkeypatch.setattr(evaluation, "fit_home", fitting)
    monkeypatch.setattr(evaluation, "measure_lists", measuring)
    evaluate_shop(shop.settings)
    own, mixed = models
    assert not own.state[POPULARITY].any()
    assert mixed.state[POPULARITY].any()
    assert len(stocks) == 3
    for stock in stocks:
        assert np.flatnonzero(stock).tolist() == list(range(0, N, 2))
