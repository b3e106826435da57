"""Clients that send back what they were sent."""

import torch  # noqa: F401 - a client that trains has it loaded
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    """Return the arrays that arrived."""
    return Message(message.content, reply_to=message)
