"""Replies, taken from SuperLink so that what is wrong with one is that one's alone.

SuperLink hands a reply out once, and looks at no more of it than that its bytes are those that
their ids say. Flower's own pull reads all that came in one go, so what cannot be read takes the
others with it; it waits up to two hours for bytes that were announced and are not there; it takes
as many as a sender has; and it believes a reply that says whom it answers. Here each is read by
itself, for as long as the exchange lasts, up to what such a reply can hold, and for the message
that SuperLink says it answers.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from threading import Lock

from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from common.errors import ProtocolError

logger = logging.getLogger(__name__)

# Seconds that a reply has whose turn comes when the time is nearly up: those before it may have
# taken what there was.
_LEAST_SECONDS = 5.0
# Between two looks whether bytes are there that were announced, at most.
_LONGEST_WAIT = 2.0
# Objects of a reply beside one for each piece of its arrays, and how small pieces may be. Flower
# cuts arrays into pieces of 5 MiB.
_OBJECTS, _PIECE = 256, 1 << 18


def pull(
    grid: Grid, message_ids: Iterable[str], *, deadline: float, most_bytes: int
) -> Iterator[tuple[str, Message | str]]:
    """Yield the id of a message, and the reply or the code of what came in its place.

    Parameters
    ----------
    deadline
        Of the exchange, as :func:`time.monotonic` counts.
    most_bytes
        A reply that is larger is not read to its end. Only what comes over the network is counted.
    """
    if isinstance(grid, HttpGrid):
        yield from _SuperLink(grid, deadline, most_bytes).pull(message_ids)
        return
    for reply in grid.pull_messages(message_ids):
        yield reply.metadata.reply_to_message_id, reply


class _SuperLink:
    """SuperLink's answers to one pull, as :meth:`HttpGrid.pull_messages` asks for them."""

    def __init__(self, grid: HttpGrid, deadline: float, most_bytes: int) -> None:
        self._client, self._node = grid._runtime_client, grid.node
        self._run = grid.run.run_id
        self._deadline, self._most_bytes = deadline, most_bytes

    def pull(self, message_ids: Iterable[str]) -> Iterator[tuple[str, Message | str]]:
        asked = set(message_ids)
        found = self._client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        for told, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            answered, own = told.metadata.reply_to_message_id, told.metadata.message_id
            # SuperLink adds whatever was sent to it in its own name, and does not ask who sent it.
            if answered in asked:
                yield answered, self._read(own, tree)

    def _read(self, own: str, tree: ObjectTree) -> Message | str:
        until = max(self._deadline, time.monotonic() + _LEAST_SECONDS)
        try:
            contents = self._contents(tree, until)
        except ObjectPullError:
            # Its sender went away, or is still at it.
            return "late" if time.monotonic() >= until else "error"
        except ProtocolError as error:
            return self._rubbish(own, error)
        self._confirm(own)
        try:
            return _message(own, contents)
        except ProtocolError as error:
            return self._rubbish(own, error, confirm=False)

    def _contents(self, tree: ObjectTree, until: float) -> dict[str, bytes]:
        """Return id -> bytes of the objects of a reply."""
        names = list(dict.fromkeys(each.object_id for each in iterate_object_tree(tree)))
        if len(names) > _OBJECTS + self._most_bytes // _PIECE:
            raise ProtocolError(f"a reply of {len(names)} objects")
        read = make_pull_object_fn_protobuf(self._client.PullObject, self._node, self._run)
        left, lock = self._most_bytes, Lock()

        def bounded(name: str) -> bytes:
            nonlocal left
            content = read(name)
            with lock:
                left -= len(content)
            if left < 0:
                raise ProtocolError(f"a reply of more than {self._most_bytes} bytes")
            return content

        return pull_objects(
            names,
            bounded,
            max_time=until - time.monotonic(),
            max_tries_per_object=None,
            initial_backoff=0.1,
            backoff_cap=_LONGEST_WAIT,
        )

    def _confirm(self, own: str) -> None:
        """Let SuperLink forget the bytes of a reply."""
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=self._run, message_object_id=own)
        )

    def _rubbish(self, own: str, error: ProtocolError, *, confirm: bool = True) -> str:
        if confirm:
            self._confirm(own)
        logger.warning("reply=rubbish reason=%s", error)
        return "rubbish"


def _message(own: str, contents: dict[str, bytes]) -> Message:
    """Return the message that bytes stand for.

    Raises
    ------
    ProtocolError
        If they stand for none, or for one with anything but records in it.
    """
    try:
        message = inflate_object_from_contents(own, contents)
    except Exception as error:  # The bytes are a stranger's: reading them may raise anything.
        raise ProtocolError(f"a reply cannot be read: {type(error).__name__}") from error
    if not isinstance(message, Message):
        raise ProtocolError(f"a reply is no message but {type(message).__name__}")
    if not message.has_error() and not isinstance(message.content, RecordDict):
        raise ProtocolError(f"a reply holds {type(message.content).__name__}, not records")
    return message
