"""How a shop answers the stages of a secure sum: check, remember, charge, hide, and say no more.

No Flower types here. What :mod:`client.rounds.replying` says of errors holds here too.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from client.data.records import held_records, held_stock
from client.joining.roster import own_key, own_roster
from client.privacy.discrete import discrete_gaussian
from client.privacy.events import SESSION
from client.privacy.plan import check_plan
from client.rounds.participation import (
    agreed_catalogue,
    allowed_plan,
    charge,
    check_may_leave,
    noise_source,
    sampling_source,
)
from client.rounds.popularity_release import whole_popularity
from client.rounds.replying import Answer, Node, reply_to
from client.secure_sum.party import Identity
from client.secure_sum.sessions import Sessions
from client.settings import ShopSettings
from client.units import tell_if_none
from common.array_checks import check_arrays
from common.catalogue.stock import stock_fingerprint
from common.errors import SecureSumError
from common.features import Catalogue
from common.model import check_features, state_spec, trained_spec
from common.protocol import (
    MASKED_VECTOR,
    POPULARITY,
    SUM_KEYS,
    SUM_MASKED,
    SUM_OPEN,
    SUM_SHARES,
    SUM_VIEW,
    Arrays,
    ReplyHeader,
    RoundHeader,
    TrainingPlan,
    plan_digest,
    shop_key,
)
from common.secure_sum.encoding import as_vector, coordinate_bound, to_words, vector_length
from common.secure_sum.layout import Layout, honest_senders, layout_of
from common.secure_sum.members import Roster, threshold
from common.secure_sum.messages import MaskedRequest, Session, most_chars, parse, state_digest
from common.secure_sum.noise import share_std
from common.secure_sum.shown import Shown, ShownRows, alike
from common.shop_state import ShopState, read_slice
from common.stocked_rows import products_of, sent_rows


def answer_sum(
    stage: str,
    raw_header: Mapping[str, object],
    said: str,
    state: Callable[[], Arrays],
    node: Node,
) -> tuple[ReplyHeader, str, Arrays]:
    """Answer one stage of a secure sum.

    Parameters
    ----------
    stage
        One of ``SUM_STAGES``.
    raw_header
        The fields of a :class:`RoundHeader`, unchecked.
    said
        What the server says, unchecked.
    state
        Decodes the released global state; called for ``SUM_MASKED`` of a round only.
    node
        Where this runs.

    Returns
    -------
    tuple
        The reply's header, what the shop says, and in ``SUM_MASKED`` its masked vector; both empty
        unless the status is ``ok``.
    """

    def serve(header: RoundHeader, settings: ShopSettings) -> Answer:
        one = _Stage(header, allowed_plan(stage, header, settings), settings)
        if len(said) > one.most_chars:
            raise SecureSumError("a message is too long")
        if stage != SUM_MASKED:
            return Answer(text=one.say(stage, said))
        head, arrays = one.masked(said, state)
        return Answer(head, settings.noise, arrays=arrays)

    reply, answered = reply_to(stage, raw_header, node, serve)
    return reply, answered.text, answered.arrays


class _Stage:
    """One message of a secure sum at one shop."""

    def __init__(self, header: RoundHeader, plan: TrainingPlan, settings: ShopSettings) -> None:
        assert settings.secure_sum is not None
        self._header, self._plan, self._settings = header, plan, settings
        check_plan(plan)
        self._catalogue = agreed_catalogue(header, settings)
        check_features(plan.model, self._catalogue)
        self._stock = held_stock(settings)
        self._shapes = _shapes(plan, self._catalogue, header.server_round)
        # Read once: what is on the roster is what signs, also while the key is being renewed.
        key = own_key(settings.secure_sum)
        self._roster = own_roster(settings.merchant_id, settings.secure_sum, key)
        self._shop = shop_key(settings.merchant_id)
        me = Identity(self._shop, key, self._roster)
        self._sessions = Sessions(settings.secure_sum.sessions, me)

    def say(self, stage: str, said: str) -> str:
        """Return what the shop says at any stage but ``SUM_MASKED``."""
        if stage == SUM_KEYS:
            return self._sessions.begin(said, lambda request: self._check(request.session))
        if stage == SUM_SHARES:
            return self._sessions.share(said)
        if stage == SUM_OPEN:
            return self._sessions.open(said)
        return self._sessions.see(said) if stage == SUM_VIEW else self._sessions.unmask(said)

    def masked(self, said: str, state: Callable[[], Arrays]) -> tuple[str, Arrays]:
        """Return the ledger's head and the shop's masked vector."""
        header, plan, settings = self._header, self._plan, self._settings
        # Everything that can fail is tried before the charge: what is charged can't be taken back.
        session = self._sessions.peek(parse(MaskedRequest, said).session).session
        self._check(session)
        received = state() if header.server_round else {}
        known = self._known(received) if header.server_round else None
        own = {} if known is None else known.by_row
        shared = {name: array for name, array in received.items() if name not in own}
        if session.state_digest != state_digest(shared):
            raise SecureSumError("the state is not the one that this session is about")
        events = held_records(settings)
        tell_if_none(plan, header.server_round, events)
        check_plan(plan, has_sessions=events.sessions is not None)
        if header.server_round:
            from client.training import whole_gradients  # Slow; the popularity does without.
        layout = self._layout(known)
        noise, bound = self._noise_and_bound(layout)
        # From here on this session is used up, also if what follows fails.
        _, masks = self._sessions.mask(said, self._shown(known))
        head = charge(header, plan, settings, header.server_round, self._facts(session, layout))
        if known is not None:
            sampling = sampling_source(settings, header.server_round)
            gradients = whole_gradients(
                plan, header.server_round, known, events, self._catalogue, sampling, self._stocked
            )
            whole = as_vector(self._spread(gradients, known), self._shapes)
        else:
            whole = whole_popularity(plan, events, self._catalogue.size, self._stocked)
        # Only rows that the shop stocks, by a public table, and held to a public bound: no two
        # vectors move apart by either.
        words = to_words(whole[layout.where(self._shop)], noise, bound)
        arrays = {MASKED_VECTOR: masks.hide(words, partial(layout.within, self._shop))}
        check_may_leave(arrays, head, header, plan, settings)
        return head, arrays

    @property
    def most_chars(self) -> int:
        """How long what is said may be."""
        return most_chars(len(self._roster.keys))

    @property
    def _stocked(self) -> np.ndarray | None:
        return None if self._stock is None else self._stock.rows.get(self._shop)

    def _known(self, received: Arrays) -> ShopState:
        """Return what was sent of a round's state, checked."""
        plan, catalogue = self._plan, self._catalogue
        if self._stock is not None:
            return read_slice(plan, received, catalogue, self._stocked)
        check_arrays(received, state_spec(plan.model, catalogue.size), max_norm=0.0)
        return ShopState.of(plan, received, catalogue)

    def _shown(self, known: ShopState | None) -> Shown:
        if known is None or known.products is None or self._stock is None:
            return alike
        return ShownRows(known.by_row, known.products, self._stock).digest

    def _spread(self, own: Arrays, known: ShopState) -> Arrays:
        """Return whole arrays of a shop's own rows: 0 in those that it adds nothing to."""
        if self._stocked is None:
            return own
        products = products_of(self._plan, self._shapes, known.learned)
        spread = dict(own)
        for name, rows in sent_rows(products, self._stocked).items():
            spread[name] = np.zeros(self._shapes[name], own[name].dtype)
            spread[name][rows] = own[name]
        return spread

    def _layout(self, known: ShopState | None) -> Layout:
        members = tuple(self._roster.keys)
        learned = None if known is None else known.learned
        return layout_of(self._plan, members, self._shapes, self._stock, learned)

    def _noise_and_bound(self, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """Return this shop's share of the noise, and what it may have before it: (k,) int64 each.

        No data decide anything of either.
        """
        plan = self._plan
        training = self._header.server_round > 0
        multiplier = plan.noise_multiplier if training else plan.popularity_noise_multiplier
        source = noise_source(self._settings, "sum", self._header.server_round)
        senders = layout.senders_of(self._shop)
        noise, bound = np.empty(len(senders), np.int64), np.empty(len(senders), np.int64)
        for count in np.unique(senders).tolist():
            here = senders == count
            honest = int(honest_senders(plan, len(layout.members), count))
            std = share_std(plan, multiplier, honest)
            noise[here] = discrete_gaussian(source, int(np.count_nonzero(here)), std)
            bound[here] = coordinate_bound(count, layout.length, std, plan.noise_steps)
        return noise, bound

    def _facts(self, session: Session, layout: Layout) -> dict[str, object]:
        """Return what the ledger keeps of a sum: whom it was with, and of rows that some stock."""
        facts: dict[str, object] = {SESSION: session.id.hex(), "roster": session.roster_digest}
        if self._stock is None:
            return facts
        fewest = layout.senders[layout.senders > 0].min(initial=len(layout.members))
        honest = honest_senders(self._plan, len(layout.members), fewest)
        return {**facts, "stock": self._stock.fingerprint, "fewest_honest": int(honest)}

    def _check(self, session: Session) -> None:
        """Refuse a session that is not what this message's header and plan ask for."""
        header, plan = self._header, self._plan
        expected = {
            "run_id": header.run_id,
            "server_round": header.server_round,
            "kind": "update" if header.server_round else "release",
            "plan_digest": plan_digest(plan),
            "catalogue_fingerprint": header.catalogue_fingerprint,
            "stock_fingerprint": stock_fingerprint(self._stock),
            "roster_digest": self._roster.digest,
            "threshold": _threshold(plan, self._roster),
            "length": vector_length(self._shapes),
        }
        if wrong := [name for name, value in expected.items() if getattr(session, name) != value]:
            raise SecureSumError(f"the session has another {', '.join(wrong)} than the plan")


def _shapes(
    plan: TrainingPlan, catalogue: Catalogue, server_round: int
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what is summed in a round; 0 is the popularity release."""
    if server_round:
        return trained_spec(plan.model, catalogue.size)
    return {POPULARITY: (catalogue.size,)}


def _threshold(plan: TrainingPlan, roster: Roster) -> int:
    return threshold(len(roster.keys), plan.honest_shops, plan.colluding_shops)
