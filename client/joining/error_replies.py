"""An error reply leaves a shop with its code alone.

Where a shop's own code fails, it answers with a fixed code (:mod:`client.rounds.participation`).
Where Flower fails around it, such as when it cannot unpack a bundle on a full disk, Flower answers
in its own way: with the exception's text, in which paths and more of the shop's may stand. That
text is taken out where replies leave the SuperNode. It stays in the shop's log.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree

Push = Callable[..., None]


def without_words(push: Push) -> Push:
    """Return Flower's ``_push_messages``, for which no error has a text."""

    def guarded(**arguments: Any) -> None:  # noqa: ANN401 - Flower's own arguments
        send, push_object = arguments["send"], arguments["push_object"]
        replies: dict[str, Message] = {}

        def send_silently(
            message: Message, object_tree: ObjectTree, seconds: float
        ) -> tuple[set[str], str]:
            found: tuple[set[str], str]
            if not message.has_error():
                found = send(message, object_tree, seconds)
                return found
            reply = wordless(message)
            replies[object_tree.object_id] = reply
            missing, session = send(reply, get_object_tree(reply), seconds)
            # Flower goes on with the objects that it has.
            return ({object_tree.object_id} if missing else set()), session

        def push_silently(run_id: int, session: str, object_id: str, content: bytes) -> None:
            if (reply := replies.pop(object_id, None)) is not None:
                object_id, content = reply.object_id, reply.deflate()
            push_object(run_id, session, object_id, content)

        push(**(arguments | {"send": send_silently, "push_object": push_silently}))

    return guarded


def wordless(message: Message) -> Message:
    """Return an error reply that says the same by its code, and has no text."""
    reply = make_message(copy(message.metadata), error=Error(message.error.code, ""))
    # As Flower numbers replies: by their content.
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply
