"""Shops gone bad in a federation that runs in this process: their real app, and another reply."""

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from client.app import app as client_app
from common.protocol import HEADER, POPULARITY, STATE, UPDATE, Arrays, RoundHeader, parse_plan
from common.rng import derive
from simulations.attack.attackers import Conspiracy
from simulations.engine.in_process import Answers

_ROOM = 2 * 2**30


class Remembered:
    """Stands before the clients' app and answers again as it did where the same is asked again.

    Runs that differ in what bad shops send, or in what the server makes of it, ask the same of
    shops as long as the model is the same: in the first round of several attacks, and in every
    round where a defence leaves bad shops out. Private plans are left alone: each of their replies
    is charged to the shop's ledger.

    Parameters
    ----------
    app
        What answers: of the same shops with the same records, as long as this is used.
    room
        Bytes of arrays that are kept; what was asked for longest ago goes first.
    """

    def __init__(self, app: Answers = client_app, room: int = _ROOM) -> None:
        self._app, self._room, self._held = app, room, 0
        self._kept: OrderedDict[tuple[int, str], RecordDict] = OrderedDict()

    def __call__(self, message: Message, context: Context) -> Message:
        """Return a shop's reply, in records of its own."""
        header = RoundHeader.model_validate(dict(message.content.config_records[HEADER]))
        if parse_plan(header.plan_json).private:
            return self._app(message, context)
        key = (int(context.node_config["partition-id"]), _asked(message, header))
        if key not in self._kept:
            reply = self._app(message, context)
            # What sends nothing is quick, or was done for the sake of doing it.
            if reply.has_error() or UPDATE not in reply.content.array_records:
                return reply
            self._keep(key, reply.content)
        self._kept.move_to_end(key)
        return Message(RecordDict(dict(self._kept[key])), reply_to=message)

    def _keep(self, key: tuple[int, str], content: RecordDict) -> None:
        self._kept[key] = content
        self._held += _size(content)
        while self._held > self._room and len(self._kept) > 1:
            self._held -= _size(self._kept.popitem(last=False)[1])


@dataclass(frozen=True)
class Poisoned:
    """Stands before the clients' app and puts other arrays into the replies of some shops.

    All that surrounds them stays: a bad shop joins, charges its ledger and says "ok" as others do.

    Attributes
    ----------
    bad
        Numbers of the bad shops.
    seed
        Of their noise.
    app
        What answers for a shop that is honest.
    """

    conspiracy: Conspiracy
    bad: Collection[int]
    seed: int
    app: Answers = client_app

    def __call__(self, message: Message, context: Context) -> Message:
        """Return a shop's reply."""
        reply = self.app(message, context)
        shop = int(context.node_config["partition-id"])
        if shop not in self.bad or reply.has_error() or UPDATE not in reply.content.array_records:
            return reply
        honest = _arrays(reply.content.array_records[UPDATE])
        header = RoundHeader.model_validate(dict(message.content.config_records[HEADER]))
        stream = derive(
            self.seed, purpose="poison", merchant_id=str(shop), server_round=header.server_round
        )
        if POPULARITY in honest:
            sent: Arrays = {POPULARITY: self.conspiracy.counts(honest[POPULARITY], stream)}
        else:
            state = _arrays(message.content.array_records[STATE])
            sent = self.conspiracy.update(honest, state, stream)
        reply.content[UPDATE] = ArrayRecord(
            {name: Array(array.astype(np.float32)) for name, array in sent.items()}
        )
        return reply


def _arrays(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def _asked(message: Message, header: RoundHeader) -> str:
    """Return a digest of all that a message says but the run's name."""
    said = hashlib.sha256(message.metadata.message_type.encode())
    said.update(header.model_copy(update={"run_id": "any"}).model_dump_json().encode())
    for name, array in message.content.array_records.get(STATE, ArrayRecord()).items():
        said.update(f"{name} {array.dtype} {array.shape}".encode())
        said.update(array.data)
    return said.hexdigest()


def _size(content: RecordDict) -> int:
    return sum(len(array.data) for array in content.array_records[UPDATE].values())
