"""The Flower ClientApp: wiring only."""

import os

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.participation import Node, answer
from client.settings import RUN_VARIABLE
from common.processes import give_way
from common.protocol import (
    EVALUATE,
    HEADER,
    HOME,
    JOIN,
    MANIFEST,
    PUBLIC_WEIGHT,
    RELEASE,
    STATE,
    TRAIN,
    UPDATE,
    WEIGHT,
)

if RUN_VARIABLE in os.environ:
    # A process a message, on a machine that has a shop to serve, and a node to keep connected.
    give_way()

app = ClientApp()


@app.query(JOIN)
def join(message: Message, context: Context) -> Message:
    """Say whether this shop takes part in the plan."""
    return _reply(JOIN, message, context)


@app.train(RELEASE)
def release(message: Message, context: Context) -> Message:
    """Release the private popularity histogram."""
    return _reply(RELEASE, message, context)


@app.train(TRAIN)
def update(message: Message, context: Context) -> Message:
    """Train one round and send the private delta."""
    return _reply(TRAIN, message, context)


@app.query(HOME)
def home(message: Message, context: Context) -> Message:
    """Keep the finished model."""
    return _reply(HOME, message, context)


@app.query(EVALUATE)
def evaluate(message: Message, context: Context) -> Message:
    """Release private figures of the finished model, where the shop allows it."""
    return _reply(EVALUATE, message, context)


def _reply(kind: str, message: Message, context: Context) -> Message:
    records = message.content
    state = records.array_records.get(STATE) or ArrayRecord()
    header, arrays = answer(
        kind,
        dict(records.config_records.get(HEADER, {})),
        lambda: {name: array.numpy() for name, array in state.items()},
        Node(context.node_config, context.run_config, os.environ),
        str(dict(records.config_records.get(MANIFEST, {})).get(MANIFEST, "")),
    )
    content = RecordDict(
        {
            HEADER: ConfigRecord(header.model_dump()),
            WEIGHT: MetricRecord({WEIGHT: PUBLIC_WEIGHT}),
        }
    )
    if arrays:
        content[UPDATE] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(content, reply_to=message)
