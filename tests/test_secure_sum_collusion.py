"""How many shops that collude with a malicious server take one honest shop's masks off."""

import numpy as np
import pytest

from client.secure_sum.party import _opened, see, unmask
from common.errors import SecureSumError
from common.protocol import shop_key
from common.secure_sum.members import threshold
from common.secure_sum.messages import (
    CONSISTENCY,
    MASKED,
    UnmaskRequest,
    ViewRequest,
    own_mask_key,
    pair_label,
    view,
)
from common.secure_sum.primitives import (
    SECRET_BYTES,
    add_keystream,
    agree,
    derive,
    public_key,
    sign,
)
from common.secure_sum.sharing import combine
from secure_sum_support import Played, play


def bare_vector(played: Played, victim: str, bad: list[str]) -> np.ndarray:
    """Return the victim's vector by the one way there is: half of the honest are told that it is in
    the sum, and give its seed; the others that it dropped out, and give its mask key. Who colludes
    signs both views, and gives both."""
    session = played.collector.session
    everyone = sorted(played.parties)
    honest = [shop for shop in everyone if shop not in {victim, *bad}]
    needed = max(session.threshold - len(bad), 0)
    # Those who see the victim in the sum, itself among them, are no more than it takes.
    halves = ([victim, *honest[: needed - 1]], honest[needed - 1 :])
    place = played.identities[victim].roster.place
    secrets = []
    for inside, half in zip((True, False), halves, strict=True):
        contributors = [shop for shop in everyone if inside or shop != victim]
        told = ViewRequest(session=session.id, contributors=tuple(contributors))
        signatures, shares = {}, {}
        for shop in half:
            played.parties[shop], said = see(played.parties[shop], told, played.identities[shop])
            signatures[shop] = said.signature
        for shop in bad:
            party = played.parties[shop]
            seen = view(session.id, party.advertisements, everyone, contributors)
            signatures[shop] = sign(played.identities[shop].key, CONSISTENCY, seen)
            both = _opened(party, victim, party.sealed[victim], played.identities[shop])
            assert both is not None
            shares[place(shop)] = both[:SECRET_BYTES] if inside else both[SECRET_BYTES:]
        asked = UnmaskRequest(session=session.id, signatures=signatures)
        for shop in half:
            _, answer = unmask(played.parties[shop], asked, played.identities[shop])
            shares[place(shop)] = (answer.seeds if inside else answer.keys)[victim]
        secrets.append(combine(shares, session.threshold))
    seed, secret = secrets
    shown = played.parties[victim].advertisements
    assert public_key(secret) == shown[victim].mask_key
    found = played.masked[victim].copy()
    add_keystream(found, own_mask_key(session.id, victim, seed), subtract=True)
    for other in everyone:
        if other != victim:
            agreed = agree(secret, shown[other].mask_key)
            key = derive(agreed, session.id, pair_label(victim, other))
            add_keystream(found, key, subtract=victim < other)
    return found


@pytest.mark.parametrize(
    ("shops", "honest", "colluding"), [(5, 3, 0), (5, 2, 1), (7, 3, 0), (8, 4, 0), (9, 7, 0)]
)
def test_it_takes_twice_the_threshold_less_all_shops_to_show_two_views(
    shops: int, honest: int, colluding: int
) -> None:
    """Not the threshold, as it takes with a server that keeps to the protocol; and more than the
    plan allows for."""
    enough = 2 * threshold(shops, honest, colluding) - shops
    assert colluding < enough
    stream = np.random.default_rng(shops)
    vectors = [stream.integers(0, 2**32, 50, dtype=np.uint32) for _ in range(shops)]
    for count in (enough, enough - 1):
        played = play(vectors, {}, honest=honest, colluding=colluding, until=MASKED)
        victim, *others = (shop_key(f"m{k}") for k in range(shops))
        bad = others[:count]
        if count == enough:
            assert np.array_equal(bare_vector(played, victim, bad), vectors[0])
        else:
            with pytest.raises(SecureSumError, match="are needed"):
                bare_vector(played, victim, bad)
