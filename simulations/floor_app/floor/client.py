"""Clients that send back what they were sent."""

import importlib
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    """Return the arrays that arrived, after the imports that a client of ours would make."""
    names = str(context.run_config["imports"])
    if names.startswith("@"):
        names = Path(names[1:]).read_text(encoding="utf-8")
    for name in names.split():
        with suppress(ImportError):  # Some libraries name what only they can load.
            importlib.import_module(name)
    return Message(message.content, reply_to=message)
