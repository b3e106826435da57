"""How a shop answers the server: check, charge the ledger, train, and say nothing more.

No Flower types here. Whatever goes wrong inside becomes one fixed code
(:mod:`client.rounds.replying`); the details go to the shop's own log and nowhere else.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from client.data.records import held_catalogue, held_records, held_stock
from client.privacy.budget import check_fits
from client.privacy.events import UNPROTECTED, Event
from client.privacy.ledger import Ledger
from client.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from client.privacy.plan import check_paid, check_plan, check_state, planned_events
from client.rounds.replying import (
    Answer,
    Node,
    NoEvaluationError,
    NoSecureSumError,
    WrongCatalogueError,
    WrongStockError,
    reply_to,
)
from client.settings import ShopSettings
from client.units import tell_if_none
from common.array_checks import check_arrays
from common.catalogue.stock import Stock, stock_fingerprint
from common.code import code_digest
from common.errors import ConfigError, ProtocolError
from common.features import Catalogue
from common.model import check_features, check_may_travel, state_spec
from common.protocol import (
    EVALUATE,
    HOME,
    JOIN,
    MAX_MANIFEST_CHARS,
    NO_FINGERPRINT,
    RELEASE,
    SUM_STAGES,
    Arrays,
    ReplyHeader,
    RoundHeader,
    TrainingPlan,
    parse_plan,
    plan_digest,
    shop_key,
)
from common.rng import derive
from common.shop_state import ShopState, read_slice


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

    def serve(header: RoundHeader, settings: ShopSettings) -> Answer:
        if kind == HOME:
            _keep(header, state, manifest, settings)
            return Answer()
        if kind == EVALUATE:
            head, multiplier, arrays = _evaluate(header, state, settings)
            check_may_travel(arrays)
            return Answer(head, settings.noise, multiplier, arrays=arrays)
        plan = allowed_plan(kind, header, settings)
        head, arrays = _take_part(kind, header, plan, state, settings)
        check_may_leave(arrays, head, header, plan, settings)
        return Answer(head, settings.noise if plan.private else "none", arrays=arrays)

    reply, said = reply_to(kind, raw_header, node, serve)
    return reply, said.arrays


def allowed_plan(kind: str, header: RoundHeader, settings: ShopSettings) -> TrainingPlan:
    """Return the plan if this shop's own settings allow it.

    Raises
    ------
    ConfigError
        If the shop's settings do not allow the plan, or this message under it.
    ProtocolError
        If the plan, or the round for this kind of message, is not what the protocol allows.
    """
    plan = parse_plan(header.plan_json)
    if plan.unit != settings.unit:
        raise ConfigError(f"the plan's unit is {plan.unit}, this shop demands {settings.unit}")
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
        raise NoSecureSumError("this shop has no [secure_sum] section: it is in no secure sums")
    if plan.colluding_shops < settings.secure_sum.colluding_shops:
        raise ConfigError(
            f"the plan allows for {plan.colluding_shops} shops that collude with the observer, "
            f"this shop demands {settings.secure_sum.colluding_shops}"
        )


def _check_roster(settings: ShopSettings) -> None:
    """Refuse to join a run of sums without the roster and the key that each of them takes."""
    from client.joining.roster import own_roster  # Few runs ask for it.

    assert settings.secure_sum is not None
    try:
        own_roster(settings.merchant_id, settings.secure_sum)
    except ConfigError as error:
        raise NoSecureSumError(str(error)) from error


def _keep(
    header: RoundHeader, state: Callable[[], Arrays], manifest: str, settings: ShopSettings
) -> None:
    """Keep the finished model. The shop's records are not even read: nothing is charged.

    Every shop gets the model, also one whose settings forbid it to train in such a plan.
    """
    from client.home.models import keep_model, prune  # Slow, and only the last message needs it.

    if len(manifest) > MAX_MANIFEST_CHARS:
        raise ProtocolError("the manifest of a model that came home is too long")
    plan = parse_plan(header.plan_json)
    catalogue = agreed_catalogue(header, settings)
    check_features(plan.model, catalogue)
    arrays = state()
    check_arrays(arrays, state_spec(plan.model, catalogue.size), max_norm=0.0)
    keep_model(settings.models, header, plan, arrays, manifest, catalogue)
    prune(settings.models, settings.keep_models)


def _evaluate(
    header: RoundHeader, state: Callable[[], Arrays], settings: ShopSettings
) -> tuple[str, float, Arrays]:
    """Release figures of the finished model if this shop's own settings allow it."""
    if settings.evaluation is None:
        raise NoEvaluationError("this shop has no [evaluation] section: its figures stay at home")
    from client.rounds.figures import release_figures  # Slow, and few runs ask for it.

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
        raise WrongCatalogueError("the server's catalogue is not the one this shop holds")
    return catalogue


def _agreed_stock(header: RoundHeader, settings: ShopSettings) -> Stock | None:
    """Return the published stock table that the shop holds if it is the server's too."""
    stock = held_stock(settings)
    if stock_fingerprint(stock) != header.stock_fingerprint:
        raise WrongStockError(
            "the server's table of what shops stock is not the one beside this shop's catalogue"
        )
    return stock


def _take_part(
    kind: str,
    header: RoundHeader,
    plan: TrainingPlan,
    state: Callable[[], Arrays],
    settings: ShopSettings,
) -> tuple[str, Arrays]:
    """Do what one exchange asks for; return the ledger's head and what leaves the shop."""
    catalogue = agreed_catalogue(header, settings)
    check_features(plan.model, catalogue)
    stock: Stock | None = None
    stocked: np.ndarray | None = None
    facts: dict[str, object] = {}
    # A secure sum's session says which stock it is about.
    if plan.trust == "shop" and (stock := _agreed_stock(header, settings)) is not None:
        stocked = stock.rows.get(shop_key(settings.merchant_id))
        facts["stock"] = stock.fingerprint
    if kind == JOIN:
        return _join(header, plan, settings), {}
    # Everything that can fail is tried before the charge: what is charged can't be taken back.
    # Here, since they are slow to load: a JOIN needs neither, and only training needs torch.
    if kind == RELEASE:
        from client.rounds.popularity_release import release_popularity
    else:
        from client.training import train_round

    events = held_records(settings)
    tell_if_none(plan, header.server_round, events)
    if plan.private:
        # The table's columns decide, for a shop without records too: whether it has any must not
        # show in who can take part.
        check_plan(plan, has_sessions=events.sessions is not None)
    if kind == RELEASE:
        head = charge(header, plan, settings, 0, facts)
        noise = noise_source(settings, "popularity", 0)
        return head, release_popularity(plan, events, catalogue.size, noise, stocked)
    received = state()
    known: Arrays | ShopState = received
    if stock is None:
        check_arrays(received, state_spec(plan.model, catalogue.size), max_norm=0.0)
    else:
        known = read_slice(plan, received, catalogue, stocked)
    if plan.private:
        check_state(plan, header.server_round, received)
    head = charge(header, plan, settings, header.server_round, facts)
    return head, train_round(
        plan,
        header.server_round,
        known,
        events,
        catalogue,
        noise_source(settings, "training", header.server_round),
        sampling_source(settings, header.server_round),
        stocked,
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

    Of a run without privacy, that there was one: once, in its first exchange.

    Parameters
    ----------
    facts
        What else is worth keeping of it: it changes nothing of the price.
    """
    if not plan.private:
        _note_unprotected(header, plan, settings, server_round)
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


def _note_unprotected(
    header: RoundHeader, plan: TrainingPlan, settings: ShopSettings, server_round: int
) -> None:
    """Write to the ledger that a run without privacy took place, unless it says so already.

    Nothing else would remember it: the shop's statement is made of its ledger, over its whole life.
    """
    event = Event(
        mechanism=UNPROTECTED,
        noise_multiplier=0.0,
        sample_rate=1.0,
        steps=0,
        unit=plan.unit,
        run_id=header.run_id,
        server_round=server_round,
        code_digest=code_digest(),
        parameters={"plan": plan_digest(plan)},
    )
    with Ledger.open(settings.ledger, known_head=header.ledger_head) as ledger:
        past = [entry.event for entry in ledger.verify()]
        if not any((e.mechanism, e.run_id) == (UNPROTECTED, header.run_id) for e in past):
            ledger.charge(event, cap_epsilon=settings.cap_epsilon, delta=settings.cap_delta)


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
