"""Shops and a server that speak the protocol of secure sums, without Flower and with faults."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from client.secure_sum.party import Identity, Party, begin, look, mask, see, share, unmask
from common.protocol import NO_FINGERPRINT, shop_key
from common.secure_sum.layout import Layout, whole_layout
from common.secure_sum.members import Roster, threshold
from common.secure_sum.messages import (
    KEYS,
    MASKED,
    OPEN,
    SHARES,
    STAGES,
    UNMASK,
    VIEW,
    KeysRequest,
    Session,
    state_digest,
)
from common.secure_sum.primitives import fresh
from server.secure_sum.collecting import Collector


@lru_cache(maxsize=256)
def node_key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@lru_cache(maxsize=64)
def make_roster(shops: int) -> Roster:
    return Roster.of((f"m{k}", node_key(k).public_key()) for k in range(shops))


def make_identity(number: int, roster: Roster) -> Identity:
    return Identity(shop_key(f"m{number}"), node_key(number), roster)


def make_session(roster: Roster, length: int, needed: int, **changes: object) -> Session:
    values: dict[str, object] = {
        "run_id": "r",
        "server_round": 1,
        "kind": "update",
        "plan_digest": "a" * 64,
        "catalogue_fingerprint": "b" * 64,
        "stock_fingerprint": NO_FINGERPRINT,
        "state_digest": state_digest({}),
        "roster_digest": roster.digest,
        "threshold": needed,
        "length": length,
        "nonce": fresh(),
    }
    return Session.model_validate(values | changes)


@dataclass
class Played:
    """A session that was played to its end."""

    collector: Collector
    parties: dict[str, Party]
    identities: dict[str, Identity]
    masked: dict[str, np.ndarray] = field(default_factory=dict)


def play(  # noqa: C901 - one stage after the other
    vectors: Sequence[np.ndarray],
    leaves: Mapping[int, str],
    *,
    honest: int = 1,
    colluding: int = 0,
    until: str = UNMASK,
    layout: Layout | None = None,
) -> Played:
    """Play a session; shop ``k`` of ``leaves`` no longer answers from the stage named there on.

    ``vectors`` are of the rows that each shop sends by ``layout``: without one, all.
    """
    roster = make_roster(len(vectors))
    needed = threshold(len(vectors), honest, colluding)
    layout = layout or whole_layout(tuple(roster.keys), len(vectors[0]))
    session = make_session(roster, layout.length, needed)
    collector = Collector(session, roster, layout)
    identities = {shop_key(f"m{k}"): make_identity(k, roster) for k in range(len(vectors))}
    numbers = {shop_key(f"m{k}"): k for k in range(len(vectors))}
    parties: dict[str, Party] = {}

    def there(stage: str, among: Collection[str]) -> list[str]:
        place = STAGES.index(stage)
        gone = {k for k, left in leaves.items() if STAGES.index(left) <= place}
        return [shop for shop in sorted(among) if numbers[shop] not in gone]

    played = Played(collector, parties, identities)
    for shop in there(KEYS, identities):
        party, advertisement = begin(session, identities[shop])
        parties[shop] = party.after(KEYS, KeysRequest(session=session), advertisement)
        collector.take_keys(shop, advertisement)
    if until == KEYS:
        return played
    request = collector.shares_request()
    for shop in there(SHARES, parties):
        parties[shop], answer = share(parties[shop], request, identities[shop])
        collector.take_shares(shop, answer)
    if until == SHARES:
        return played
    for shop in there(OPEN, collector.sharing):
        request_ = collector.open_request(shop)
        parties[shop], unopened = look(parties[shop], request_, identities[shop])
        collector.take_open(shop, unopened)
    collector.leave_out(set(collector.sharing) - collector.opened)
    if until == OPEN:
        return played
    for shop in there(MASKED, collector.sharing):
        parties[shop], masks = mask(parties[shop], collector.masked_request(shop), identities[shop])
        hidden = masks.hide(vectors[numbers[shop]], partial(layout.within, shop))
        collector.take_masked(shop, hidden)
        played.masked[shop] = hidden
    if until == MASKED:
        return played
    seen = collector.view_request()
    for shop in there(VIEW, collector.contributors):
        parties[shop], signed = see(parties[shop], seen, identities[shop])
        collector.take_view(shop, signed)
    if until == VIEW:
        return played
    last = collector.unmask_request()
    for shop in there(UNMASK, collector.signers):
        parties[shop], shares = unmask(parties[shop], last, identities[shop])
        collector.take_unmask(shop, shares)
    return played
