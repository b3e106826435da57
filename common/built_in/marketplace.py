"""A synthetic marketplace whose truth is known: planted tastes, power laws, stocks, seasons.

A customer buys product ``i`` with probability proportional to

``popularity_i * stocked_i * exp(taste_strength * <t_u, t_g(i)>) * season_g(i)(week)``

where ``t_u`` and ``t_g`` are taste vectors of the customer and of the product's hidden group.
Groups are drawn before products, so a draw costs the number of groups and not of products.
Content columns tell the group only with probability ``content_fidelity``: the rest of a product's
group can be learned from purchases alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field

from common.partitioning import shop_shares
from common.protocol import Frozen
from common.rng import derive

WEEK = 7 * 24 * 3600
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
#: Customers drawn at a time: what bounds the memory.
CHUNK = 256


class MarketplaceConfig(Frozen):
    """Size and shape of a marketplace.

    Defaults follow Complete Journey's 20 local markets, where the logarithm of a basket's size
    has mean 1.69 and deviation 1.12 (5 lines in the median, 9.9 in the mean), that of a
    customer's baskets in a year mean 3.58 (36) and deviation 1.0; the number of a product's
    customers falls as rank ** -0.72 (ranks 100 to 10,000); shop sizes fall as rank ** -0.46; a
    market sells 57% of all products; 1.73 lines are of one customer and product. Demand falls
    more slowly, as rank ** -0.63, because a customer of a popular product counts only once.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    shops: int = Field(20, ge=1)
    customers_per_shop: int = Field(114, ge=0)
    products: int = Field(20_000, ge=1)
    shop_skew: float = Field(0.46, ge=0)
    popularity_exponent: float = Field(0.63, ge=0)
    assortment: float = Field(0.57, gt=0, le=1)
    basket_log_mean: float = 1.69
    basket_log_std: float = Field(1.12, ge=0)
    visits_log_mean: float = 3.58
    visits_log_std: float = Field(1.0, ge=0)
    repeat_share: float = Field(0.25, ge=0, lt=1)
    taste_dimension: int = Field(8, ge=1)
    taste_strength: float = Field(1.0, ge=0)
    groups: int = Field(500, ge=1)
    season_strength: float = Field(0.5, ge=0, lt=1)
    content_fidelity: float = Field(0.7, ge=0, le=1)
    categories: int = Field(50, ge=1)
    brands: int = Field(200, ge=1)
    start: int = 1_704_067_200
    weeks: int = Field(52, ge=2)
    train_weeks: int = Field(40, ge=1)
    seed: int = 0

    @property
    def train_until(self) -> int:
        """Epoch seconds where testing begins."""
        return self.start + self.train_weeks * WEEK

    def shop_sizes(self) -> np.ndarray:
        """Return (shops,) int64 customers of each shop."""
        total = self.shops * self.customers_per_shop
        ends = np.round(np.cumsum(shop_shares(self.shops, self.shop_skew)) * total)
        return np.diff(ends, prepend=0).astype(np.int64)


@dataclass(frozen=True)
class Truth:
    """What was planted.

    Attributes
    ----------
    group_taste, season_phase
        (G, T) taste vectors and (G,) time of year, between 0 and 1, of each hidden group.
    item_group, popularity
        (n,) group of each product, and its share of all demand.
    """

    group_taste: np.ndarray
    season_phase: np.ndarray
    item_group: np.ndarray
    popularity: np.ndarray


def planted_truth(config: MarketplaceConfig) -> Truth:
    """Return what a configuration plants; the same arguments give the same truth."""
    draw = derive(config.seed, purpose="marketplace-truth")
    popularity = np.arange(1, config.products + 1, dtype=np.float64) ** -config.popularity_exponent
    return Truth(
        group_taste=draw.standard_normal((config.groups, config.taste_dimension)),
        season_phase=draw.random(config.groups),
        item_group=draw.integers(0, config.groups, config.products),
        popularity=draw.permutation(popularity / popularity.sum()),
    )


def customer_taste(config: MarketplaceConfig, shop: int) -> np.ndarray:
    """Return (customers of the shop, T) planted taste vectors."""
    draw = derive(config.seed, purpose="marketplace-taste", merchant_id=shop_name(shop))
    return draw.standard_normal((config.shop_sizes()[shop], config.taste_dimension))


def assortment(config: MarketplaceConfig, shop: int) -> np.ndarray:
    """Return the products that a shop stocks, sorted; popular ones more often than others."""
    draw = derive(config.seed, purpose="marketplace-stock", merchant_id=shop_name(shop))
    count = max(1, round(config.assortment * config.products))
    # Gumbel's trick: a weighted draw without replacement by sorting.
    keys = 0.5 * np.log(planted_truth(config).popularity) + draw.gumbel(size=config.products)
    return np.sort(np.argpartition(-keys, count - 1)[:count])


def shop_name(shop: int) -> str:
    """Return the merchant id of a shop."""
    return f"shop-{shop:03d}"


def item_names(rows: np.ndarray) -> np.ndarray:
    """Return the item ids of products."""
    return np.array([f"product-{row:07d}" for row in rows.tolist()], dtype=object)


def write_marketplace(
    config: MarketplaceConfig, folder: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the contract's tables as Parquet, and ``truth.npz``, shop by shop.

    Purchases are never in memory beyond those of :data:`CHUNK` customers. What grows is 64 bytes
    a customer, the planted tastes, and about 400 bytes a product (572 MB were measured with a
    million products): 0.7 GB for 100 shops of 20,000 customers on a million products.
    """
    truth = planted_truth(config)
    _products(config, truth).to_parquet(folder / "products.parquet", index=False)
    with (
        _Writer(folder / "interactions.parquet") as interactions,
        _Writer(folder / "customers.parquet") as customers,
        _Writer(folder / "stock.parquet") as stock,
    ):
        for shop in range(config.shops):
            stocked = assortment(config, shop)
            stock.write(
                pd.DataFrame({"merchant_id": shop_name(shop), "item_id": item_names(stocked)})
            )
            customers.write(_customers(config, shop))
            for records in _records(config, truth, shop, stocked):
                interactions.write(records)
            if progress is not None:
                progress(shop + 1, config.shops)
    np.savez_compressed(
        folder / "truth.npz",
        group_taste=truth.group_taste,
        season_phase=truth.season_phase,
        item_group=truth.item_group,
        popularity=truth.popularity,
        customer_taste=np.concatenate([customer_taste(config, s) for s in range(config.shops)]),
    )


class _Writer:
    """A Parquet file that grows by frames; the first gives the columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, frame: pd.DataFrame) -> None:
        schema = None if self._file is None else self._file.schema
        table = arrow.Table.from_pandas(frame, schema=schema, preserve_index=False)
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)


def _products(config: MarketplaceConfig, truth: Truth) -> pd.DataFrame:
    """Return the products table; what it says of the group is right only sometimes."""
    draw = derive(config.seed, purpose="marketplace-content")
    n = config.products
    honest = draw.random(n) < config.content_fidelity
    kind = np.where(honest, truth.item_group, draw.integers(0, config.groups, n))
    # Brands lean to a group as well: two of a hundred products of a group share one at random.
    brand = np.where(draw.random(n) < 0.5, kind, draw.integers(0, config.brands, n))
    return pd.DataFrame(
        {
            "item_id": item_names(np.arange(n)),
            "category": [f"category-{k % config.categories}" for k in kind.tolist()],
            "brand": [f"brand-{b % config.brands}" for b in brand.tolist()],
            "type": [f"type-{k}" for k in kind.tolist()],
        }
    )


def _user_names(shop: int, users: np.ndarray) -> np.ndarray:
    return np.array([f"{shop_name(shop)}-customer-{u:06d}" for u in users.tolist()], dtype=object)


def _customers(config: MarketplaceConfig, shop: int) -> pd.DataFrame:
    """Return a shop's customers; their age follows the first dimension of their taste."""
    taste = customer_taste(config, shop)
    draw = derive(config.seed, purpose="marketplace-people", merchant_id=shop_name(shop))
    age = np.searchsorted(
        [-1.0, -0.4, 0.0, 0.4, 1.0], taste[:, 0] + draw.normal(0, 0.5, len(taste))
    )
    return pd.DataFrame(
        {
            "merchant_id": pd.Series([shop_name(shop)] * len(taste), dtype=str),
            "user_id": pd.Series(_user_names(shop, np.arange(len(taste))), dtype=str),
            "age": pd.Series(np.array(AGES, dtype=object)[age], dtype=str),
        }
    )


def _records(
    config: MarketplaceConfig, truth: Truth, shop: int, stocked: np.ndarray
) -> Iterator[pd.DataFrame]:
    """Yield the purchases of a shop's customers, :data:`CHUNK` customers at a time."""
    draw = derive(config.seed, purpose="marketplace-records", merchant_id=shop_name(shop))
    by_group = stocked[np.argsort(truth.item_group[stocked], kind="stable")]
    edges = np.searchsorted(truth.item_group[by_group], np.arange(config.groups + 1))
    demand = np.concatenate([[0.0], np.cumsum(truth.popularity[by_group])])
    taste = customer_taste(config, shop)
    for first in range(0, len(taste), CHUNK):
        own = taste[first : first + CHUNK]
        appeal = np.exp(config.taste_strength * own @ truth.group_taste.T / len(own[0]) ** 0.5)
        chances = np.cumsum(appeal * np.diff(demand[edges]), axis=1)
        chances /= chances[:, -1:]
        users, times, baskets = _visits(config, draw, len(own))
        groups = _groups(config, truth, draw, chances, users, times)
        low, high = demand[edges[groups]], demand[edges[groups + 1]]
        spots = low + draw.random(len(groups)) * (high - low)
        # Rounding may carry a spot over its group's edge by one.
        place = np.searchsorted(demand, spots, side="right") - 1
        items = by_group[np.clip(place, edges[groups], edges[groups + 1] - 1)]
        items = items[_repeats(config, draw, users)]
        names = _user_names(shop, np.arange(first, first + len(own)))
        yield pd.DataFrame(
            {
                "merchant_id": pd.Series([shop_name(shop)] * len(users), dtype=str),
                "user_id": pd.Series(names[users], dtype=str),
                "item_id": pd.Series(item_names(items), dtype=str),
                "timestamp": times,
                "behavior": pd.Series(["purchase"] * len(users), dtype=str),
                "session_id": baskets,
            }
        )


def _visits(
    config: MarketplaceConfig, draw: np.random.Generator, n_users: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user, time and basket of each record, by user and time; everyone comes once."""
    log_visits = draw.normal(config.visits_log_mean, config.visits_log_std, n_users)
    visits = np.clip(np.exp(log_visits), 1, 7 * config.weeks).astype(np.int64)
    users = np.repeat(np.arange(n_users), visits)
    times = config.start + draw.integers(0, config.weeks * WEEK, len(users))
    times = times[np.lexsort((times, users))]
    log_sizes = draw.normal(config.basket_log_mean, config.basket_log_std, len(users))
    sizes = np.clip(np.exp(log_sizes), 1, 200).astype(np.int64)
    starts = np.cumsum(visits) - visits
    numbers = np.arange(len(users)) - np.repeat(starts, visits)
    return np.repeat(users, sizes), np.repeat(times, sizes), np.repeat(numbers, sizes)


def _groups(
    config: MarketplaceConfig,
    truth: Truth,
    draw: np.random.Generator,
    chances: np.ndarray,
    users: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """Return each record's group: drawn by taste, then kept by season (rejection sampling)."""
    flat = (chances + np.arange(len(chances))[:, None]).ravel()
    groups = np.empty(len(users), dtype=np.int64)
    open_rows = np.arange(len(users))
    year = (times - config.start) / (52 * WEEK)
    while len(open_rows):
        owner = users[open_rows]
        spots = np.searchsorted(flat, owner + draw.random(len(open_rows)), side="right")
        drawn = spots - owner * config.groups
        groups[open_rows] = drawn
        angle = 2 * np.pi * (year[open_rows] - truth.season_phase[drawn])
        keep = (1 + config.season_strength * np.cos(angle)) / (1 + config.season_strength)
        open_rows = open_rows[draw.random(len(open_rows)) >= keep]
    return groups


def _repeats(config: MarketplaceConfig, draw: np.random.Generator, users: np.ndarray) -> np.ndarray:
    """Return the record whose product each record repeats; its own index where it is new."""
    first = np.searchsorted(users, users)
    index = np.arange(len(users))
    earlier = first + (draw.random(len(users)) * (index - first)).astype(np.int64)
    source = np.where(
        (draw.random(len(users)) < config.repeat_share) & (index > first), earlier, index
    )
    # A record may repeat one that repeats another: follow to the origin.
    while not np.array_equal(source, source[source]):
        source = source[source]
    return source
