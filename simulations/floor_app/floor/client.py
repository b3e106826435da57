"""Clients that send back what they were sent."""

import importlib

import torch  # noqa: F401 - a client that trains has it loaded
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    """Return the arrays that arrived, after the imports that a client of ours would make."""
    for name in str(context.run_config["imports"]).split():
        importlib.import_module(name)
    return Message(message.content, reply_to=message)
