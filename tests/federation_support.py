"""A federation inside one process: no Ray, no network, faults on demand."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from common.features import Catalogue, write_catalogue
from common.protocol import (
    HEADER,
    NO_FINGERPRINT,
    POPULARITY,
    PUBLIC_WEIGHT,
    UPDATE,
    WEIGHT,
    Arrays,
    ReplyHeader,
    RoundHeader,
    StatusCode,
    TrainingPlan,
    shop_key,
)
from common.rng import derive
from server.job import Job
from server.settings import RunSettings
from simulations.engine.in_process import InProcessGrid

FINGERPRINT = "f" * 64
ITEMS = 7
SHAPES: dict[str, tuple[int, ...]] = {
    POPULARITY: (ITEMS,),
    "item_embedding": (ITEMS, 2),
    "item_bias": (ITEMS,),
}
TRAINED = ("item_embedding", "item_bias")

#: (shop number, exchange, round, reply) -> what arrives instead; None: nothing ever does.
Fault = Callable[[int, str, int, Message], Message | None]


def no_fault(_shop: int, _kind: str, _round: int, reply: Message) -> Message | None:
    return reply


class Clock:
    """Goes on only while somebody sleeps: who answers is in time, however busy the machine is."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class FaultyGrid(InProcessGrid):
    """Answers come in a shuffled order, or not, or not as they were sent."""

    def __init__(
        self,
        app: ClientApp,
        shops: int,
        *,
        fault: Fault = no_fault,
        order: int = 0,
        run_config: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        self._fault, self._order = fault, np.random.default_rng(order)
        # Flower's node ids are random: so are these.
        ids = self._order.choice(10_000, size=shops, replace=False) + 2
        nodes = {int(node): shop for shop, node in enumerate(ids)}
        super().__init__(app, nodes, run_config or {})
        self.sent: list[tuple[int, str, int]] = []

    def answer(self, message: Message) -> Message | None:
        shop = self.nodes[message.metadata.dst_node_id]
        kind = message.metadata.message_type.split(".")[1]
        server_round = int(message.metadata.group_id)
        self.sent.append((shop, kind, server_round))
        reply = super().answer(message)
        return None if reply is None else self._fault(shop, kind, server_round, reply)

    def choose(self, waiting: list[str]) -> list[str]:
        count = (len(waiting) + 1) // 2
        return [waiting[k] for k in self._order.permutation(len(waiting))[:count]]


def toy_app(decline: Mapping[int, StatusCode] | None = None) -> ClientApp:
    """Shops whose update pulls the state towards a value of their own, with seeded noise."""
    app = ClientApp()

    def respond(message: Message, context: Context) -> Message:
        header = RoundHeader.model_validate(dict(message.content.config_records[HEADER]))
        shop = int(context.node_config["partition-id"])
        kind = message.metadata.message_type.split(".")[1]
        status = (decline or {}).get(shop, "ok")
        stream = derive(shop, purpose=kind, server_round=header.server_round)
        arrays: Arrays = {}
        if kind == "release":
            arrays = {POPULARITY: stream.random(ITEMS).astype(np.float32)}
        elif kind == "update":
            arrays = {
                name: (
                    shop
                    - message.content.array_records["state"][name].numpy()
                    + stream.normal(size=SHAPES[name])
                ).astype(np.float32)
                for name in TRAINED
            }
        return make_reply(message, shop, arrays if status == "ok" else {}, status=status)

    app.query("join")(respond)
    app.train("release")(respond)
    app.train("update")(respond)
    return app


def make_reply(
    message: Message,
    shop: int,
    arrays: Arrays,
    *,
    status: StatusCode = "ok",
    weight: float = PUBLIC_WEIGHT,
    server_round: int | None = None,
    fingerprint: str = FINGERPRINT,
) -> Message:
    """Return a reply as a shop would send it."""
    asked = int(message.metadata.group_id) if server_round is None else server_round
    header = ReplyHeader(
        status=status,
        server_round=asked,
        shop=shop_key(f"shop-{shop}"),
        catalogue_fingerprint=fingerprint,
        ledger_head=NO_FINGERPRINT,
        noise="none",
    )
    content = RecordDict(
        {HEADER: ConfigRecord(header.model_dump()), WEIGHT: MetricRecord({WEIGHT: weight})}
    )
    if arrays:
        content[UPDATE] = ArrayRecord({name: Array(a) for name, a in arrays.items()})
    return Message(content, reply_to=message)


def make_settings(**changes: object) -> RunSettings:
    values: dict[str, object] = {
        "seed": 3,
        "clients_per_round": 1.0,
        "quorum": 0.5,
        "min_shops": 1,
        "max_update_norm": 100.0,
        "server_optimizer": "adam",
        "server_learning_rate": 0.5,
        "server_momentum": 0.9,
        "server_beta_2": 0.99,
        "server_tau": 1e-3,
        "timeout_seconds": 5.0,
        "wait_seconds": 0.05,
    }
    return RunSettings.model_validate(values | changes)


def make_job(rounds: int = 3, *, private: bool = False, **changes: object) -> Job:
    plan = TrainingPlan(rounds=rounds, private=private, popularity_noise_multiplier=0.01)
    return Job("run", plan, make_settings(**changes), FINGERPRINT, SHAPES, TRAINED)


def start_state() -> Arrays:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def names(sequence: Sequence[tuple[int, str, int]], kind: str) -> list[tuple[int, int]]:
    """Return (shop, round) of the messages of one exchange."""
    return [(shop, server_round) for shop, k, server_round in sequence if k == kind]


def write_federation(folder: Path, *, allow_unprotected: bool = False) -> Catalogue:
    """Write a catalogue and four shops with planted sales; the last one's cap is too low."""
    stream = np.random.default_rng(5)
    items = [f"i{k:02}" for k in range(30)]
    products = pd.DataFrame({"item_id": items, "category": [f"c{k % 5}" for k in range(30)]})
    catalogue = Catalogue.of(products)
    write_catalogue(catalogue, folder / "catalogue")
    for shop in range(4):
        data = folder / "shops" / str(shop) / "data"
        data.mkdir(parents=True)
        users = np.repeat(np.arange(12), 6)
        frame = pd.DataFrame(
            {
                "merchant_id": f"m{shop}",
                "user_id": [f"u{u}" for u in users],
                "item_id": stream.choice(items, len(users)),
                "timestamp": 1_700_000_000 + np.arange(len(users)),
                "behavior": "purchase",
            }
        )
        frame.to_csv(data / "interactions.csv", index=False)
        (data.parent / "shop.toml").write_text(
            f'merchant_id = "m{shop}"\ndata = "data"\ncatalogue = "../../catalogue"\n'
            f'ledger = "ledger.sqlite"\ncap_epsilon = {0.01 if shop == 3 else 100.0}\n'
            'noise = "seeded"\ninsecure_seeded_noise = true\n'
            f"allow_unprotected = {json.dumps(allow_unprotected)}\n",
            encoding="utf-8",
        )
    return catalogue
