"""A federation inside one process: no Ray, no network, faults on demand."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

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
from server.settings import RunSettings
from server.strategy import Job

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


class InProcessGrid(Grid):
    """Calls the ClientApp when a message is pushed; answers come in a shuffled order."""

    def __init__(
        self,
        app: ClientApp,
        shops: int,
        *,
        fault: Fault = no_fault,
        order: int = 0,
        run_config: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._app, self._fault, self._order = app, fault, np.random.default_rng(order)
        # Flower's node ids are random: so are these.
        ids = self._order.choice(10_000, size=shops, replace=False) + 2
        self.nodes = {int(node): shop for shop, node in enumerate(ids)}
        self.sent: list[tuple[int, str, int]] = []
        self._contexts = {
            node: Context(
                1,
                node,
                {"partition-id": shop, "num-partitions": shops},
                RecordDict(),
                dict(run_config or {}),
            )
            for node, shop in self.nodes.items()
        }
        self._replies: dict[str, Message] = {}
        self._count = 0

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            node = message.metadata.dst_node_id
            shop = self.nodes[node]
            kind = message.metadata.message_type.split(".")[1]
            server_round = int(message.metadata.group_id)
            self.sent.append((shop, kind, server_round))
            reply = self._app(message, self._contexts[node])
            arrives = self._fault(shop, kind, server_round, reply)
            if arrives is not None:
                self._replies[str(self._count)] = arrives
            ids.append(str(self._count))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [i for i in message_ids if i in self._replies]
        count = (len(there) + 1) // 2
        taken = self._order.permutation(len(there))[:count]
        return [self._replies.pop(there[i]) for i in taken]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


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
