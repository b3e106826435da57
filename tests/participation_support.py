"""Shops whose training is a stub, on a catalogue of a dozen products."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from client.data import records as shop_records
from client.privacy.ledger import Ledger
from client.privacy.noise import NoiseSource
from client.rounds.participation import answer
from client.rounds.replying import Node
from client.settings import ShopSettings
from common.features import Catalogue, ContentSpec, write_catalogue
from common.model import initial_state, trained_names
from common.protocol import POPULARITY, Arrays, ModelPlan, ReplyHeader, TrainingPlan
from common.schema import ShopEvents

MODEL = ModelPlan(dimension=4, feature_rows=32, customer_rows=8)
PLAN = TrainingPlan(
    rounds=2,
    sample_rate=0.5,
    noise_multiplier=4.0,
    popularity_noise_multiplier=4.0,
    model=MODEL,
)
SECRET = "customer-4711"


class World:
    """A catalogue, some shops, and a training that needs neither."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reads = folder, 0
        self.error: Exception | None = None
        #: Arrays that a careless change would let a round return.
        self.extra: Arrays = {}
        products = pd.DataFrame({"item_id": [f"i{k:02}" for k in range(12)], "category": "tea"})
        self.catalogue = Catalogue.of(products, ContentSpec(hash_rows=MODEL.feature_rows))
        write_catalogue(self.catalogue, folder / "catalogue")

    def shop(self, number: int, **changes: object) -> Path:
        folder = self.folder / "shops" / str(number)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        values: dict[str, object] = {
            "merchant_id": f"m{number}",
            "data": "data",
            "catalogue": "../../catalogue",
            "ledger": "ledger.sqlite",
            "cap_epsilon": 50.0,
            "noise": "seeded",
            "insecure_seeded_noise": True,
        }
        lines = [f"{k} = {_toml(v)}" for k, v in (values | changes).items()]
        (folder / "shop.toml").write_text("\n".join(lines), encoding="utf-8")
        return folder

    def node(self, number: int, run_config: Mapping[str, object] | None = None) -> Node:
        shops = str(self.folder / "shops")
        return Node({"partition-id": number}, run_config or {}, {"FEDTAIL_SHOPS": shops})

    def ask(
        self, kind: str, server_round: int = 0, number: int = 0, **changes: object
    ) -> tuple[ReplyHeader, Arrays]:
        plan = changes.pop("plan", PLAN)
        assert isinstance(plan, TrainingPlan)
        header: dict[str, object] = {
            "run_id": "r1",
            "server_round": server_round,
            "plan_json": plan.model_dump_json(),
            "catalogue_fingerprint": self.catalogue.fingerprint,
        }
        run_config = changes.pop("run_config", None)
        assert run_config is None or isinstance(run_config, dict)
        state = changes.pop("state", initial_state(MODEL, self.catalogue.size))
        assert isinstance(state, dict)
        return answer(kind, header | changes, lambda: state, self.node(number, run_config))

    def spent(self, number: int = 0) -> int:
        path = self.folder / "shops" / str(number) / "ledger.sqlite"
        if not path.exists():
            return 0
        with Ledger.open(path) as ledger:
            return len(ledger.events())


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | float) else f'"{value}"'


def make_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(folder)

    def read_shop(settings: ShopSettings, catalogue: Catalogue) -> ShopEvents:
        world.reads += 1
        return ShopEvents(
            merchant_id=settings.merchant_id,
            user_ids=np.empty(0, object),
            users=np.empty(0, np.int32),
            items=np.empty(0, np.int32),
            timestamps=np.empty(0, np.int64),
            weights=np.empty(0, np.float32),
        )

    def release_popularity(
        plan: TrainingPlan,
        events: ShopEvents,
        n_items: int,
        noise: NoiseSource,
        stocked: np.ndarray | None = None,
    ) -> Arrays:
        if world.error:
            raise world.error
        return {POPULARITY: noise.normal((n_items,), 1.0).astype(np.float32)} | world.extra

    def train_round(
        plan: TrainingPlan,
        server_round: int,
        state: Arrays,
        events: ShopEvents,
        catalogue: Catalogue,
        noise: NoiseSource,
        sampling: np.random.Generator,
        stocked: np.ndarray | None = None,
    ) -> Arrays:
        if world.error:
            raise world.error
        names = trained_names(plan)
        delta = {n: noise.normal(state[n].shape, 1.0).astype(np.float32) for n in names}
        return delta | world.extra

    for name, function in (
        ("client.rounds.popularity_release", release_popularity),
        ("client.training", train_round),
    ):
        module = ModuleType(name)
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(shop_records, "read_shop", read_shop)
    shop_records.forget()
    return world
