"""What a good reply is: every byte of one is checked before anything is done with it.

A shop's process may be broken or hostile. Whatever it sends, the worst that may come of it is that
its own reply is not counted. What cannot even be read is left out before, by
:mod:`server.rounds.pulling`.
"""

import numpy as np
from flwr.app import Array, Message

from common.array_checks import check_arrays, check_names
from common.errors import ProtocolError
from common.protocol import (
    HEADER,
    MASKED_VECTOR,
    PROTOCOL_VERSION,
    PUBLIC_WEIGHT,
    SAID,
    UPDATE,
    WEIGHT,
    Arrays,
    ReplyHeader,
)
from common.secure_sum.messages import check_vector
from server.job import Shapes

# Numbers of a shape that are shown.
_SHOWN = 8


def reply_header(reply: Message, server_round: int) -> ReplyHeader:
    """Return the header of a reply to a message of ``server_round``.

    Raises
    ------
    ProtocolError
        If the reply holds anything but what the protocol says.
    """
    content = reply.content
    check_names(set(content) - {UPDATE, SAID}, (HEADER, WEIGHT))
    try:
        header = ReplyHeader.model_validate(dict(content.config_records[HEADER]))
        weights = dict(content.metric_records[WEIGHT])
    except (KeyError, ValueError) as error:
        raise ProtocolError("the header of a reply is not valid") from error
    if header.version != PROTOCOL_VERSION or header.server_round != server_round:
        raise ProtocolError(f"a reply of version {header.version}, round {header.server_round}")
    if weights != {WEIGHT: PUBLIC_WEIGHT}:
        raise ProtocolError("a reply with metrics other than the public weight")
    return header


def reply_arrays(reply: Message, expected: Shapes, max_norm: float, largest: float) -> Arrays:
    """Return the arrays of a reply; shapes are compared before memory is given out.

    Raises
    ------
    ProtocolError
        If they are not float32 arrays of the ``expected`` names and shapes, finite, within
        ``max_norm`` together and ``largest`` each (0: no bound).
    """
    if SAID in reply.content:
        raise ProtocolError("a shop says what it was not asked")
    records = reply.content.array_records
    if not expected:
        check_names(records, ())
        return {}
    check_names(records, (UPDATE,))
    check_names(records[UPDATE], expected)
    arrays = {n: _decode(n, array, expected[n]) for n, array in records[UPDATE].items()}
    check_arrays(arrays, expected, max_norm=max_norm)
    for name, array in arrays.items():
        most = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
        if largest and most > largest:
            raise ProtocolError(f"array {name!r} holds {most:.4g}; the plan's hold {largest:.4g}")
    return arrays


def reply_text(reply: Message, most_chars: int) -> str:
    """Return what a reply to a stage of a secure sum says, and nothing but that.

    Raises
    ------
    ProtocolError
        If it is not one text, or anything comes with it.
    """
    check_names(reply.content.array_records, ())
    said = dict(reply.content.config_records.get(SAID, {}))
    check_names(said, (SAID,))
    text = said[SAID]
    if not isinstance(text, str) or len(text) > most_chars:
        raise ProtocolError("what a shop says is no text, or too long")
    return text


def reply_vector(reply: Message, length: int) -> np.ndarray:
    """Return the masked vector (n,) uint32 of a reply, and nothing but that.

    Raises
    ------
    ProtocolError
        If it is anything else.
    """
    if SAID in reply.content:
        raise ProtocolError("a shop says what it was not asked")
    records = reply.content.array_records
    check_names(records, (UPDATE,))
    check_names(records[UPDATE], (MASKED_VECTOR,))
    vector = _decode(MASKED_VECTOR, records[UPDATE][MASKED_VECTOR], (length,))
    return check_vector(vector, length)


def _decode(name: str, array: Array, shape: tuple[int, ...]) -> np.ndarray:
    if tuple(array.shape) != tuple(shape):
        # A stranger's shape may have a million numbers.
        raise ProtocolError(f"array {name!r} has shape {tuple(array.shape[:_SHOWN])}")
    try:
        decoded = array.numpy()
    except Exception as error:  # The bytes are a stranger's: a decoder may raise anything.
        raise ProtocolError(f"array {name!r} cannot be decoded") from error
    if not isinstance(decoded, np.ndarray):
        # An archive of arrays decodes too.
        raise ProtocolError(f"array {name!r} is no array")
    return decoded
