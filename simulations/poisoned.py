"""Shops gone bad in a federation that runs in this process: their real app, and another reply."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message

from client.app import app as client_app
from common.protocol import HEADER, POPULARITY, STATE, UPDATE, Arrays, RoundHeader
from common.rng import derive
from simulations.attackers import Conspiracy


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
    """

    conspiracy: Conspiracy
    bad: Collection[int]
    seed: int

    def __call__(self, message: Message, context: Context) -> Message:
        """Return a shop's reply."""
        reply = client_app(message, context)
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
