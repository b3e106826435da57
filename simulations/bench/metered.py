"""A grid in this process that serialises every message, counts its bytes, and times both sides."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from simulations.engine.in_process import InProcessGrid


@dataclass
class Meter:
    """What one exchange of arrays took.

    Attributes
    ----------
    to_shops, from_shops
        Stage -> bytes of all messages, whatever shop they are of.
    shops
        Node -> stage -> processor seconds of the shop: it decodes, works, and encodes.
    all_seconds
        Processor seconds of everything, both sides.
    """

    to_shops: Counter[str] = field(default_factory=Counter)
    from_shops: Counter[str] = field(default_factory=Counter)
    shops: dict[int, dict[str, float]] = field(default_factory=dict)
    all_seconds: float = 0.0

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Time both sides together."""
        started = time.process_time()
        try:
            yield
        finally:
            self.all_seconds += time.process_time() - started

    @contextmanager
    def shop(self, node: int, stage: str) -> Iterator[None]:
        """Time what a shop does."""
        started = time.process_time()
        try:
            yield
        finally:
            seconds = self.shops.setdefault(node, {})
            seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - started

    @property
    def server_seconds(self) -> float:
        """Processor seconds of what is no shop's: it encodes, decodes, and adds up."""
        return self.all_seconds - sum(sum(stages.values()) for stages in self.shops.values())

    def leave_out(self, node: int, stage: str, seconds: float) -> None:
        """Take what is told apart out of a shop's time; the server's stays what it was."""
        self.shops[node][stage] -= seconds
        self.all_seconds -= seconds


class MeteredGrid(InProcessGrid):
    """Passes messages on as bytes: Flower's own form of them, as protobuf.

    Parameters
    ----------
    app
        Answers a message; stands for every node's ClientApp.
    nodes
        Node -> number of its shop.
    stage_of
        Names the stage of a message.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        nodes: Mapping[int, int],
        stage_of: Callable[[Message], str],
        meter: Meter,
    ) -> None:
        super().__init__(ClientApp(), nodes, {})
        self._answer, self._stage_of, self._meter = app, stage_of, meter

    def answer(self, message: Message) -> Message:
        """Send a message to its node as bytes, and return the reply that came back as bytes."""
        node, stage = message.metadata.dst_node_id, self._stage_of(message)
        sent = _encoded(message)
        self._meter.to_shops[stage] += len(sent)
        with self._meter.shop(node, stage):
            reply = self._answer(_decoded(sent), self._contexts[node])
            del sent
            back = _encoded(reply)
            del reply
        self._meter.from_shops[stage] += len(back)
        return _decoded(back)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and return all replies, as Flower's workflows ask: none is ever late."""
        del timeout
        return [self.answer(message) for message in messages]


def _encoded(message: Message) -> bytes:
    text: bytes = message_to_proto(message).SerializeToString()
    return text


def _decoded(text: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(text))
