"""Shops of a town with planted sales, keys and a roster, and a server that asks them for sums."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Error, Message

from client.app import app
from client.data.records import forget
from client.joining.keys import make_keys
from client.privacy.ledger import Ledger
from client.rounds.replying import Node
from common.catalogue.stock import Stock, read_stock
from common.features import Catalogue, write_catalogue
from common.model import initial_state, state_spec, trained_names
from common.protocol import (
    NO_FINGERPRINT,
    SUM_STAGES,
    Arrays,
    ModelPlan,
    TrainingPlan,
    plan_digest,
)
from common.secure_sum.members import Roster, read_roster, roster_text, threshold
from common.secure_sum.messages import Session, state_digest
from common.secure_sum.primitives import fresh
from federation_support import Fault, FaultyGrid, make_settings, no_fault
from server.checkpoints import Checkpoint
from server.job import Event, Job
from server.strategy import Federation

ITEM_COUNT, SHOPS = 30, 5
ONE = {"rounds": 1}
PLAN = TrainingPlan(
    trust="federation",
    honest_shops=3,
    rounds=2,
    noise_multiplier=4.0,
    popularity_noise_multiplier=2.0,
    model=ModelPlan(dimension=4),
)


class Town:
    """Shops with planted sales, keys, and the roster that each of them holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        items = [f"i{k:02}" for k in range(ITEM_COUNT)]
        products = pd.DataFrame({"item_id": items, "category": [f"c{k % 5}" for k in range(30)]})
        self.catalogue = Catalogue.of(products)
        write_catalogue(self.catalogue, folder / "catalogue")
        for shop in range(SHOPS):
            self.write(shop)
        self.share_roster()

    def write(self, shop: int, settings: str = "", section: str = "", customers: int = 12) -> None:
        stream = np.random.default_rng(shop)
        home = self.folder / "shops" / str(shop)
        (home / "data").mkdir(parents=True, exist_ok=True)
        users = np.repeat(np.arange(customers), 6)
        columns = {
            "merchant_id": f"m{shop}",
            "user_id": [f"u{u}" for u in users],
            "item_id": stream.choice(self.catalogue.item_ids, len(users)),
            "timestamp": 1_700_000_000 + np.arange(len(users)),
            "behavior": "purchase",
        }
        pd.DataFrame(columns).to_csv(home / "data" / "interactions.csv", index=False)
        if not (home / "node.key").exists():
            make_keys(home / "node.key")
        lines = {
            "merchant_id": f'"m{shop}"',
            "data": '"data"',
            "catalogue": '"../../catalogue"',
            "ledger": '"ledger.sqlite"',
            "cap_epsilon": "1e12",
            "noise": '"seeded"',
            "insecure_seeded_noise": "true",
        }
        lines |= dict(line.split(" = ") for line in settings.splitlines())
        text = "".join(f"{key} = {value}\n" for key, value in lines.items())
        text += '[secure_sum]\nkey = "node.key"\nroster = "../roster"\n' + section
        (home / "shop.toml").write_text(text, encoding="utf-8")

    def share_roster(self) -> None:
        shops = []
        for shop in range(SHOPS):
            path = self.folder / "shops" / str(shop) / "node.pub"
            key = load_ssh_public_key(path.read_bytes())
            assert isinstance(key, ec.EllipticCurvePublicKey)
            shops.append((f"m{shop}", key))
        (self.folder / "shops" / "roster").write_text(roster_text(shops))

    @property
    def roster(self) -> Roster:
        return read_roster(self.folder / "shops" / "roster")

    def publish_stock(self, stocked: Mapping[int, Sequence[int]]) -> Stock:
        """Publish which products of the catalogue each shop stocks."""
        rows = [(f"m{shop}", k) for shop, places in stocked.items() for k in places]
        items = [self.catalogue.item_ids[k] for _, k in rows]
        table = pd.DataFrame({"merchant_id": [shop for shop, _ in rows], "item_id": items})
        folder = self.folder / "catalogue"
        shutil.rmtree(folder)
        write_catalogue(self.catalogue, folder, table)
        return Stock.of(table, self.catalogue)

    def job(self, plan: TrainingPlan, **settings: object) -> Job:
        values: dict[str, object] = {"server_optimizer": "none", "server_learning_rate": 1.0}
        values |= {"max_update_norm": 0.0, "timeout_seconds": 120.0}
        return Job(
            "run",
            plan,
            make_settings(**(values | settings)),
            self.catalogue.fingerprint,
            state_spec(plan.model, ITEM_COUNT),
            trained_names(plan),
            self.catalogue.features,
            self.roster,
            read_stock(self.folder / "catalogue", self.catalogue),
            self.catalogue,
        )

    def train(
        self, plan: TrainingPlan = PLAN, fault: Fault = no_fault, **settings: object
    ) -> tuple[list[Checkpoint], list[Event]]:
        saved: list[Checkpoint] = []
        events: list[Event] = []
        grid = FaultyGrid(app, SHOPS, fault=fault)
        federation = Federation(
            grid, self.job(plan, **settings), save=saved.append, report=events.append
        )
        federation.run(initial_state(plan.model, ITEM_COUNT))
        return saved, events

    def spent(self, shop: int) -> list[int]:
        path = self.folder / "shops" / str(shop) / "ledger.sqlite"
        if not path.exists():
            return []
        with Ledger.open(path) as ledger:
            return [entry.event.server_round for entry in ledger.verify()]

    def node(self, shop: int) -> Node:
        return Node({"partition-id": shop}, {}, {"FEDTAIL_SHOPS": str(self.folder / "shops")})

    def header(self, server_round: int, plan: TrainingPlan = PLAN) -> dict[str, object]:
        return {
            "run_id": "run",
            "server_round": server_round,
            "plan_json": plan.model_dump_json(),
            "catalogue_fingerprint": self.catalogue.fingerprint,
        }

    def session(self, at: int, state: Arrays, **changes: object) -> Session:
        server_round = at
        values: dict[str, object] = {
            "run_id": "run",
            "server_round": server_round,
            "kind": "update" if server_round else "release",
            "plan_digest": plan_digest(PLAN),
            "catalogue_fingerprint": self.catalogue.fingerprint,
            "stock_fingerprint": NO_FINGERPRINT,
            "state_digest": state_digest(state),
            "roster_digest": self.roster.digest,
            "threshold": threshold(SHOPS, 3, 0),
            "length": 4 * ITEM_COUNT if server_round else ITEM_COUNT,
            "nonce": fresh(),
        }
        return Session.model_validate(values | changes)


def make_town(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    forget()
    monkeypatch.setenv("FEDTAIL_SHOPS", str(folder / "shops"))
    return Town(folder)


def killed(shop: int, stage: str, server_round: int = 1, *, before: bool = False) -> Fault:
    """A shop that says nothing from a stage of a round on, until the round is over."""
    later = SUM_STAGES[SUM_STAGES.index(stage) :]

    def fault(number: int, kind: str, at: int, reply: Message) -> Message | None:
        if (number, at) == (shop, server_round) and kind in later:
            return broken(reply)
        return reply

    return fault


def broken(reply: Message) -> Message:
    """As Flower tells of a node that is gone."""
    broken = Message(Error(code=3, reason="gone"), reply_to=reply)
    broken.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
    return broken


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]
