"""Clients that send back arrays like those that they were sent."""

import importlib
from contextlib import suppress
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    """Return arrays of the same shapes, after the imports that a client of ours would make.

    Flower moves equal bytes once, whoever sends them: each client's are its own.
    """
    names = str(context.run_config["imports"])
    if names.startswith("@"):
        names = Path(names[1:]).read_text(encoding="utf-8")
    for name in names.split():
        with suppress(ImportError):  # Some libraries name what only they can load.
            importlib.import_module(name)
    own = float(context.node_id % 1009)
    answered = RecordDict()
    for name, record in message.content.array_records.items():
        arrays = {key: Array(array.numpy() + own) for key, array in record.items()}
        answered[name] = ArrayRecord(arrays)
    return Message(answered, reply_to=message)
