"""How a shop answers the server: check, charge the ledger, train, and say nothing more.

No Flower types here. Whatever goes wrong inside becomes one fixed code; the details go to the
shop's own log and nowhere else.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from pydantic import ValidationError

from client.privacy.budget import check_fits
from client.privacy.ledger import Ledger
from client.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from client.privacy.plan import check_paid, check_plan, check_state, planned_events
from client.records import held_catalogue, held_records
from client.settings import ShopSettings, refuse_run_config, shop_settings
from common.code import code_digest
from common.errors import (
    BudgetError,
    ConfigError,
    DataError,
    LedgerError,
    PrivacyError,
    ProtocolError,
    SecureSumError,
)
from common.features import Catalogue
from common.model import check_may_travel, state_spec
from common.protocol import (
    EVALUATE,
    HOME,
    JOIN,
    MAX_MANIFEST_CHARS,
    NO_FINGERPRINT,
    PROTOCOL_VERSION,
    RELEASE,
    SUM_STAGES,
    Arrays,
    Noise,
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


class _NoEvaluationError(ConfigError):
    """The shop releases no figures of its own."""


class _NoSecureSumError(ConfigError):
    """The shop takes part in no secure sums."""


# The first that fits; subclasses stand before their bases.
_CODES: tuple[tuple[type[Exception], StatusCode], ...] = (
    (SecureSumError, "sum-refused"),
    (BudgetError, "over-budget"),
    (LedgerError, "ledger-error"),
    (PrivacyError, "refused-config"),
    (_NoEvaluationError, "no-evaluation"),
    (_NoSecureSumError, "no-secure-sum"),
    (ConfigError, "refused-config"),
    (DataError, "data-error"),
    (_WrongCatalogueError, "wrong-catalogue"),
    (ProtocolError, "wrong-protocol"),
    (Exception, "failed"),
)


def status_of(error: Exception) -> StatusCode:
    """Return the one code that may leave a shop of an error."""
    return next(code for kind, code in _CODES if isinstance(error, kind))


@dataclass(frozen=True)
class Node:
    """What Flower tells a client about where it runs."""

    node_config: Mapping[str, object]
    run_config: Mapping[str, object]
    environment: Mapping[str, str]


def answer(
    kind: str,
    raw_header: Mapping[str, object],
    state: Callable[[], Arrays],
    node: Node,
    manifest: str = "",
) -> tuple[ReplyHeader, Arrays]:
    """Answer one message.

    Parameters
    ----------
    kind
        ``JOIN``, ``RELEASE``, ``TRAIN``, ``HOME`` or ``EVALUATE``.
    raw_header
        The fields of a :class:`RoundHeader`, unchecked.
    state
        Decodes the released global state; called for ``TRAIN``, ``HOME`` and ``EVALUATE`` only.
    node
        Where this runs.
    manifest
        What came with the finished model, unchecked.

    Returns
    -------
    tuple
        The reply's header, and its arrays: empty unless its status is ``ok``.
    """
    shop, fingerprint, head, server_round = NO_FINGERPRINT, NO_FINGERPRINT, NO_FINGERPRINT, 0
    arrays: Arrays = {}
    status: StatusCode = "ok"
    noise: Literal[Noise, "none"] = "none"
    multiplier = 0.0
    try:
        header = read_header(raw_header)
        server_round, fingerprint = header.server_round, header.catalogue_fingerprint
        settings = shop_settings(node.node_config, node.environment)
        shop = shop_key(settings.merchant_id)
        refuse_run_config(node.run_config)
        if kind == HOME:
            _keep(header, state, manifest, settings)
        elif kind == EVALUATE:
            noise = settings.noise
            head, multiplier, arrays = _evaluate(header, state, settings)
            check_may_travel(arrays)
        else:
            plan = allowed_plan(kind, header, settings)
            noise = settings.noise if plan.private else "none"
            head, arrays = _take_part(kind, header, plan, state, settings)
            check_may_leave(arrays, head, header, plan, settings)
    except Exception as error:  # No text of any error may leave the shop.
        status = status_of(error)
        arrays, multiplier = {}, 0.0
        logger.exception("exchange=%s round=%d status=%s", kind, server_round, status)
    reply = ReplyHeader(
        status=status,
        server_round=server_round,
        shop=shop,
        catalogue_fingerprint=fingerprint,
        ledger_head=head,
        noise=noise,
        noise_multiplier=multiplier,
    )
    return reply, arrays


def read_header(raw: Mapping[str, object]) -> RoundHeader:
    """Return the header of a message if this shop speaks its protocol."""
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


def allowed_plan(kind: str, header: RoundHeader, settings: ShopSettings) -> TrainingPlan:
    """Return the plan if this shop's own settings allow it."""
    plan = parse_plan(header.plan_json)
    if plan.unit != settings.unit:
        raise ConfigError(f"the plan protects a {plan.unit}, this shop demands {settings.unit}")
    if not plan.private and not settings.allow_unprotected:
        raise ConfigError("the plan has no privacy; this shop does not set allow_unprotected")
    if not 0 <= header.server_round <= plan.rounds:
        raise ProtocolError(f"round {header.server_round} of a plan of {plan.rounds}")
    if plan.trust == "federation":
        _check_sums(plan, settings)
    if kind in SUM_STAGES:
        if plan.trust != "federation":
            raise ConfigError("a plan of trust 'shop' asks for a secure sum: its noise is no share")
        return plan
    if plan.trust == "federation" and kind != JOIN:
        # Its noise is a share of what protects anybody: it leaves under masks or not at all.
        raise ConfigError("a plan of secure sums asks for an update without masks")
    if kind != JOIN and (kind == RELEASE) != (header.server_round == 0):
        raise ProtocolError(f"round {header.server_round} is not an exchange of the kind {kind}")
    return plan


def _check_sums(plan: TrainingPlan, settings: ShopSettings) -> None:
    """Refuse a plan of secure sums that this shop cannot, or will not, take part in."""
    if not plan.private:
        raise ConfigError("a plan of secure sums has no privacy: the sum itself would be bare")
    if settings.secure_sum is None:
        raise _NoSecureSumError("this shop has no [secure_sum] section: it is in no secure sums")
    if plan.colluding_shops < settings.secure_sum.colluding_shops:
        raise ConfigError(
            f"the plan allows for {plan.colluding_shops} shops that collude with the observer, "
            f"this shop demands {settings.secure_sum.colluding_shops}"
        )


def _check_roster(settings: ShopSettings) -> None:
    """Refuse to join a run of sums without the roster and the key that each of them takes."""
    from client.roster import own_roster  # Few runs ask for it.

    assert settings.secure_sum is not None
    try:
        own_roster(settings.merchant_id, settings.secure_sum)
    except ConfigError as error:
        raise _NoSecureSumError(str(error)) from error


def _keep(
    header: RoundHeader, state: Callable[[], Arrays], manifest: str, settings: ShopSettings
) -> None:
    """Keep the finished model. The shop's records are not even read: nothing is charged.

    Every shop gets the model, also one whose settings forbid it to train in such a plan.
    """
    from client.models import keep_model  # Slow, and only the last message needs it.

    if len(manifest) > MAX_MANIFEST_CHARS:
        raise ProtocolError("the manifest of a model that came home is too long")
    plan = parse_plan(header.plan_json)
    catalogue = agreed_catalogue(header, settings)
    arrays = state()
    check_arrays(arrays, state_spec(plan.model, catalogue.size), max_norm=0.0)
    keep_model(settings.models, header, plan, arrays, manifest, catalogue)


def _evaluate(
    header: RoundHeader, state: Callable[[], Arrays], settings: ShopSettings
) -> tuple[str, float, Arrays]:
    """Release figures of the finished model if this shop's own settings allow it."""
    if settings.evaluation is None:
        raise _NoEvaluationError("this shop has no [evaluation] section: its figures stay at home")
    from client.figures import release_figures  # Slow, and few runs ask for it.

    plan = parse_plan(header.plan_json)
    if header.server_round != plan.rounds:
        raise ProtocolError(f"figures are of the last of {plan.rounds} rounds alone")
    catalogue = agreed_catalogue(header, settings)
    received = state()
    check_arrays(received, state_spec(plan.model, catalogue.size), max_norm=0.0)
    return release_figures(
        header,
        plan,
        received,
        lambda: held_records(settings),
        catalogue,
        settings,
        noise_source(settings, "evaluation", header.server_round),
    )


def agreed_catalogue(header: RoundHeader, settings: ShopSettings) -> Catalogue:
    """Return the shop's catalogue if it is the server's too."""
    catalogue = held_catalogue(settings)
    if catalogue.fingerprint != header.catalogue_fingerprint:
        raise _WrongCatalogueError("the server's catalogue is not the one this shop holds")
    return catalogue


def _take_part(
    kind: str,
    header: RoundHeader,
    plan: TrainingPlan,
    state: Callable[[], Arrays],
    settings: ShopSettings,
) -> tuple[str, Arrays]:
    """Do what one exchange asks for; return the ledger's head and what leaves the shop."""
    catalogue = agreed_catalogue(header, settings)
    if kind == JOIN:
        return _join(header, plan, settings), {}
    # Everything that can fail is tried before the charge: what is charged can't be taken back.
    # Here, since they are slow to load: a JOIN needs neither, and only training needs torch.
    if kind == RELEASE:
        from client.popularity_release import release_popularity
    else:
        from client.training import train_round

    events = held_records(settings)
    if plan.private:
        # An empty shop has no baskets to tell apart: it takes part, as it would with some.
        check_plan(plan, has_sessions=events.sessions is not None or not len(events))
    if kind == RELEASE:
        head = charge(header, plan, settings, 0)
        noise = noise_source(settings, "popularity", 0)
        return head, release_popularity(plan, events, catalogue.size, noise)
    received = state()
    check_arrays(received, state_spec(plan.model, catalogue.size), max_norm=0.0)
    if plan.private:
        check_state(plan, header.server_round, received)
    head = charge(header, plan, settings, header.server_round)
    return head, train_round(
        plan,
        header.server_round,
        received,
        events,
        catalogue,
        noise_source(settings, "training", header.server_round),
        sampling_source(settings, header.server_round),
    )


def check_may_leave(
    arrays: Arrays, head: str, header: RoundHeader, plan: TrainingPlan, settings: ShopSettings
) -> None:
    """Refuse arrays that are the shop's own, or that its ledger was not charged for.

    All that leaves a shop passes here, and is compared with the entry on disk. The reply's header
    has fixed fields, and its one metric is a public constant.
    """
    check_may_travel(arrays)
    if arrays and plan.private:
        with Ledger.open(settings.ledger, known_head=head) as ledger:
            entry = ledger.entry(head)
        paid = entry.event if entry else None
        check_paid(plan, header.run_id, header.server_round, paid, arrays)


def _join(header: RoundHeader, plan: TrainingPlan, settings: ShopSettings) -> str:
    """Refuse unless all that is left of the plan fits under the cap; write nothing.

    The server may not know yet whose shop this is, and then names no known head: it does so before
    the first charge.
    """
    if not plan.private:
        return NO_FINGERPRINT
    if plan.trust == "federation":
        _check_roster(settings)
    remaining = planned_events(
        plan, header.run_id, first_round=header.server_round, noise=settings.noise
    )
    entries = Ledger.read(settings.ledger, known_head=header.ledger_head)
    past = [entry.event for entry in entries]
    check_fits(past, remaining, settings.cap_epsilon, settings.cap_delta)
    return entries[-1].hash if entries else NO_FINGERPRINT


def charge(
    header: RoundHeader,
    plan: TrainingPlan,
    settings: ShopSettings,
    server_round: int,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """Write what this exchange costs to the ledger, synced, before anything is computed.

    Parameters
    ----------
    facts
        What else is worth keeping of it: it changes nothing of the price.
    """
    if not plan.private:
        return NO_FINGERPRINT
    event, *remaining = planned_events(
        plan, header.run_id, first_round=server_round, noise=settings.noise
    )
    parameters = {**event.parameters, **facts}
    event = replace(event, code_digest=code_digest(), parameters=parameters)
    with Ledger.open(settings.ledger, known_head=header.ledger_head) as ledger:
        return ledger.charge(
            event,
            cap_epsilon=settings.cap_epsilon,
            delta=settings.cap_delta,
            remaining=remaining,
        )


def noise_source(settings: ShopSettings, purpose: str, server_round: int) -> NoiseSource:
    """Return where a release's noise comes from, as the shop's own settings say."""
    if settings.noise == "system":
        return SystemNoise()
    return SeededNoise(_stream(settings, f"{purpose}-noise", server_round))


def sampling_source(settings: ShopSettings, server_round: int) -> np.random.Generator:
    """Return the generator of choices that need no privacy, such as history or target."""
    if settings.noise == "system":
        return np.random.default_rng()
    return _stream(settings, "sampling", server_round)


def _stream(settings: ShopSettings, purpose: str, server_round: int) -> np.random.Generator:
    return derive(
        settings.noise_seed,
        purpose=purpose,
        merchant_id=settings.merchant_id,
        server_round=server_round,
    )
