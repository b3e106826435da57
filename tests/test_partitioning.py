"""One contract for all partitioners, and what sets each apart."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
import pytest

from common.errors import ConfigError, DataError
from common.partitioning import (
    Partitioner,
    _favourite,
    by_column,
    dirichlet,
    natural,
    partition,
    shop_shares,
    uniform,
)
from common.schema import Tables
from common.tables.validation import validate_tables

USERS = 240


@cache
def tables(*, merchants: int = 3, own_users: bool = True) -> Tables:
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(USERS), 12)
    # Each customer buys mostly in one of four categories, of ten products each.
    taste = users % 4
    items = np.where(draw.random(len(users)) < 0.8, taste, draw.integers(0, 4, len(users))) * 10
    items = items + draw.integers(0, 10, len(users))
    frame = pd.DataFrame(
        {
            "merchant_id": [f"m{u // 4 % merchants}" for u in users],
            "user_id": users if own_users else users // merchants,
            "item_id": items,
            "timestamp": draw.integers(0, 1000, len(users)),
            "behavior": "purchase",
        }
    )
    goods = pd.DataFrame({"item_id": range(40), "category": [f"c{i // 10}" for i in range(40)]})
    people = pd.DataFrame({"user_id": range(USERS), "region": [f"r{u % 5}" for u in range(USERS)]})
    if own_users:
        people["merchant_id"] = [f"m{u // 4 % merchants}" for u in range(USERS)]
    stock = pd.DataFrame({"merchant_id": ["m0"], "item_id": ["1"]})
    return validate_tables(frame, goods, people, stock, now=10_000)


PARTITIONERS: dict[str, Callable[[int], Partitioner]] = {
    "natural": lambda _: natural(),
    "uniform": lambda seed: uniform(7, seed=seed),
    "uniform, skewed": lambda seed: uniform(7, seed=seed, skew=1.0),
    "dirichlet": lambda seed: dirichlet(7, alpha=0.3, seed=seed),
    "dirichlet, skewed": lambda seed: dirichlet(7, alpha=5.0, seed=seed, skew=1.0),
    "by column": lambda _: by_column("region"),
}


def owners(table: Tables) -> pd.DataFrame:
    return table.interactions[["user_id", "merchant_id"]].astype(str).drop_duplicates()


@pytest.fixture(params=list(PARTITIONERS))
def make(request: pytest.FixtureRequest) -> Callable[[int], Partitioner]:
    return PARTITIONERS[request.param]


def test_every_customer_is_in_exactly_one_merchant(make: Callable[[int], Partitioner]) -> None:
    found = owners(partition(tables(), make(0)))
    assert sorted(found["user_id"].astype(int)) == list(range(USERS))


def test_nothing_is_lost_or_changed(make: Callable[[int], Partitioner]) -> None:
    before, after = tables(), partition(tables(), make(0))
    columns = ["user_id", "item_id", "timestamp", "behavior"]
    pd.testing.assert_frame_equal(before.interactions[columns], after.interactions[columns])
    pd.testing.assert_frame_equal(before.products, after.products)


def test_the_seed_decides_everything(make: Callable[[int], Partitioner]) -> None:
    one, two = partition(tables(), make(1)), partition(tables(), make(1))
    pd.testing.assert_frame_equal(one.interactions, two.interactions)


def test_merchants_have_names_and_their_customers(make: Callable[[int], Partitioner]) -> None:
    after = partition(tables(), make(0))
    assert all(after.merchant_ids)
    assert after.customers is not None
    known = after.customers[["user_id", "merchant_id"]].astype(str)
    assert set(map(tuple, known.to_numpy())) == set(map(tuple, owners(after).to_numpy()))


def test_customers_of_one_name_do_not_melt_together() -> None:
    shared = tables(own_users=False)
    with pytest.raises(DataError, match="unique over all merchants"):
        partition(shared, uniform(2, seed=0))
    assert partition(shared, natural()) is shared


def test_another_seed_deals_differently() -> None:
    one, two = (partition(tables(), uniform(5, seed=s)).interactions for s in (0, 1))
    assert (one["merchant_id"] != two["merchant_id"]).any()


def test_natural_keeps_names_and_stock_and_others_do_not() -> None:
    kept = partition(tables(), natural())
    assert kept.merchant_ids == ["m0", "m1", "m2"]
    assert kept.stock is not None
    assert partition(tables(), uniform(3, seed=0)).stock is None


def test_skew_makes_the_first_shop_largest() -> None:
    sizes = owners(partition(tables(), uniform(4, seed=0, skew=1.0)))["merchant_id"].value_counts()
    assert sizes["shop-0"] == round(USERS * 12 / 25)
    assert shop_shares(4, 0.0).tolist() == [0.25] * 4


def concentration(alpha: float) -> float:
    after = partition(tables(), dirichlet(4, alpha=alpha, seed=0))
    frame = after.interactions.astype(str)
    counts = pd.crosstab(frame["merchant_id"], frame["item_id"].astype(int) // 10)
    shares = counts.to_numpy() / counts.to_numpy().sum(axis=1, keepdims=True)
    return float(np.average((shares**2).sum(axis=1), weights=counts.sum(axis=1)))


def test_a_small_alpha_gives_each_shop_few_categories() -> None:
    assert concentration(0.05) > concentration(1000.0) + 0.1


def kinds(groups: int, each: int) -> Tables:
    """Return customers of one record and one category each; products in another order."""
    users = np.arange(groups * each)
    frame = pd.DataFrame(
        {
            "merchant_id": "m",
            "user_id": [f"u{u:05}" for u in users],
            "item_id": users % groups,
            "timestamp": users,
            "behavior": "purchase",
        }
    )
    goods = pd.DataFrame({"item_id": range(groups), "category": range(groups)})
    return validate_tables(frame, goods[::-1], now=10**6)


def dealt(table: Tables, partitioner: Partitioner, groups: int) -> np.ndarray:
    """Return (groups, shops) how many customers of each category each shop has."""
    frame = partition(table, partitioner).interactions.astype(str)
    frame["kind"] = frame["item_id"].astype(int)
    counts = pd.crosstab(frame["kind"], frame["merchant_id"]).to_numpy()
    assert len(counts) == groups
    return counts


def test_alpha_is_that_of_a_dirichlet_distribution_for_each_shop() -> None:
    """Of Dirichlet(a s_1, ..., a s_n), Σ share² is (1 + a Σ s²) / (1 + a) in the mean."""
    table = kinds(200, 40)
    for skew in (0.0, 1.0):
        shares = shop_shares(4, skew)
        found = dealt(table, dirichlet(4, alpha=0.5, seed=3, skew=skew), 200) / 40
        expected = (1 + 2.0 * (shares**2).sum()) / (1 + 2.0)
        assert (found**2).sum(axis=1).mean() == pytest.approx(expected, abs=0.05)
        assert found.mean(axis=0) == pytest.approx(shares, abs=0.06)


@pytest.mark.parametrize("alpha", [1e-9, 1e-3])
def test_the_smallest_alpha_gives_each_category_to_one_shop(alpha: float) -> None:
    """A floor under draws that are next to 0 dealt such categories evenly, as a large alpha does.

    Products stand in another order than in the interactions: a category is of its products.
    """
    counts = dealt(kinds(60, 30), dirichlet(5, alpha=alpha, seed=0, skew=0.5), 60)
    assert (counts.max(axis=1) == 30).mean() > 0.95
    owners = np.bincount(counts.argmax(axis=1), minlength=5) / 60
    assert owners == pytest.approx(shop_shares(5, 0.5), abs=0.15)


def test_customers_of_a_category_are_dealt_whatever_their_names() -> None:
    frame = partition(kinds(1, 60), dirichlet(2, alpha=100.0, seed=0)).interactions
    shops = frame.sort_values("user_id")["merchant_id"].astype(str).tolist()
    assert shops not in (sorted(shops), sorted(shops, reverse=True))


def test_customers_of_one_name_who_stay_apart_are_two() -> None:
    frame = pd.DataFrame(
        {
            "merchant_id": ["m0", "m1", "m1"],
            "user_id": ["u", "u", "stranger"],
            "item_id": 0,
            "timestamp": 0,
            "behavior": "purchase",
        }
    )
    people = pd.DataFrame(
        {"merchant_id": ["m0", "m1"], "user_id": ["u", "u"], "region": ["north", "south"]}
    )
    before = validate_tables(frame, pd.DataFrame({"item_id": [0]}), people, now=1)
    after = partition(before, by_column("region"))
    # Of whom nothing is known are a shop of their own, and no last row's.
    assert after.interactions["merchant_id"].nunique() == 3
    assert after.customers is not None
    assert after.customers["region"].tolist() == ["north", "south"]
    assert after.customers["merchant_id"].tolist() == ["shop-1", "shop-2"]


def test_whose_categories_are_even_goes_by_the_first_and_no_category_is_one() -> None:
    records = [("u", 0), ("u", 2), ("v", 3), ("v", 2), ("v", 2), ("w", 3)]
    frame = pd.DataFrame(records, columns=["user_id", "item_id"]).assign(
        merchant_id="m", timestamp=0, behavior="view"
    )
    goods = pd.DataFrame({"item_id": [0, 2, 3], "category": ["b", "a", None]})
    table = validate_tables(frame, goods, now=1)
    customers = pd.DataFrame({"merchant": 0, "user": [0, 1, 2]})
    assert _favourite(table, customers, "category").tolist() == [1, 1, 0]


def test_who_would_meet_in_one_shop_is_named() -> None:
    users = ["alone", "twice", "twice", "other"]
    frame = pd.DataFrame({"merchant_id": ["a", "a", "b", "b"], "user_id": users})
    frame = frame.assign(item_id=0, timestamp=0, behavior="view")
    table = validate_tables(frame, pd.DataFrame({"item_id": [0]}), now=1)
    with pytest.raises(DataError, match="user_id 'twice' is a customer of several"):
        partition(table, uniform(1, seed=0))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        dirichlet(3, alpha=0, seed=0)
    with pytest.raises(ConfigError, match="at least 1 merchant"):
        uniform(0, seed=0)
    with pytest.raises(ConfigError, match="skew"):
        uniform(3, seed=0, skew=-1)
    with pytest.raises(DataError, match="'town' is missing"):
        partition(tables(), by_column("town"))
    with pytest.raises(DataError, match="'colour' is missing"):
        partition(tables(), dirichlet(3, alpha=1, seed=0, column="colour"))
