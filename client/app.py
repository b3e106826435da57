"""The Flower ClientApp: wiring only."""

import os

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.rounds.participation import answer
from client.rounds.replying import Node
from client.settings import RUN_VARIABLE
from common.programs.processes import give_way
from common.protocol import (
    EVALUATE,
    HEADER,
    HOME,
    JOIN,
    MANIFEST,
    PUBLIC_WEIGHT,
    RELEASE,
    SAID,
    STATE,
    SUM_KEYS,
    SUM_MASKED,
    SUM_OPEN,
    SUM_SHARES,
    SUM_UNMASK,
    SUM_VIEW,
    TRAIN,
    UPDATE,
    WEIGHT,
    Arrays,
    ReplyHeader,
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


@app.query(SUM_KEYS)
def sum_keys(message: Message, context: Context) -> Message:
    """Begin a secure sum: show this shop's keys."""
    return _reply_to_sum(SUM_KEYS, message, context)


@app.query(SUM_SHARES)
def sum_shares(message: Message, context: Context) -> Message:
    """Seal shares of this shop's secrets for the others."""
    return _reply_to_sum(SUM_SHARES, message, context)


@app.query(SUM_OPEN)
def sum_open(message: Message, context: Context) -> Message:
    """Say whose shares do not open."""
    return _reply_to_sum(SUM_OPEN, message, context)


@app.train(SUM_MASKED)
def sum_masked(message: Message, context: Context) -> Message:
    """Send what this shop adds to the sum, under its masks."""
    return _reply_to_sum(SUM_MASKED, message, context)


@app.query(SUM_VIEW)
def sum_view(message: Message, context: Context) -> Message:
    """Sign what this shop was shown of the sum."""
    return _reply_to_sum(SUM_VIEW, message, context)


@app.query(SUM_UNMASK)
def sum_unmask(message: Message, context: Context) -> Message:
    """Give the shares that take the masks off the sum."""
    return _reply_to_sum(SUM_UNMASK, message, context)


def _reply_to_sum(stage: str, message: Message, context: Context) -> Message:
    from client.rounds.secure_participation import answer_sum  # Few runs ask for it.

    records = message.content
    state = records.array_records.get(STATE) or ArrayRecord()
    header, said, arrays = answer_sum(
        stage,
        dict(records.config_records.get(HEADER, {})),
        str(dict(records.config_records.get(SAID, {})).get(SAID, "")),
        lambda: {name: array.numpy() for name, array in state.items()},
        Node(context.node_config, context.run_config, os.environ),
    )
    content = _content(header, arrays)
    if said:
        content[SAID] = ConfigRecord({SAID: said})
    return Message(content, reply_to=message)


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
    return Message(_content(header, arrays), reply_to=message)


def _content(header: ReplyHeader, arrays: Arrays) -> RecordDict:
    content = RecordDict(
        {
            HEADER: ConfigRecord(header.model_dump()),
            WEIGHT: MetricRecord({WEIGHT: PUBLIC_WEIGHT}),
        }
    )
    if arrays:
        content[UPDATE] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return content
