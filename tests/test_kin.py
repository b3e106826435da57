"""Products of a kind: rare values first, exact where the answer is planted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from client.data.periods import ShopPeriod
from client.home.adapting import adapt
from client.home.answers import HomeAnswers
from client.home.kin import Kin
from client.home.personalization import HomeModel
from client.home.recommending import get_ready
from client.home.weight_search import choose_weights
from client.home_settings import HomeSettings
from common.errors import ArtifactError
from common.features import Catalogue, ContentSpec
from common.metrics import evaluate
from common.model import GlobalModel, check_may_travel, initial_state
from common.protocol import POPULARITY, ModelPlan
from common.scoring import top_k
from home_support import HomeShop, purchases

#: Type a has 2 products, b 3, c 1; maker x 4, y 2; the last product has neither.
TYPES = ["a", "a", "b", "b", "b", "c", ""]
MAKERS = ["x", "y", "x", "x", "y", "x", ""]


def small() -> Catalogue:
    items = [f"i{k}" for k in range(len(TYPES))]
    frame = pd.DataFrame({"item_id": items, "type": TYPES, "maker": MAKERS})
    return Catalogue.of(frame, ContentSpec(features=("type", "maker")))


def row_of(size: int, **bought: float) -> sparse.csr_matrix:
    dense = np.zeros((1, size), np.float32)
    for name, weight in bought.items():
        dense[0, int(name.removeprefix("i"))] = weight
    return sparse.csr_matrix(dense)


def test_a_value_counts_one_over_the_products_that_have_it() -> None:
    kin = Kin.of(small().kin, np.zeros(7))
    scores = kin.scores(row_of(7, i0=1.0))[0]
    # i0 is of type a (2 products) and maker x (4).
    np.testing.assert_allclose(scores, [3 / 4, 1 / 2, 1 / 4, 1 / 4, 0, 1 / 4, 0], atol=1e-6)
    twice = kin.scores(row_of(7, i0=2.0, i4=1.0))[0]
    # i4 is of type b (3) and maker y (2).
    other = np.array([0, 1 / 2, 1 / 3, 1 / 3, 5 / 6, 0, 0])
    np.testing.assert_allclose(twice, 2 * scores + other, atol=1e-6)


def test_who_bought_the_expected_basket_alone_leans_nowhere() -> None:
    basket = np.array([0.5, 0, 0.5, 0, 0, 0, 0])
    kin = Kin.of(small().kin, basket)
    np.testing.assert_allclose(kin.scores(row_of(7, i0=1.0, i2=1.0)), 0, atol=1e-6)
    assert np.abs(kin.scores(row_of(7, i0=1.0))).max() > 0.1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5, unique=True), st.integers(0, 6))
@settings(max_examples=50, deadline=None)
def test_contributions_are_what_the_score_loses(rows: list[int], item: int) -> None:
    basket = np.random.default_rng(0).dirichlet(np.ones(7))
    kin = Kin.of(small().kin, basket)
    bought = {f"i{row}": 0.25 * (1 + row) for row in sorted(rows)}
    history = row_of(7, **bought)
    whole, parts = kin.scores(history)[0, item], kin.contributions(history, item)
    assert parts.sum() == pytest.approx(whole, abs=1e-5)
    for place, name in enumerate(bought):
        rest = row_of(7, **{key: value for key, value in bought.items() if key != name})
        assert whole - kin.scores(rest)[0, item] == pytest.approx(parts[place], abs=1e-5)


def test_customers_are_scored_in_blocks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    basket = np.random.default_rng(1).dirichlet(np.ones(7))
    kin, bought = Kin.of(small().kin, basket), sparse.identity(7, np.float32, format="csr")
    whole = kin.scores(bought)
    monkeypatch.setattr("client.home.kin._PROFILE_BYTES", 1)
    np.testing.assert_allclose(kin.scores(bought), whole, atol=1e-6)


def test_a_product_without_content_has_no_kin() -> None:
    kin = Kin.of(small().kin, np.zeros(7))
    assert not kin.scores(row_of(7, i6=1.0)).any()
    assert kin.codes[[6]].nnz == 0


def test_values_of_one_product_say_nothing_of_others() -> None:
    kin = Kin.of(small().kin, np.zeros(7))
    # i5 alone is of type c: what it shares with others is its maker.
    np.testing.assert_allclose(
        kin.scores(row_of(7, i5=1.0))[0], [1 / 4, 0, 1 / 4, 1 / 4, 0, 5 / 4, 0], atol=1e-6
    )


def planted(customers: int = 60) -> tuple[GlobalModel, ShopPeriod, np.ndarray]:
    """Return a shop whose customers buy further products of a series that they have begun.

    A series has 3 products of one of four types; who begins one, goes on with it. So a type says
    next to nothing, the series all.
    """
    size, stream = 240, np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "item_id": [f"i{k:03}" for k in range(size)],
            "type": [f"t{k // 3 % 4}" for k in range(size)],
            "series": [f"s{k // 3}" for k in range(size)],
        }
    )
    catalogue = Catalogue.of(frame, ContentSpec(features=("type", "series")))
    before, after = np.zeros((2, customers, size), np.float32)
    for user in range(customers):
        for series in stream.choice(size // 3, 10, replace=False):
            first, second = 3 * series + stream.choice(3, 2, replace=False)
            before[user, first] = 1.0
            after[user, second] = 1.0
    plan = ModelPlan(dimension=1, learned_items=1)
    rates = np.full(size, 1 / size, np.float32)
    model = GlobalModel(plan, catalogue, initial_state(plan, size) | {POPULARITY: rates})
    period = ShopPeriod(sparse.csr_matrix(before), sparse.csr_matrix(after))
    return model, period, np.ones(size, bool)


def test_a_planted_series_is_found_and_content_alone_finds_less() -> None:
    model, period, tail = planted()
    found = {}
    for name, start in (
        ("content", {"content": 1.0}),
        ("kin", {"kin": 1.0}),
    ):
        how = HomeSettings(start=start, own_expectation=1.0)
        home = HomeModel.fit(model, period.history, how)
        rows, _ = top_k(home.scores(period.history), 20, exclude=period.history)
        sums = evaluate(rows, rows, period.targets, tail)
        found[name] = float(np.nanmean(sums.per_customer("recall@20")))
    # 20 products are left of the ten series: kin lists just those.
    assert found["kin"] == pytest.approx(1.0)
    assert found["content"] < 0.8


def test_the_weight_of_kin_is_chosen_like_any_other() -> None:
    model, period, tail = planted()
    start = {"content": 0.2, "kin": 0.01, "own_popularity": 2.0}
    how = HomeSettings(start=start, own_expectation=1.0, factors=(0.0, 0.5, 2.0), rounds=6)
    weights = choose_weights(model, period, tail, how)
    assert weights["kin"] / max(weights["own_popularity"], 1e-9) > 0.02


def test_what_shares_nothing_with_a_product_is_not_alike_for_selling_little(
    tmp_path: Path,
) -> None:
    """The expected basket's kin was taken off: after a product's like came the worst sellers."""
    shop = HomeShop(tmp_path)
    shop.model()
    # Of the last of five kinds hardly anything is sold.
    shop.sell([r for r in purchases() if int(r[1][1:]) % 5 < 4 or r[0] < "u10"])
    shop.configure("[home.mixed]\nrounds = 0\nstart = { content = 0.4, kin = 0.5 }\n")
    adapt(shop.path, shop.settings)
    answers = HomeAnswers.of(1, get_ready(shop.path, shop.settings), shop.settings)
    for item in range(5):
        found = answers.similar(f"i{item:02}", 20)
        assert {int(name[1:]) % 5 for name in found.item_ids[:11]} == {item}
        assert min(found.scores[:11]) > 0.1
        assert found.scores[11:] == pytest.approx([0.0] * 9, abs=1e-6)


def test_kin_never_travels() -> None:
    with pytest.raises(ArtifactError, match="kin"):
        check_may_travel({"kin": np.zeros(3)})
