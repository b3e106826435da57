"""A small experiment, and a folder of tables that no built-in data set resembles."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from client.privacy.events import Event
from client.privacy.ledger import Ledger
from simulations.experiment import read_experiment
from simulations.run import run_experiment

DAY = 86_400
START = 1_715_000_000
#: When the split's default puts the test period's begin.
CUT = START + round(0.75 * 99 * DAY)
BIG, ODD, LONELY, EMPTY = "north", "süd/1 % 🛒", "lonely", "nobody"

SMALL = """
[home.local]
start = { content = 0.5, own_ease = 2.4, own_popularity = 0.1 }
[home.centralized]
start = { content = 0.5, pooled_ease = 3.0, own_popularity = 0.1 }
[home.federated]
start = { content = 0.4, learned = 0.6, popularity = 0.3, own_ease = 0.7, own_popularity = 0.1 }
[home.federated-dp]
start = { content = 0.4, learned = 0.3, popularity = 0.1, own_ease = 2.4, own_popularity = 0.1 }
[federated]
rounds = 2
tuning_share = 0.5
[federated.model]
dimension = 4
[federated.server]
server-optimizer = "subspace"
server-momentum = 0.0
[federated-dp]
rounds = 2
tuning_share = 0.5
max_grad_norm = 0.3
[federated-dp.model]
dimension = 2
learned_items = 20
[federated-dp.server]
server-optimizer = "subspace"
server-momentum = 0.5
"""


def write_folder(folder: Path) -> Path:
    """Write four shops of weeks that no built-in data set has; one is known by its stock alone."""
    folder.mkdir()
    stream = np.random.default_rng(3)
    items = [f"sku-{k:03}" for k in range(60)]
    pd.DataFrame(
        {
            "item_id": items,
            "category": [f"c{k % 6}" for k in range(60)],
            "material": [f"m{k % 4}" if k % 9 else None for k in range(60)],
            "weight_g": stream.integers(10, 5_000, 60),
        }
    ).to_csv(folder / "products.csv", index=False)
    rows = []
    for merchant, customers in ((BIG, 25), (ODD, 15), (LONELY, 1)):
        for user in range(customers):
            taste = user % 6
            liked = [k for k in range(60) if k % 6 == taste]
            for _ in range(14):
                pool = liked if stream.random() < 0.8 else range(60)
                day = int(stream.integers(0, 100))
                item = items[int(stream.choice(pool))]
                rows.append((merchant, f"u{user}", item, START + day * DAY, "purchase"))
    columns = ["merchant_id", "user_id", "item_id", "timestamp", "behavior"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "interactions.csv", index=False)
    stock = pd.DataFrame({"merchant_id": EMPTY, "item_id": items[:30]})
    stock.to_csv(folder / "stock.csv", index=False)
    return folder


class Silent:
    """Watches how far a command is, and tells nobody."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, text: str, total: int | None = None) -> None:
        self.stages.append(text)

    def step(self, text: str = "") -> None: ...


def charges_with_half_assortments(folder: Path, *changes: str) -> list[list[Event]]:
    """Return what six shops' ledgers hold of a private simulation; each has half of the products.

    All take part, and pay what was asked for.
    """
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    experiment = read_experiment(
        folder / "small.toml",
        [
            "data.source=marketplace",
            "data.marketplace.shops=6",
            "data.marketplace.customers_per_shop=15",
            "data.marketplace.products=120",
            "data.marketplace.assortment=0.5",
            "run.engine=in-process",
            'run.arms=["local","federated-dp"]',
            *changes,
        ],
    )
    report = run_experiment(experiment, folder / "out", Silent())
    shops = report["arms"]["federated-dp"]["per_shop"]
    assert [shop["took_part"] for shop in shops.values()] == [True] * 6
    assert [shop["epsilon"] for shop in shops.values()] == pytest.approx([8.0] * 6, rel=0.01)
    ledgers = sorted((folder / "out" / "ledgers").iterdir())
    return [[entry.event for entry in Ledger.read(path)] for path in ledgers]
