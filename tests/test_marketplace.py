"""The marketplace holds what was planted, and does not grow in memory with its shops."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pytest
from scipy import sparse

from common.built_in.marketplace import (
    MarketplaceConfig,
    assortment,
    customer_taste,
    item_names,
    planted_truth,
    shop_name,
    write_marketplace,
)
from common.datasets import load_marketplace
from common.errors import ConfigError
from common.model import GlobalModel, initial_state
from common.schema import Tables, encode_shops
from simulations.experiment import read_experiment, training_plan
from simulations.world import build_world

EXPERIMENT = Path(__file__).resolve().parent.parent / "simulations/experiments/marketplace.toml"
CONFIG = MarketplaceConfig(
    shops=4, customers_per_shop=60, products=2000, groups=40, taste_strength=2.0, seed=3
)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return load_marketplace(CONFIG).tables


def counts(tables: Tables) -> sparse.csr_matrix:
    """Return (customers, n) distinct purchases, customers in the truth's order."""
    items = item_names(np.arange(CONFIG.products))
    return sparse.vstack([s.matrix(len(items)) for s in encode_shops(tables, items)]).tocsr()


def profiles(config: MarketplaceConfig, bought: sparse.csr_matrix) -> np.ndarray:
    """Return (customers, T): the mean planted taste of what each bought."""
    truth = planted_truth(config)
    found: np.ndarray = bought @ truth.group_taste[truth.item_group]
    found /= bought.getnnz(axis=1)[:, None]
    return found


def test_customers_buy_what_they_were_made_to_like(tables: Tables) -> None:
    bought = counts(tables)
    taste = np.concatenate([customer_taste(CONFIG, s) for s in range(CONFIG.shops)])
    profile = profiles(CONFIG, bought)
    for dimension in range(CONFIG.taste_dimension):
        assert np.corrcoef(profile[:, dimension], taste[:, dimension])[0, 1] > 0.5
    shuffled = taste[np.random.default_rng(0).permutation(len(taste))]
    assert abs(np.corrcoef(profile[:, 0], shuffled[:, 0])[0, 1]) < 0.3


def test_without_taste_strength_there_is_nothing_to_find() -> None:
    config = CONFIG.model_copy(update={"taste_strength": 0.0})
    bought = counts(load_marketplace(config).tables)
    profile = profiles(config, bought)
    taste = np.concatenate([customer_taste(config, s) for s in range(config.shops)])
    found = [np.corrcoef(profile[:, k], taste[:, k])[0, 1] for k in range(config.taste_dimension)]
    assert np.abs(found).max() < 0.3


def test_popular_products_are_bought_by_more(tables: Tables) -> None:
    popularity = planted_truth(CONFIG).popularity
    buyers = np.asarray(counts(tables).sum(axis=0)).ravel()
    order = np.argsort(-popularity)
    assert buyers[order[:200]].sum() > 5 * buyers[order[-200:]].sum()
    assert popularity.max() / popularity.min() == pytest.approx(2000**CONFIG.popularity_exponent)


def test_shops_sell_only_what_they_stock(tables: Tables) -> None:
    for shop in range(CONFIG.shops):
        stocked = tables.stock_of(shop_name(shop))
        assert stocked is not None
        assert stocked.tolist() == item_names(assortment(CONFIG, shop)).tolist()
        assert len(stocked) == round(CONFIG.assortment * CONFIG.products)
        sold = tables.interactions.query("merchant_id == @shop_name(@shop)")["item_id"]
        assert set(sold.astype(str)) <= set(stocked)


def test_seasons_come_when_they_were_planted(tables: Tables) -> None:
    truth = planted_truth(CONFIG)
    frame = tables.interactions
    rows = pd.Index(item_names(np.arange(CONFIG.products))).get_indexer(
        frame["item_id"].astype(str)
    )
    year = (frame["timestamp"].to_numpy() - CONFIG.start) / (52 * 7 * 24 * 3600)
    wave = np.cos(2 * np.pi * (year - truth.season_phase[truth.item_group[rows]]))
    # E[cos] under a density 1 + s cos is s / 2; repeats of earlier purchases blur it.
    assert wave.mean() == pytest.approx(CONFIG.season_strength / 2, abs=0.1)


def test_content_tells_the_group_as_often_as_asked(tables: Tables) -> None:
    truth = planted_truth(CONFIG)
    right = tables.products["type"] == [f"type-{g}" for g in truth.item_group]
    assert right.mean() == pytest.approx(0.7 + 0.3 / CONFIG.groups, abs=0.04)


def test_baskets_follow_the_calibration(tables: Tables) -> None:
    sizes = tables.interactions.groupby(["user_id", "session_id"], observed=True).size()
    assert sizes.median() == pytest.approx(5, abs=1)
    assert sizes.mean() == pytest.approx(9.9, rel=0.15)


def test_shop_sizes_are_skewed_and_complete() -> None:
    sizes = MarketplaceConfig().shop_sizes()
    assert sizes.sum() == 20 * 114
    assert sizes[0] > 2 * sizes[-1]


@pytest.mark.parametrize("size", [(3, 0), (1, 1)])
def test_a_marketplace_may_be_tiny(size: tuple[int, int], tmp_path: Path) -> None:
    config = MarketplaceConfig(shops=size[0], customers_per_shop=size[1], products=5, groups=3)
    write_marketplace(config, tmp_path)
    assert (tmp_path / "truth.npz").is_file()
    assert (tmp_path / "interactions.parquet").is_file() == (size[1] > 0)


def test_a_marketplace_of_nobody_is_no_world_to_train_in() -> None:
    # The file of interactions was missed, in a folder that nobody had named.
    with pytest.raises(ConfigError, match="customers_per_shop is 0"):
        load_marketplace(MarketplaceConfig(customers_per_shop=0))


def test_the_seed_decides_everything() -> None:
    config = MarketplaceConfig(shops=2, customers_per_shop=8, products=50, groups=5)
    one, two = (load_marketplace(config).tables.interactions for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    other = load_marketplace(config.model_copy(update={"seed": 4})).tables.interactions
    assert len(other) != len(one)


def test_memory_does_not_grow_with_shops(tmp_path: Path) -> None:
    # Arrow's part of the memory is what shops are written through; numpy's is freed by chunk.
    def peak(shops: int) -> int:
        folder = tmp_path / str(shops)
        folder.mkdir()
        config = MarketplaceConfig(shops=shops, customers_per_shop=40, products=500, groups=20)
        tracemalloc.start()
        write_marketplace(config, folder)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)
    assert peak(12) < 1.6 * peak(3)
    assert arrow.total_allocated_bytes() < 50e6


@pytest.mark.parametrize("arm", ["federated", "federated-dp"])
def test_the_marketplace_experiment_has_a_plan_that_fits_its_products(arm: str) -> None:
    sizes = {"shops": 2, "customers_per_shop": 5, "products": 300, "groups": 10}
    changes = [f"data.marketplace.{key}={value}" for key, value in sizes.items()]
    experiment = read_experiment(EXPERIMENT, changes)
    world = build_world(experiment)
    plan = training_plan(
        experiment,
        arm,
        validation_from=world.split.validation_from,
        train_until=world.split.train_until,
    )
    assert 0 < plan.tuning_round < plan.rounds
    assert plan.private == (arm == "federated-dp")
    assert [f.name for f in world.catalogue.features] == list(experiment.content.features)
    model = GlobalModel(plan.model, world.catalogue, initial_state(plan.model, 300))
    history = world.test.history[shop_name(0)]
    assert model.pseudo_customers(history).shape == (plan.model.dimension, 300)
