"""A small shop with a model that came home."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client.settings import ShopSettings, read_settings
from common.artifact import Manifest, save_model
from common.features import Catalogue, ContentSpec, write_catalogue
from common.model import initial_state
from common.protocol import POPULARITY, ModelPlan, TrainingPlan

N = 60
DAY = 86_400
START = 1_700_000_000 // DAY * DAY
Record = tuple[str, str, int]


class HomeShop:
    """A shop's folder, its catalogue, and models that came home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shop"
        (self.folder / "data").mkdir(parents=True)
        self.path = self.folder / "shop.toml"
        self.catalogue_folder = folder / "catalogue"
        self.publish()
        self.configure()

    @property
    def settings(self) -> ShopSettings:
        return read_settings(self.path)

    def configure(self, text: str = "", **changes: object) -> None:
        values: dict[str, object] = {
            "merchant_id": "corner",
            "data": "data",
            "catalogue": "../catalogue",
            "ledger": "ledger.sqlite",
            "cap_epsilon": 8.0,
        }
        kept = {name: value for name, value in (values | changes).items() if value is not None}
        lines = [f"{name} = {json.dumps(value)}" for name, value in kept.items()]
        self.path.write_text("\n".join([*lines, text]), encoding="utf-8")

    def publish(self, kinds: int = 5, retired: Iterable[int] = ()) -> Catalogue:
        frame = pd.DataFrame(
            {
                "item_id": [f"i{k:02}" for k in range(N)],
                "type": [f"t{k % kinds}" for k in range(N)],
                "title": [f"Product {k}" for k in range(N)],
            }
        )
        if gone := set(retired):
            frame["retired"] = ["yes" if k in gone else "" for k in range(N)]
        catalogue = Catalogue.of(frame, ContentSpec(features=("type",), content_width=64))
        shutil.rmtree(self.catalogue_folder, ignore_errors=True)
        write_catalogue(catalogue, self.catalogue_folder)
        self.catalogue = catalogue
        return catalogue

    def model(self, name: str = "run-1", **changes: Any) -> Path:
        """Let a model come home; return its folder."""
        plan = TrainingPlan(
            rounds=2,
            popularity_noise_multiplier=4.0,
            noise_multiplier=4.0,
            model=ModelPlan(dimension=3),
        ).model_copy(update=changes)
        stream = np.random.default_rng(len(name))
        state = initial_state(plan.model, N)
        state[POPULARITY] = stream.dirichlet(np.ones(N)).astype(np.float32)
        manifest = Manifest(
            version=name,
            server_round=plan.rounds,
            data_columns=("item_id", "type", "title"),
            config={"plan": plan.model_dump(mode="json")},
            code_digest="0",
            privacy=None,
            catalogue_fingerprint=self.catalogue.fingerprint,
        )
        folder = self.folder / "models" / name
        save_model(folder, state, self.catalogue.item_ids, manifest)
        current = self.folder / "models" / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(name)
        return folder

    def sell(self, records: Iterable[Record], stock: Iterable[str] = ()) -> None:
        """Write the shop's records: user, item, time."""
        frame = pd.DataFrame(list(records), columns=["user_id", "item_id", "timestamp"])
        frame = frame.assign(merchant_id="corner", behavior="purchase")
        frame.to_csv(self.folder / "data" / "interactions.csv", index=False)
        shelves = self.folder / "data" / "stock.csv"
        shelves.unlink(missing_ok=True)
        if items := list(stock):
            pd.DataFrame({"merchant_id": "corner", "item_id": items}).to_csv(shelves, index=False)


def purchases(customers: int = 40, seed: int = 0, days: int = 100) -> list[Record]:
    """Return records of customers with tastes: of products of their kind they take more."""
    stream = np.random.default_rng(seed)
    found = []
    for user in range(customers):
        taste = user % 5
        chance = np.where(np.arange(N) % 5 == taste, 0.6, 0.1)
        for item in np.flatnonzero(stream.random(N) < chance):
            time = START + int(stream.integers(0, days * DAY))
            found.append((f"u{user:02}", f"i{item:02}", time))
    return found
