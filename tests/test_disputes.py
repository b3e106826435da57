"""Shops that seal rubbish, complain falsely or make shares up: who is left out, and who not."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.secure_sum.party import look, mask, see, share, unmask
from common.errors import SecureSumError
from common.protocol import shop_key
from common.secure_sum.messages import (
    KEYS,
    OPEN,
    SHARES,
    OpenAnswer,
    Sealed,
    SharesAnswer,
    UnmaskAnswer,
    share_digest,
)
from common.secure_sum.primitives import fresh
from secure_sum_support import Played, play
from server.secure_sum.collecting import Collector
from server.secure_sum.disputes import DISPUTED, WRONG_SHARES, Disputes

NAMES = [shop_key(f"m{k}") for k in range(12)]


def rubbish(sealed: bytes) -> bytes:
    """Of the right length, under no key that anyone has."""
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


@dataclass
class Bad:
    """What a bad shop does.

    Attributes
    ----------
    rubbish
        For whom it seals what does not open.
    another
        Whether it shares, consistently, another seed than it committed to.
    complains
        Of whose shares, falsely.
    makes_up
        Whether it gives shares of its own making.
    keeps
        Whether it gives none, though it could open them.
    """

    rubbish: tuple[int, ...] = ()
    another: bool = False
    complains: tuple[int, ...] = ()
    makes_up: bool = False
    keeps: bool = False


@dataclass
class Room:
    """Sessions one after the other, with bad shops, as the server runs them."""

    shops: int
    honest: int
    bad: Mapping[int, Bad]
    disputes: Disputes = field(default_factory=Disputes)
    collector: Collector = field(init=False)

    def sum(self, *, opening: bool) -> np.ndarray:
        """Return the sum of a session; vector ``k`` is 2^k in all places."""
        played = play([np.zeros(4, np.uint32)] * self.shops, {}, honest=self.honest, until=KEYS)
        self.collector = collector = played.collector
        names = NAMES[: self.shops]
        threshold = collector.session.threshold
        request = collector.shares_request()
        for k, shop in enumerate(names):
            me = played.identities[shop]
            party = played.parties[shop]
            if self.of(k).another:
                played.parties[shop], _ = share(party, request, me)
                party = party.model_copy(update={"seed": fresh()})
            after, answer = share(party, request, me)
            if not self.of(k).another:
                played.parties[shop] = after
            victims = {NAMES[v] for v in self.of(k).rubbish}
            sealed = {s: rubbish(t) if s in victims else t for s, t in answer.sealed.items()}
            collector.take_shares(shop, SharesAnswer(sealed=sealed))
        try:
            if opening:
                self.open(played, threshold)
            return self.finish(played)
        finally:
            self.disputes.note(collector.complaints, collector.proven)

    def of(self, shop: int) -> Bad:
        return self.bad.get(shop, Bad())

    def open(self, played: Played, threshold: int) -> None:
        collector = self.collector
        for shop in collector.sharing:
            me = played.identities[shop]
            seen = collector.open_request(shop)
            played.parties[shop], said = look(played.parties[shop], seen, me)
            falsely = {NAMES[v] for v in self.of(NAMES.index(shop)).complains}
            unopened = tuple(sorted({*said.unopened, *falsely}))
            collector.take_open(shop, OpenAnswer(unopened=unopened))
        self.disputes.note(collector.complaints, collector.proven)
        collector.leave_out(self.disputes.left_out(collector.sharing, threshold, 0))

    def finish(self, played: Played) -> np.ndarray:
        collector, parties, me = self.collector, played.parties, played.identities
        for shop in collector.sharing:
            parties[shop], masks = mask(parties[shop], collector.masked_request(shop), me[shop])
            vector = np.full(4, 1 << NAMES.index(shop), np.uint32)
            collector.take_masked(shop, masks.hide(vector))
        for shop in collector.contributors:
            parties[shop], seen = see(parties[shop], collector.view_request(), me[shop])
            collector.take_view(shop, seen)
        for shop in collector.signers:
            parties[shop], given = unmask(parties[shop], collector.unmask_request(), me[shop])
            bad = self.of(NAMES.index(shop))
            if bad.makes_up:
                seeds = dict.fromkeys(given.seeds, fresh())
                given = UnmaskAnswer(seeds=seeds, keys=given.keys)
            if bad.keeps:
                given = UnmaskAnswer(seeds={}, keys={})
            collector.take_unmask(shop, given)
        return collector.sum()

    def out(self) -> dict[int, str]:
        """Return who would be left out of the next sum."""
        names = NAMES[: self.shops]
        found = self.disputes.left_out(names, self.collector.session.threshold, 1)
        return {NAMES.index(shop): why for shop, why in found.items()}


def total(*shops: int) -> np.ndarray:
    return np.full(4, sum(1 << k for k in shops), np.uint32)


def test_a_shop_that_seals_rubbish_for_all_is_left_out_before_anyone_sends_a_vector() -> None:
    room = Room(5, 3, {2: Bad(rubbish=(0, 1, 3, 4))})
    assert np.array_equal(room.sum(opening=True), total(0, 1, 3, 4))
    assert room.out() == {2: DISPUTED}
    assert room.collector.complaints == {(NAMES[k], NAMES[2]) for k in (0, 1, 3, 4)}


def test_unasked_it_spoils_one_sum_and_is_known_by_that() -> None:
    room = Room(5, 3, {2: Bad(rubbish=(0, 1, 3, 4))})
    with pytest.raises(SecureSumError, match=rf"^1 shop gave the share of {NAMES[2][:12]}"):
        room.sum(opening=False)
    assert room.out() == {2: DISPUTED}


@pytest.mark.parametrize("opening", [True, False])
def test_rubbish_for_one_shop_alone_takes_nobody_out_and_spoils_nothing(*, opening: bool) -> None:
    """Which of the two is bad nobody can tell, and the others have enough shares of both."""
    room = Room(5, 3, {2: Bad(rubbish=(0,))})
    assert np.array_equal(room.sum(opening=opening), total(0, 1, 2, 3, 4))
    assert room.collector.complaints == {(NAMES[0], NAMES[2])}
    assert room.out() == {}
    # Another one in a later sum, and it is sure.
    room.bad = {2: Bad(rubbish=(4,))}
    room.sum(opening=opening)
    assert room.out() == {2: DISPUTED}


def test_a_shop_that_complains_of_all_is_left_out_itself() -> None:
    room = Room(5, 3, {1: Bad(complains=(0, 2, 3, 4))})
    assert np.array_equal(room.sum(opening=True), total(0, 2, 3, 4))
    assert room.out() == {1: DISPUTED}


def test_a_false_complaint_of_one_shop_changes_nothing() -> None:
    room = Room(5, 3, {1: Bad(complains=(4,))})
    assert np.array_equal(room.sum(opening=True), total(0, 1, 2, 3, 4))
    assert room.out() == {}


def test_two_of_nine_that_collude_neither_spoil_a_sum_nor_accuse_an_honest_shop() -> None:
    """One seals rubbish for as many as nobody is left out for, the other does not tell of it."""
    room = Room(9, 5, {0: Bad(rubbish=(3, 4)), 1: Bad(complains=(5, 6), makes_up=True)})
    assert np.array_equal(room.sum(opening=True), total(*range(9)))
    assert room.out() == {1: WRONG_SHARES}
    both = Room(9, 5, {0: Bad(complains=(8,)), 1: Bad(complains=(8,))})
    assert np.array_equal(both.sum(opening=True), total(*range(9)))
    assert both.out() == {}


def test_shares_of_another_seed_than_was_committed_to_are_proven_to_be_their_sealers() -> None:
    """They open and are what was said of them: it shows once they are put together."""
    room = Room(5, 3, {3: Bad(another=True)})
    with pytest.raises(SecureSumError, match=f"seed of {NAMES[3][:12]}.* are not that shop's"):
        room.sum(opening=True)
    assert room.out() == {3: WRONG_SHARES}


def test_a_shop_that_kept_what_it_could_open_is_proven_wrong_by_its_own_word() -> None:
    room = Room(5, 3, {3: Bad(keeps=True)})
    assert np.array_equal(room.sum(opening=True), total(0, 1, 2, 3, 4))
    assert room.out() == {3: WRONG_SHARES}
    # Where it was not asked before, it may as well have got rubbish: of all others, though?
    room = Room(5, 3, {3: Bad(keeps=True)})
    assert np.array_equal(room.sum(opening=False), total(0, 1, 2, 3, 4))
    assert room.out() == {3: DISPUTED}


def test_with_too_few_left_it_ends_before_anyone_sends_a_vector() -> None:
    everyone = range(5)
    bad = {k: Bad(rubbish=tuple(v for v in everyone if v != k)) for k in (0, 1, 2)}
    room = Room(5, 3, bad)
    with pytest.raises(SecureSumError, match="shops shared; 3 are needed"):
        room.sum(opening=True)
    assert room.collector.contributors == []
    assert len(room.collector.sharing) == 2


@st.composite
def federations(draw: st.DrawFn) -> tuple[int, int, set[int], set[frozenset[int]]]:
    """Shops, threshold, at most k bad ones, and pairs that a bad one is in, as they please."""
    shops = draw(st.integers(3, 12))
    threshold = draw(st.integers(shops // 2 + 1, shops))
    most = (shops - threshold) // 2
    bad = draw(st.sets(st.integers(0, shops - 1), max_size=most))
    pairs = {frozenset((a, b)) for a in bad for b in range(shops) if a != b}
    some = st.sets(st.sampled_from(sorted(pairs, key=sorted))) if pairs else st.just(set())
    return shops, threshold, bad, draw(some)


@given(federations(), st.integers(0, 9))
@settings(deadline=None)
def test_no_honest_shop_is_left_out_and_whoever_stays_has_enough_honest_holders(
    case: tuple[int, int, set[int], set[frozenset[int]]], turn: int
) -> None:
    shops, threshold, bad, pairs = case
    disputes = Disputes()
    disputes.note([(NAMES[min(p)], NAMES[max(p)]) for p in pairs], set())
    out = {NAMES.index(s) for s in disputes.left_out(NAMES[:shops], threshold, turn)}
    assert out <= bad
    honest = set(range(shops)) - bad
    for shop in set(range(shops)) - out:
        holders = {h for h in honest if frozenset((h, shop)) not in pairs}
        assert len(holders) >= threshold


def test_of_two_that_nobody_can_tell_apart_one_goes_and_not_always_the_same() -> None:
    disputes = Disputes()
    disputes.note([(NAMES[0], NAMES[1])], set())
    out = [tuple(disputes.left_out(NAMES[:3], 2, turn)) for turn in range(12)]
    assert {len(one) for one in out} == {1}
    assert set(out) == {(NAMES[0],), (NAMES[1],)}
    assert not disputes.left_out(NAMES[1:3], 2, 0)


def test_what_is_sealed_has_one_form_and_its_digests_are_of_one_pair_and_session() -> None:
    collector = play([np.zeros(1, np.uint32)] * 3, {}, until=SHARES).collector
    session = collector.session.id
    whole = collector._sealed[NAMES[0]][NAMES[1]]
    assert Sealed.of(whole).whole == whole
    for wrong in (b"", whole[:-1], whole + b"x"):
        with pytest.raises(SecureSumError, match="two shares"):
            Sealed.of(wrong)
        again = SharesAnswer(sealed={**collector._sealed[NAMES[0]], NAMES[1]: wrong})
        with pytest.raises(SecureSumError, match="two shares"):
            collector.take_shares(NAMES[0], again)
    # By the definition: each part after its length of 8 bytes.
    parts = (b"share", session, b"a", b"b", b"seed", bytes(32))
    told = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert share_digest(session, "a", "b", "seed", bytes(32)) == hashlib.sha256(told).digest()
    cases = [("b", "a", "seed"), ("a", "b", "key"), ("a", "b", "seed")]
    assert len({share_digest(session, *case, bytes(32)) for case in cases}) == 3


@pytest.mark.parametrize("of", [0, 7])
def test_complaints_of_oneself_or_of_strangers_are_rubbish(of: int) -> None:
    collector = play([np.zeros(1, np.uint32)] * 3, {}, until=SHARES).collector
    with pytest.raises(SecureSumError, match="was not shown"):
        collector.take_open(NAMES[0], OpenAnswer(unopened=(NAMES[of],)))
    with pytest.raises(SecureSumError, match="was not shown"):
        collector.take_open(NAMES[7], OpenAnswer(unopened=()))


def test_a_shop_looks_at_nothing_of_strangers_or_of_too_few_and_only_once() -> None:
    played = play([np.zeros(1, np.uint32)] * 5, {}, honest=4, until=SHARES)
    shop = NAMES[0]
    party, me = played.parties[shop], played.identities[shop]
    request = played.collector.open_request(shop)
    for sealed, match in (
        ({**request.sealed, NAMES[7]: b"x"}, "no keys"),
        ({**request.sealed, shop: b"x"}, "no keys"),
        (dict(list(request.sealed.items())[:2]), "are needed"),
    ):
        with pytest.raises(SecureSumError, match=match):
            look(party, request.model_copy(update={"sealed": sealed}), me)
    after, said = look(party, request, me)
    assert said == OpenAnswer(unopened=())
    assert after.said(OPEN, request) == said.model_dump_json()
    other = request.model_copy(update={"sealed": {**request.sealed, NAMES[1]: b"x"}})
    with pytest.raises(SecureSumError, match="already"):
        after.said(OPEN, other)
    masked, _ = mask(after, played.collector.masked_request(shop), me)
    with pytest.raises(SecureSumError, match="does not follow"):
        masked.model_copy(update={"requests": {}}).said(OPEN, request)


@pytest.mark.parametrize("which", [0, 40, 130])
def test_a_share_that_opens_but_is_not_what_was_committed_to_is_told_of(which: int) -> None:
    """One bit in the seed's digest, the key's digest, or the sealed text."""
    played = play([np.zeros(1, np.uint32)] * 3, {}, until=SHARES)
    shop = NAMES[0]
    request = played.collector.open_request(shop)
    whole = bytearray(request.sealed[NAMES[1]])
    whole[which] ^= 1
    sealed = {**request.sealed, NAMES[1]: bytes(whole)}
    seen = request.model_copy(update={"sealed": sealed})
    _, said = look(played.parties[shop], seen, played.identities[shop])
    assert said.unopened == (NAMES[1],)
