"""How a shop answers the server: check, charge the ledger, train, and say nothing more.

No Flower types here. Whatever goes wrong inside becomes one fixed code; the details go to the
shop's own log and nowhere else.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from client.settings import ShopSettings, refuse_run_config, shop_settings
from common.errors import BudgetError, ConfigError, DataError, LedgerError, ProtocolError
from common.protocol import (
    JOIN,
    NO_FINGERPRINT,
    PROTOCOL_VERSION,
    RELEASE,
    Arrays,
    ReplyHeader,
    RoundHeader,
    StatusCode,
    TrainingPlan,
    check_arrays,
    parse_plan,
    shop_key,
)
from common.rng import derive

logger = logging.getLogger(__name__)


class _WrongCatalogueError(ProtocolError):
    """The server trains on another catalogue than this shop holds."""


# The first that fits; subclasses stand before their bases.
_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (BudgetError, "over-budget"),
    (LedgerError, "ledger-error"),
    (ConfigError, "refused-config"),
    (DataError, "data-error"),
    (_WrongCatalogueError, "wrong-catalogue"),
    (ProtocolError, "wrong-protocol"),
    (Exception, "failed"),
)


@dataclass(frozen=True)
class Node:
    """What Flower tells a client about where it runs."""

    node_config: Mapping[str, object]
    run_config: Mapping[str, object]
    environment: Mapping[str, str]


def answer(
    kind: str, raw_header: Mapping[str, object], state: Callable[[], Arrays], node: Node
) -> tuple[ReplyHeader, Arrays]:
    """Answer one message.

    Parameters
    ----------
    kind
        ``JOIN``, ``RELEASE`` or ``TRAIN``.
    raw_header
        The fields of a :class:`RoundHeader`, unchecked.
    state
        Decodes the released global state; called for ``TRAIN`` only.
    node
        Where this runs.

    Returns
    -------
    tuple
        The reply's header, and its arrays: empty unless its status is ``ok``.
    """
    shop, fingerprint, head, server_round = NO_FINGERPRINT, NO_FINGERPRINT, NO_FINGERPRINT, 0
    arrays: Arrays = {}
    status: StatusCode = "ok"
    try:
        header = _header(raw_header)
        server_round, fingerprint = header.server_round, header.catalogue_fingerprint
        settings = shop_settings(node.node_config, node.environment)
        shop = shop_key(settings.merchant_id)
        refuse_run_config(node.run_config)
        plan = _plan(header, settings)
        head, arrays = _take_part(kind, header, plan, state, settings)
    except Exception as error:  # noqa: BLE001 - no text of any error may leave the shop
        status = next(code for kind_, code in _CODES if isinstance(error, kind_))
        logger.exception("exchange=%s round=%d status=%s", kind, server_round, status)
    reply = ReplyHeader(
        status=status,
        server_round=server_round,
        shop=shop,
        catalogue_fingerprint=fingerprint,
        ledger_head=head,
    )
    return reply, arrays


def _header(raw: Mapping[str, object]) -> RoundHeader:
    try:
        header = RoundHeader.model_validate(dict(raw))
    except ValidationError as error:
        raise ProtocolError("the header of a message is not valid") from error
    if header.version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the server speaks protocol version {header.version}, this shop {PROTOCOL_VERSION}"
        )
    return header


def _plan(header: RoundHeader, settings: ShopSettings) -> TrainingPlan:
    """Return the plan if this shop's own settings allow it."""
    plan = parse_plan(header.plan_json)
    if plan.unit != settings.unit:
        raise ConfigError(f"the plan protects a {plan.unit}, this shop demands {settings.unit}")
    if not plan.private and not settings.allow_unprotected:
        raise ConfigError("the plan has no privacy; this shop does not set allow_unprotected")
    if not 0 <= header.server_round <= plan.rounds:
        raise ProtocolError(f"round {header.server_round} of a plan of {plan.rounds}")
    return plan
