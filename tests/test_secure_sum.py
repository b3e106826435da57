import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.secure_sum.party import _opened, begin, mask, see, share, unmask
from common.errors import ConfigError, SecureSumError
from common.protocol import shop_key
from common.secure_sum.members import Roster, read_roster, roster_text, threshold
from common.secure_sum.messages import (
    ADVERTISEMENT,
    KEYS,
    MASKED,
    SHARES,
    STAGES,
    UNMASK,
    VIEW,
    Advertisement,
    KeysRequest,
    MaskedRequest,
    OpenAnswer,
    Sealed,
    Session,
    SharesAnswer,
    SharesRequest,
    UnmaskAnswer,
    UnmaskRequest,
    ViewAnswer,
    ViewRequest,
    check_vector,
    commitment,
    most_chars,
    own_mask_key,
    pair_label,
    parse,
    state_digest,
    view,
)
from common.secure_sum.primitives import fresh, seal, sign
from common.secure_sum.sharing import combine, split
from secure_sum_support import Played, make_identity, make_roster, make_session, node_key, play
from server.secure_sum.collecting import Collector

NAMES = [shop_key(f"m{k}") for k in range(100)]


def words(shops: int, length: int, seed: int = 0) -> list[np.ndarray]:
    stream = np.random.default_rng(seed)
    return [stream.integers(0, 2**32, length, dtype=np.uint32) for _ in range(shops)]


def plain_sum(vectors: list[np.ndarray], contributors: list[str]) -> np.ndarray:
    total = np.zeros(len(vectors[0]), np.uint32)
    for shop in contributors:
        total += vectors[NAMES.index(shop)]
    return total


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, dict[int, str]]:
    """Shops, length, how many are needed, and who leaves at which stage: at most the tolerated."""
    shops = draw(st.integers(3, 9))
    honest = draw(st.integers(1, shops))
    needed = threshold(shops, honest, 0)
    leavers = draw(st.lists(st.integers(0, shops - 1), unique=True, max_size=shops - needed))
    leaves = {shop: draw(st.sampled_from(STAGES)) for shop in leavers}
    return shops, draw(st.integers(1, 300)), honest, leaves


@given(cases(), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_masked_sum_is_the_plain_sum_whoever_drops_out_at_whichever_stage(
    case: tuple[int, int, int, dict[int, str]], seed: int
) -> None:
    shops, length, honest, leaves = case
    vectors = words(shops, length, seed)
    collector = play(vectors, leaves, honest=honest).collector
    early = {NAMES[k] for k, s in leaves.items() if STAGES.index(s) <= STAGES.index(MASKED)}
    assert set(collector.contributors) == set(NAMES[:shops]) - early
    assert np.array_equal(collector.sum(), plain_sum(vectors, collector.contributors))


@pytest.mark.parametrize("stage", STAGES)
def test_a_sum_of_twenty_survives_seven_that_leave_together(stage: str) -> None:
    vectors = words(20, 64)
    collector = play(vectors, dict.fromkeys(range(7), stage), honest=13).collector
    assert np.array_equal(collector.sum(), plain_sum(vectors, collector.contributors))


@pytest.mark.slow
def test_the_masked_sum_of_a_hundred_shops_is_the_plain_sum() -> None:
    vectors = words(100, 500)
    leaves = {k: STAGES[k % 6] for k in range(30)}
    collector = play(vectors, leaves, honest=60, colluding=5).collector
    assert np.array_equal(collector.sum(), plain_sum(vectors, collector.contributors))


@pytest.mark.parametrize("stage", STAGES)
def test_with_one_shop_too_few_nothing_is_unmasked(stage: str) -> None:
    vectors = words(7, 8)
    with pytest.raises(SecureSumError, match="nothing is unmasked"):
        play(vectors, dict.fromkeys(range(3), stage), honest=5).collector.sum()


@pytest.mark.parametrize(
    ("stage", "failed"), [(SHARES, "shared"), (MASKED, "contributed"), (VIEW, "signed")]
)
def test_where_all_have_left_the_reason_names_the_stage_that_failed(
    stage: str, failed: str
) -> None:
    with pytest.raises(SecureSumError, match=f"^0 shops {failed};"):
        play(words(4, 8), dict.fromkeys(range(4), stage), honest=3)


@pytest.mark.parametrize("members", [3, 100])
def test_no_message_is_a_third_as_long_as_one_may_be_that_is_read(members: int) -> None:
    shops = [shop_key(f"m{number}") for number in range(members)]
    secret, signature = bytes(32), bytes(104)  # of ECDSA over P-384 in DER, the longest
    shown = [
        Advertisement(
            shop=shop, sealing_key=secret, mask_key=secret, commitment=secret, signature=signature
        )
        for shop in shops
    ]
    sealed = {shop: Sealed(secret, secret, bytes(64 + 28)).whole for shop in shops}
    secrets = dict.fromkeys(shops, secret)
    messages = [
        KeysRequest(session=make_session(make_roster(3), 2**40, members, run_id="r" * 64)),
        SharesRequest(session=secret, advertisements=tuple(shown)),
        SharesAnswer(sealed=sealed),
        MaskedRequest(session=secret, sealed=sealed),
        OpenAnswer(unopened=tuple(shops)),
        ViewRequest(session=secret, contributors=tuple(shops)),
        UnmaskRequest(session=secret, signatures=dict.fromkeys(shops, signature)),
        UnmaskAnswer(seeds=secrets, keys=secrets),
    ]
    longest = max(len(message.model_dump_json()) for message in messages)
    assert 3 * longest < most_chars(members)


def test_what_a_shop_sends_looks_like_noise_to_whoever_lacks_one_mask() -> None:
    """All zeros, masked: bytes of any value, and not the same twice."""
    seen = []
    for _ in range(2):
        played = play([np.zeros(4000, np.uint32)] * 3, {}, until=SHARES)
        request = played.collector.masked_request(NAMES[0])
        _, masks = mask(played.parties[NAMES[0]], request, played.identities[NAMES[0]])
        seen.append(masks.hide(np.zeros(4000, np.uint32)))
        # Without any one mask the rest still hides it.
        assert masks.pairwise.keys() == set(NAMES[1:3])
    assert not np.any(seen[0] == seen[1])
    counts = np.bincount(np.concatenate(seen).view(np.uint8), minlength=256)
    assert abs(counts - 125).max() < 8 * 125**0.5


def test_seeds_are_new_for_every_pair_and_session_and_256_bits_long() -> None:
    keys = []
    for _ in range(3):
        played = play(words(4, 2), {}, until=SHARES)
        found: dict[frozenset[str], set[bytes]] = {}
        for shop in NAMES[:4]:
            request = played.collector.masked_request(shop)
            _, masks = mask(played.parties[shop], request, played.identities[shop])
            keys.append(masks.own)
            for other, (key, subtract) in masks.pairwise.items():
                found.setdefault(frozenset((shop, other)), set()).add(key)
                assert subtract == (shop > other)
        # Both shops of a pair have the same one.
        assert {len(both) for both in found.values()} == {1}
        keys += [key for both in found.values() for key in both]
    assert len(set(keys)) == len(keys) == 3 * (4 + 6)
    assert {len(key) for key in keys} == {32}


def test_the_threshold_leaves_honest_noise_and_no_two_signed_views() -> None:
    for members in range(3, 60):
        for colluding in range(members):
            for honest in range(1, members - colluding + 1):
                needed = max(honest + colluding, (members + colluding) // 2 + 1)
                if needed > members:
                    with pytest.raises(ConfigError, match="roster"):
                        threshold(members, honest, colluding)
                    continue
                assert threshold(members, honest, colluding) == needed
                assert needed - colluding >= honest
                # Two views need 2 t signatures; there are members + colluding at most.
                assert 2 * needed > members + colluding
    with pytest.raises(ConfigError):
        threshold(5, 0, 1)


def compressed(key: ec.EllipticCurvePublicKey) -> str:
    """Return a key in OpenSSH's form with a point of half the length: not one that nodes have."""
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    parts = (b"ecdsa-sha2-nistp384", b"nistp384", point)
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return "ecdsa-sha2-nistp384 " + base64.b64encode(text).decode()


def test_a_roster_survives_its_file_and_refuses_rubbish(tmp_path: Any) -> None:
    shops = [(name, node_key(k).public_key()) for k, name in enumerate(["b ü", "a", "c/d"])]
    path = tmp_path / "roster"
    path.write_text("# ours\n\n" + roster_text(shops))
    roster = read_roster(path)
    assert roster.digest == Roster.of(shops).digest
    assert set(roster.keys) == {shop_key(name) for name, _ in shops}
    for text, match in (
        ("rubbish", "line 1"),
        (compressed(node_key(0).public_key()) + " x", "line 1"),
        (roster_text(shops[:1]) * 2, "second time"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ== x", "line 1"),
        # Of the same kind, and weaker than what shops have.
        (roster_text([("x", ec.generate_private_key(ec.SECP256R1()).public_key())]), "P-384"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_roster(path)
    with pytest.raises(ConfigError, match="cannot read"):
        read_roster(tmp_path / "none")
    same = [("a", node_key(1).public_key()), ("b", node_key(1).public_key())]
    with pytest.raises(ConfigError, match="same key"):
        Roster.of(same)
    other = Roster.of([*shops[:2], ("c/d", node_key(9).public_key())])
    assert other.digest != roster.digest
    # Nor may the server put a shop's key under another name.
    assert Roster.of(shops[:1]).digest != Roster.of([("b", shops[0][1])]).digest


def test_all_that_hides_is_of_one_session_and_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were secrets ever to come again, masks and seals made of them would be others all the same:
    nothing of an earlier session opens, or takes off, anything of a later one."""
    drawn = [fresh() for _ in range(3 * 3)]
    owns, pairs, seals = [], [], []

    def sealing(key: bytes, text: bytes, bound: bytes) -> bytes:
        seals.append((key, bound))
        return seal(key, text, bound)

    monkeypatch.setattr("client.secure_sum.party.seal", sealing)
    for _ in range(2):
        monkeypatch.setattr("client.secure_sum.party.fresh", iter(drawn).__next__)
        played = play(words(3, 2), {}, until=SHARES)
        assert {party.seed for party in played.parties.values()} == set(drawn[2::3])
        found: set[bytes] = set()
        for shop, party in played.parties.items():
            masks = mask(party, played.collector.masked_request(shop), played.identities[shop])[1]
            owns.append(masks.own)
            found |= {key for key, _ in masks.pairwise.values()}
        pairs += sorted(found)
    assert len(set(owns)) == len(owns) == 2 * 3
    assert len(set(pairs)) == len(pairs) == 2 * 3
    # From each to each of the others: neither key nor what it is bound to comes twice.
    assert len(seals) == 2 * 3 * 2
    assert [len(set(each)) for each in zip(*seals, strict=True)] == [12, 12]


def test_what_is_derived_of_one_secret_goes_by_its_session_and_its_shops() -> None:
    session, other, seed = fresh(), fresh(), fresh()
    a, b, c = NAMES[:3]
    for made in (own_mask_key, commitment):
        found = {made(session, a, seed), made(other, a, seed), made(session, b, seed)}
        assert len({*found, made(session, a, fresh())}) == 4
    assert pair_label(a, b) == pair_label(b, a)
    assert len({pair_label(a, b), pair_label(a, c), pair_label(b, c), pair_label(a, b, b"d")}) == 4


def test_one_share_fewer_than_the_threshold_gives_no_shops_secrets_back() -> None:
    """Split for fewer they would make the same sum, and so many that collude would have both."""
    played = play(words(5, 2), {}, honest=4, until=SHARES)
    needed, first = played.collector.session.threshold, min(played.parties)
    party, shares = played.parties[first], {0: played.parties[first].kept_shares}
    for place, holder in enumerate(sorted(played.parties)[1:], start=1):
        sealed = played.collector.masked_request(holder).sealed[first]
        opened = _opened(played.parties[holder], first, sealed, played.identities[holder])
        assert opened is not None
        shares[place] = opened
    for part, secret in ((slice(32), party.seed), (slice(32, 64), party.mask_secret)):
        given = {place: both[part] for place, both in shares.items()}
        assert combine(given, needed) == secret
        assert combine(given, needed - 1) != secret


def at(stage: str, **more: Any) -> Played:
    return play(words(5, 4), more.pop("leaves", {}), honest=4, until=stage)


def test_a_shop_begins_no_session_of_another_roster_or_without_it() -> None:
    roster = make_roster(5)
    session = make_session(make_roster(4), 4, 3)
    with pytest.raises(SecureSumError, match="roster"):
        begin(session, make_identity(0, roster))
    with pytest.raises(SecureSumError, match="no member"):
        begin(make_session(roster, 4, 3), make_identity(7, roster))


def forged(request: SharesRequest, place: int, **changes: object) -> SharesRequest:
    shown = list(request.advertisements)
    shown[place] = shown[place].model_copy(update=changes)
    return request.model_copy(update={"advertisements": tuple(shown)})


def test_a_shop_shares_nothing_with_keys_that_the_server_made_up() -> None:
    played = at(KEYS)
    request = played.collector.shares_request()
    shown = request.advertisements
    me = shown[0].shop
    party, identity = played.parties[me], played.identities[me]
    own_key = {"mask_key": shown[2].mask_key, "sealing_key": shown[2].sealing_key}
    for wrong, match in (
        (forged(request, 1, mask_key=fresh()), "no signature"),
        (forged(request, 1, sealing_key=fresh()), "no signature"),
        (forged(request, 1, commitment=fresh()), "no signature"),
        (forged(request, 1, **own_key), "no signature"),
        (forged(request, 1, shop=NAMES[7]), "no member"),
        (forged(request, 1, signature=b""), "no signature"),
        (forged(request, 0, mask_key=fresh()), "own keys"),
        (SharesRequest(session=party.session.id, advertisements=(*shown, shown[1])), "twice"),
        (SharesRequest(session=party.session.id, advertisements=shown[1:]), "own keys"),
        (SharesRequest(session=party.session.id, advertisements=shown[:3]), "are needed"),
        (SharesRequest(session=party.session.id, advertisements=shown[:1]), "^1 shop began, "),
    ):
        with pytest.raises(SecureSumError, match=match):
            share(party, wrong, identity)


def test_keys_of_another_session_are_not_shared_with() -> None:
    """A signature of an earlier session does not hold in this one: nothing can be replayed."""
    earlier, now = at(KEYS), at(KEYS)
    old = earlier.collector.shares_request().advertisements[1]
    request = now.collector.shares_request()
    shown = (request.advertisements[0], old, *request.advertisements[2:])
    me = shown[0].shop
    with pytest.raises(SecureSumError, match="no signature"):
        share(
            now.parties[me],
            request.model_copy(update={"advertisements": shown}),
            now.identities[me],
        )


def test_every_fact_of_a_session_is_in_what_its_shops_sign() -> None:
    """Else shops that were told different ones, such as of the state, would sign the same."""
    session = make_session(make_roster(3), 5, 3)
    other: dict[str, object] = {
        "run_id": "s",
        "server_round": 2,
        "kind": "release",
        "threshold": 2,
        "length": 6,
        "nonce": fresh(),
    }
    digests = {name for name in Session.model_fields if name.endswith(("_digest", "_fingerprint"))}
    other |= dict.fromkeys(digests, "e" * 64)
    assert other.keys() == Session.model_fields.keys()
    changed = [session.model_copy(update={name: value}).id for name, value in other.items()]
    assert len({session.id, *changed}) == 1 + len(other)


def test_all_that_a_shop_was_shown_is_in_the_view_that_it_signs() -> None:
    """Shops that were shown other keys, sharers or contributors give no shares for one sum."""
    session = fresh()
    shown = {a.shop: a for a in at(KEYS).collector.shares_request().advertisements}
    names = sorted(shown)
    other = shown[names[0]].model_copy(update={"mask_key": fresh()})
    views = [
        view(session, shown, names, names),
        view(fresh(), shown, names, names),
        view(session, {**shown, names[0]: other}, names, names),
        view(session, {name: shown[name] for name in names[1:]}, names, names),
        view(session, shown, names[1:], names),
        view(session, shown, names, names[1:]),
    ]
    assert len(set(views)) == len(views)


def test_a_member_that_shows_another_members_key_is_refused() -> None:
    """With its own signature on it: it would be sealed for what the other can read."""
    played = at(KEYS)
    request = played.collector.shares_request()
    victim, thief = request.advertisements[1], request.advertisements[2]
    stolen = thief.model_copy(update={"sealing_key": victim.sealing_key})
    key = played.identities[thief.shop].key
    signature = sign(key, ADVERTISEMENT, stolen.covered(request.session))
    wrong = forged(request, 2, sealing_key=victim.sealing_key, signature=signature)
    me = request.advertisements[0].shop
    with pytest.raises(SecureSumError, match="same key"):
        share(played.parties[me], wrong, played.identities[me])


def test_a_shop_masks_for_no_fewer_than_the_threshold_and_for_known_shops_only() -> None:
    played = at(SHARES)
    me = played.collector.sharing[0]
    party, identity = played.parties[me], played.identities[me]
    request = played.collector.masked_request(me)
    some = dict(list(request.sealed.items())[:2])
    for sealed, match in (
        (some, "are needed"),
        ({**request.sealed, NAMES[7]: b"x"}, "no keys"),
        ({**request.sealed, me: b"x"}, "no keys"),
    ):
        with pytest.raises(SecureSumError, match=match):
            mask(party, request.model_copy(update={"sealed": sealed}), identity)


def test_a_shop_signs_no_view_that_leaves_it_out_or_is_too_small() -> None:
    played = at(MASKED)
    request = played.collector.view_request()
    me = request.contributors[0]
    party, identity = played.parties[me], played.identities[me]
    names = request.contributors
    for wrong, match in (
        (names[:3], "are needed"),
        (names[1:], "leaves this shop"),
        ((*names, NAMES[7]), "shared nothing"),
        ((*names, names[1]), "shared nothing"),
    ):
        with pytest.raises(SecureSumError, match=match):
            see(party, request.model_copy(update={"contributors": wrong}), identity)


def test_shares_are_given_only_to_enough_signatures_of_the_same_view() -> None:
    played = at(VIEW)
    request = played.collector.unmask_request()
    me, other = list(request.signatures)[:2]
    party, identity = played.parties[me], played.identities[me]
    few = dict(list(request.signatures.items())[:3])
    foreign = at(VIEW).collector.unmask_request().signatures
    for wrong, match in (
        (few, "are needed"),
        ({**request.signatures, other: b""}, "another view"),
        ({**request.signatures, other: request.signatures[me]}, "another view"),
        ({**request.signatures, NAMES[7]: b""}, "contributed nothing"),
        (foreign, "another view"),
    ):
        with pytest.raises(SecureSumError, match=match):
            unmask(party, request.model_copy(update={"signatures": wrong}), identity)


def test_a_server_that_shows_shops_different_survivors_unmasks_neither_view() -> None:
    """The attack that the consistency check is for: the seed of a shop from one half of the others,
    its key from the other half, and its vector is bare."""
    played = at(MASKED)
    names = played.collector.contributors
    victim, others = names[0], names[1:]
    whole = played.collector.view_request()
    without = whole.model_copy(update={"contributors": tuple(others)})
    signatures: dict[str, bytes] = {}
    for k, shop in enumerate(others):
        told = without if k < 2 else whole
        party, answer = see(played.parties[shop], told, played.identities[shop])
        played.parties[shop], signatures[shop] = party, answer.signature
    party, answer = see(played.parties[victim], whole, played.identities[victim])
    signatures[victim] = answer.signature
    for shop in others:
        for shown in (signatures, dict(list(signatures.items())[:3])):
            asked = UnmaskRequest(session=whole.session, signatures=shown)
            with pytest.raises(SecureSumError, match=r"another view|are needed|nothing"):
                unmask(played.parties[shop], asked, played.identities[shop])


def test_of_no_shop_both_secrets_are_shared() -> None:
    played = play(words(6, 4), {1: MASKED, 2: VIEW}, honest=4)
    for shop in played.collector.signers:
        answer = played.collector._answers[shop]
        assert set(answer.seeds) == set(played.collector.contributors)
        assert set(answer.keys) == {NAMES[1]}


def test_secrets_are_forgotten_as_soon_as_they_are_of_no_use() -> None:
    played = at(VIEW)
    for party in played.parties.values():
        assert party.mask_secret == party.seed == b""
    played = at(UNMASK)
    for party in played.parties.values():
        assert party.sealing_secret == party.kept_shares == b""
        assert party.sealed == {}


Wrong = Callable[[Collector, Played], None]


def _unsigned(collector: Collector, played: Played) -> None:
    shop = played.collector.sharing[0]
    collector.take_keys(
        shop, played.collector._advertisements[shop].model_copy(update={"signature": b""})
    )


def _anothers_keys(collector: Collector, played: Played) -> None:
    first, second = played.collector.sharing[:2]
    collector.take_keys(first, played.collector._advertisements[second])


def _keys_of_small_order(collector: Collector, played: Played) -> None:
    """Signed by its shop: nobody could agree on anything with it, and all would have to stop."""
    shop = played.collector.sharing[0]
    shown = played.collector._advertisements[shop].model_copy(update={"mask_key": bytes(32)})
    signature = sign(
        played.identities[shop].key, ADVERTISEMENT, shown.covered(collector.session.id)
    )
    collector.take_keys(shop, shown.model_copy(update={"signature": signature}))


def _shares_for_others(collector: Collector, played: Played) -> None:
    shop = played.collector.sharing[0]
    sealed = dict(played.collector._sealed[shop])
    sealed.pop(next(iter(sealed)))
    played.collector.take_shares(shop, SharesAnswer(sealed=sealed))


def _second_vector(collector: Collector, played: Played) -> None:
    played.collector.take_masked(played.collector.contributors[0], np.zeros(4, np.uint32))


def _odd_vector(collector: Collector, played: Played) -> None:
    check_vector(np.zeros(4, np.float32), 4)


def _short_vector(collector: Collector, played: Played) -> None:
    check_vector(np.zeros(3, np.uint32), 4)


def _false_view(collector: Collector, played: Played) -> None:
    played.collector.take_view(played.collector.contributors[0], ViewAnswer(signature=b"x"))


def _unasked_shares(collector: Collector, played: Played) -> None:
    seeds = {NAMES[7]: bytes(32)}
    played.collector.take_unmask(played.collector.signers[0], UnmaskAnswer(seeds=seeds, keys={}))


@pytest.mark.parametrize(
    "wrong",
    [
        _unsigned,
        _anothers_keys,
        _keys_of_small_order,
        _shares_for_others,
        _second_vector,
        _odd_vector,
        _short_vector,
        _false_view,
        _unasked_shares,
    ],
)
def test_the_server_takes_no_rubbish(wrong: Wrong) -> None:
    played = at(UNMASK)
    session = played.collector.session
    with pytest.raises(SecureSumError):
        wrong(Collector(session, make_roster(5)), played)


def test_wrong_shares_are_told_from_right_ones() -> None:
    """Where so many give wrong shares that too few are left, nobody takes what comes for a sum."""
    for leaves, kind, match in (({}, "seeds", "seed"), ({0: MASKED}, "keys", "key")):
        played = play(words(5, 4), leaves, honest=4)
        collector = played.collector
        for giver, answer in collector._answers.items():
            wrong = {shop: split(fresh(), 4, 5)[0] for shop in getattr(answer, kind)}
            collector._answers[giver] = answer.model_copy(update={kind: wrong})
        with pytest.raises(SecureSumError, match=f"shares of the {match}"):
            collector.sum()


@pytest.mark.parametrize("liars", [1, 2])
def test_a_shop_that_gives_wrong_shares_is_done_without(liars: int) -> None:
    """As one that says again what it said in another session: the right shares are enough."""
    vectors = words(7, 4)
    collector = play(vectors, {6: MASKED}, honest=4).collector
    wrong = play(vectors, {6: MASKED}, honest=4).collector
    # Their places are the first, which are asked first.
    lying = sorted(collector._answers)[:liars]
    for shop in lying:
        collector.take_unmask(shop, wrong._answers[shop])
    assert np.array_equal(collector.sum(), plain_sum(vectors, collector.contributors))
    assert (collector.proven, collector.complaints) == (set(lying), set())


def test_who_committed_to_a_wrong_share_is_proven_by_what_comes_without_it() -> None:
    """Its digest was the sealer's own: so its giver is honest, and the sum is made all the same."""
    vectors = words(7, 4)
    collector = play(vectors, {}, honest=4).collector
    # The first place is asked first.
    giver, *_, sealer = sorted(collector._answers)
    answer = collector._answers[giver]
    seeds = {**answer.seeds, sealer: split(fresh(), 4, 7)[0]}
    collector._answers[giver] = answer.model_copy(update={"seeds": seeds})
    assert np.array_equal(collector.sum(), plain_sum(vectors, collector.contributors))
    assert (collector.proven, collector.complaints) == ({sealer}, set())


def test_messages_are_parsed_or_refused() -> None:
    session = make_session(make_roster(3), 4, 2)
    request = KeysRequest(session=session)
    assert parse(KeysRequest, request.model_dump_json()) == request
    assert session.id != make_session(make_roster(3), 4, 2).id
    for text in ("", "{}", "[]", '{"session": 1}', request.model_dump_json()[:-1] + ', "x": 1}'):
        with pytest.raises(SecureSumError, match="KeysRequest"):
            parse(KeysRequest, text)


def test_a_states_digest_tells_any_difference() -> None:
    state = {"a": np.zeros((2, 3), np.float32)}
    others: list[dict[str, np.ndarray]] = [
        {"b": state["a"]},
        {"a": state["a"].reshape(3, 2)},
        {"a": state["a"].view(np.int32)},
        {"a": state["a"] + np.float32(1e-30)},
        {},
    ]
    assert len({state_digest(s) for s in [state, *others]}) == 6
    assert state_digest({"a": np.zeros((3, 2), np.float32).T}) == state_digest(state)
