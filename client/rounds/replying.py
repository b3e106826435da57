"""The frame of every reply: who answers, and what may be said of whatever went wrong.

Whatever goes wrong inside becomes one fixed code; the details go to the shop's own log and nowhere
else.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from client.settings import ShopSettings, refuse_run_config, shop_settings
from common.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FedtailError,
    LedgerError,
    PrivacyError,
    ProtocolError,
    SecureSumError,
)
from common.protocol import (
    NO_FINGERPRINT,
    PROTOCOL_VERSION,
    Arrays,
    Noise,
    ReplyHeader,
    RoundHeader,
    StatusCode,
    shop_key,
)

logger = logging.getLogger(__name__)


class WrongCatalogueError(ProtocolError):
    """The server trains on another catalogue than this shop holds."""


class WrongStockError(ProtocolError):
    """The server has another stock table than this shop holds: other rows would travel."""


class NoEvaluationError(ConfigError):
    """The shop releases no figures of its own."""


class NoSecureSumError(ConfigError):
    """The shop takes part in no secure sums."""


# The first that fits; subclasses stand before their bases.
_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (SecureSumError, "sum-refused"),
    (BudgetError, "over-budget"),
    (LedgerError, "ledger-error"),
    (PrivacyError, "refused-config"),
    (NoEvaluationError, "no-evaluation"),
    (NoSecureSumError, "no-secure-sum"),
    (ConfigError, "refused-config"),
    (DataError, "data-error"),
    (WrongCatalogueError, "wrong-catalogue"),
    (WrongStockError, "wrong-stock"),
    (ProtocolError, "wrong-protocol"),
    (Exception, "failed"),
)


@dataclass(frozen=True)
class Node:
    """What Flower tells a client about where it runs."""

    node_config: Mapping[str, object]
    run_config: Mapping[str, object]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What a shop says to one message, beside who it is.

    Attributes
    ----------
    head
        Of its ledger.
    noise, noise_multiplier
        See :class:`common.protocol.ReplyHeader`.
    text
        What it says in a stage of a secure sum.
    """

    head: str = NO_FINGERPRINT
    noise: Literal[Noise, "none"] = "none"
    noise_multiplier: float = 0.0
    text: str = ""
    arrays: Arrays = field(default_factory=dict)


def reply_to(
    kind: str,
    raw_header: Mapping[str, object],
    node: Node,
    serve: Callable[[RoundHeader, ShopSettings], Answer],
) -> tuple[ReplyHeader, Answer]:
    """Return a reply's header and what it says: nothing, unless its status is ``ok``.

    Parameters
    ----------
    kind
        Of the message, for the shop's log.
    raw_header
        The fields of a :class:`RoundHeader`, unchecked.
    serve
        Does what is asked, and may raise anything.
    """
    shop, fingerprint, server_round = NO_FINGERPRINT, NO_FINGERPRINT, 0
    said = Answer()
    status: StatusCode = "ok"
    try:
        header = read_header(raw_header)
        server_round, fingerprint = header.server_round, header.catalogue_fingerprint
        settings = shop_settings(node.node_config, node.environment)
        shop = shop_key(settings.merchant_id)
        refuse_run_config(node.run_config)
        said = serve(header, settings)
    except Exception as error:  # No text of any error may leave the shop.
        status = next(code for kind_of, code in _CODES if isinstance(error, kind_of))
        # One line tells it, for `run` to read. What we refuse says all there is to say; anything
        # else is for who has to look into the code. Of the server's words no escapes are kept: in
        # a terminal they could hide other lines.
        why = " ".join(str(error).split()) or type(error).__name__
        why = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in why)
        words = (kind, server_round, status, why)
        told = isinstance(error, FedtailError)
        logger.error("exchange=%s round=%d status=%s reason=%s", *words, exc_info=not told)
    reply = ReplyHeader(
        status=status,
        server_round=server_round,
        shop=shop,
        catalogue_fingerprint=fingerprint,
        ledger_head=said.head,
        noise=said.noise,
        noise_multiplier=said.noise_multiplier,
    )
    return reply, said


def read_header(raw: Mapping[str, object]) -> RoundHeader:
    """Return the header of a message if this shop speaks its protocol.

    Raises
    ------
    ProtocolError
        If it is not valid, or of another version of the protocol.
    """
    try:
        header = RoundHeader.model_validate(dict(raw))
    except ValidationError as error:
        raise ProtocolError("the header of a message is not valid") from error
    if header.version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the server speaks protocol version {header.version}, this shop {PROTOCOL_VERSION}"
        )
    if not header.run_id.isprintable():
        # It goes into the ledger, which people look at in terminals.
        raise ProtocolError("the run's name holds characters that cannot be printed")
    return header
