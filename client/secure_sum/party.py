"""One shop in one session of a secure sum: from what it is asked to what it says.

Pure steps, each from one state to the next (Bonawitz et al. 2017, figure 4). Nothing of a step may
leave the shop before its state is on disk: :mod:`client.secure_sum.sessions` sees to it.
"""

from collections.abc import Mapping, Sized
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from common.errors import SecureSumError
from common.secure_sum.layout import Within, add_mask, everywhere
from common.secure_sum.members import Roster
from common.secure_sum.messages import (
    ADVERTISEMENT,
    CONSISTENCY,
    KEYS,
    MASKED,
    OPEN,
    SHARES,
    UNMASK,
    VIEW,
    Advertisement,
    MaskedRequest,
    OpenAnswer,
    OpenRequest,
    Said,
    Sealed,
    Session,
    SharesAnswer,
    SharesRequest,
    UnmaskAnswer,
    UnmaskRequest,
    ViewAnswer,
    ViewRequest,
    commitment,
    own_mask_key,
    pair_label,
    share_digest,
    view,
)
from common.secure_sum.primitives import (
    SECRET_BYTES,
    add_keystream,
    agree,
    derive,
    digest,
    fresh,
    is_signed,
    public_key,
    seal,
    sign,
    unseal,
)
from common.secure_sum.sharing import split
from common.secure_sum.shown import Shown, alike
from common.wording import counted

# Stage -> those that it may follow.
_BEFORE = {
    SHARES: (KEYS,),
    OPEN: (SHARES,),
    MASKED: (SHARES, OPEN),
    VIEW: (MASKED,),
    UNMASK: (VIEW,),
}


@dataclass(frozen=True)
class Identity:
    """Who a shop is to the others: its public name, its enrolled key, and the roster it holds."""

    shop: str
    key: ec.EllipticCurvePrivateKey
    roster: Roster


class Party(Said):
    """What a shop remembers of a session, between stages and over restarts.

    Attributes
    ----------
    stage
        The last one that it answered.
    sealing_secret, mask_secret, seed
        X25519 secrets, and the seed of the shop's own mask; empty once they are of no more use:
        what masks are made of, once they were made.
    advertisements
        Of all shops whose keys it was shown.
    kept_shares
        Its own shares of its own secrets.
    sealed
        What the others sealed for it; their names are those who share.
    answers
        Stage -> what it said, to say it again, and nothing else, if it is asked the same again.
    requests
        Stage -> digest of what it was asked.
    """

    session: Session
    stage: str
    sealing_secret: bytes
    mask_secret: bytes
    seed: bytes
    advertisements: dict[str, Advertisement] = Field(default_factory=dict)
    kept_shares: bytes = b""
    sealed: dict[str, bytes] = Field(default_factory=dict)
    contributors: tuple[str, ...] = ()
    answers: dict[str, str] = Field(default_factory=dict)
    requests: dict[str, str] = Field(default_factory=dict)

    def after(self, stage: str, request: Said, answer: Said | None, **changes: object) -> "Party":
        """Return the state after a stage was answered."""
        said = {} if answer is None else {stage: answer.model_dump_json()}
        return self.model_copy(
            update={
                "stage": stage,
                "answers": {**self.answers, **said},
                "requests": {**self.requests, stage: _digest(request)},
                **changes,
            }
        )

    def said(self, stage: str, request: Said) -> str | None:
        """Return what was answered to the same request; None: the stage is yet to come.

        Raises
        ------
        SecureSumError
            If the stage was answered to another request, was answered by a vector, which is made
            once, or is not the next one.
        """
        if (asked := self.requests.get(stage)) is not None:
            if stage in self.answers and asked == _digest(request):
                return self.answers[stage]
            raise SecureSumError(f"stage {stage!r} of this session was answered already")
        if self.stage not in _BEFORE[stage]:
            raise SecureSumError(f"stage {stage!r} does not follow {self.stage!r}")
        return None


@dataclass(frozen=True)
class Masks:
    """What hides one vector, and is used for no other.

    Attributes
    ----------
    own
        Cipher key of the shop's own mask.
    pairwise
        Other shop -> cipher key, and whether this shop subtracts what the other adds.
    """

    own: bytes
    pairwise: Mapping[str, tuple[bytes, bool]]

    def hide(self, vector: np.ndarray, within: Within = everywhere) -> np.ndarray:
        """Return ``vector`` (n,) uint32 under all masks, modulo 2^32.

        Parameters
        ----------
        within
            Returns the numbers of the vector that another shop sends, too: those that the mask of
            the two is for.
        """
        hidden: np.ndarray = vector.astype(np.uint32)
        add_keystream(hidden, self.own)
        for shop, (key, subtract) in self.pairwise.items():
            add_mask(hidden, within(shop), key, subtract=subtract)
        return hidden


def begin(session: Session, me: Identity) -> tuple[Party, Advertisement]:
    """Draw the secrets of a session, and sign its keys (AdvertiseKeys)."""
    me.roster.place(me.shop)
    if session.roster_digest != me.roster.digest:
        raise SecureSumError("the server's roster is not the one that this shop holds")
    party = Party(
        session=session, stage=KEYS, sealing_secret=fresh(), mask_secret=fresh(), seed=fresh()
    )
    unsigned = Advertisement(
        shop=me.shop,
        sealing_key=public_key(party.sealing_secret),
        mask_key=public_key(party.mask_secret),
        commitment=commitment(session.id, me.shop, party.seed),
        signature=b"",
    )
    signature = sign(me.key, ADVERTISEMENT, unsigned.covered(session.id))
    return party, unsigned.model_copy(update={"signature": signature})


def share(party: Party, request: SharesRequest, me: Identity) -> tuple[Party, SharesAnswer]:
    """Seal shares of both secrets for each of the others (ShareKeys)."""
    session = party.session
    advertisements = {a.shop: a for a in request.advertisements}
    if len(advertisements) < len(request.advertisements):
        raise SecureSumError("the server shows a shop's keys twice")
    own = advertisements.get(me.shop)
    if own is None or own.mask_key != public_key(party.mask_secret):
        raise SecureSumError("the server does not show this shop's own keys")
    _enough(advertisements, session, "began")
    for shop, advertisement in advertisements.items():
        me.roster.place(shop)
        signed = advertisement.covered(session.id)
        if not is_signed(me.roster.keys[shop], advertisement.signature, ADVERTISEMENT, signed):
            raise SecureSumError(f"the keys of {shop[:12]}... bear no signature of that shop")
    keys = [k for a in advertisements.values() for k in (a.mask_key, a.sealing_key)]
    if len(set(keys)) < len(keys):
        raise SecureSumError("two shops show the same key")
    members = len(me.roster.keys)
    seeds = split(party.seed, session.threshold, members)
    secrets = split(party.mask_secret, session.threshold, members)
    sealed = {}
    for shop in sorted(advertisements.keys() - {me.shop}):
        place = me.roster.place(shop)
        key = _sealing_key(party, advertisements[shop], me.shop, shop)
        text = seal(key, seeds[place] + secrets[place], _bound(session, me.shop, shop))
        shown = _digests(session, me.shop, shop, seeds[place] + secrets[place])
        sealed[shop] = Sealed(*shown, text).whole
    answer = SharesAnswer(sealed=sealed)
    kept = seeds[me.roster.place(me.shop)] + secrets[me.roster.place(me.shop)]
    return party.after(
        SHARES, request, answer, advertisements=advertisements, kept_shares=kept
    ), answer


def look(party: Party, request: OpenRequest, me: Identity) -> tuple[Party, OpenAnswer]:
    """Say whose shares this shop cannot open: before it has paid for anything.

    It says so of a text that the server may have made up itself, which teaches nobody anything: who
    lacks the key of a sealed text gets none that opens.
    """
    _check_sharing(party, request, me)
    unopened = [
        shop
        for shop, sealed in sorted(request.sealed.items())
        if _opened(party, shop, sealed, me) is None
    ]
    answer = OpenAnswer(unopened=tuple(unopened))
    return party.after(OPEN, request, answer), answer


def mask(
    party: Party, request: MaskedRequest, me: Identity, shown: Shown = alike
) -> tuple[Party, Masks]:
    """Return the masks of the one vector that this session takes (MaskedInputCollection).

    Parameters
    ----------
    shown
        Another shop -> digest of the rows that both were shown.
    """
    session = party.session
    _check_sharing(party, request, me)
    pairwise = {}
    for shop in sorted(request.sealed):
        secret = agree(party.mask_secret, party.advertisements[shop].mask_key)
        key = derive(secret, session.id, pair_label(me.shop, shop, shown(shop)))
        pairwise[shop] = (key, me.shop > shop)
    masks = Masks(own_mask_key(session.id, me.shop, party.seed), pairwise)
    after = party.after(MASKED, request, None, sealed=dict(request.sealed))
    # They are made once: from here on only shares of the secrets are out there.
    return after.model_copy(update={"mask_secret": b"", "seed": b""}), masks


def see(party: Party, request: ViewRequest, me: Identity) -> tuple[Party, ViewAnswer]:
    """Sign who contributed, and all else that was shown (ConsistencyCheck)."""
    contributors = set(request.contributors)
    sharing = {*party.sealed, me.shop}
    if len(contributors) < len(request.contributors) or not contributors <= sharing:
        raise SecureSumError("the server names contributors that shared nothing")
    if me.shop not in contributors:
        raise SecureSumError("the server leaves this shop's own vector out")
    _enough(contributors, party.session, "contributed")
    seen = view(party.session.id, party.advertisements, sharing, contributors)
    answer = ViewAnswer(signature=sign(me.key, CONSISTENCY, seen))
    return party.after(VIEW, request, answer, contributors=tuple(sorted(contributors))), answer


def unmask(party: Party, request: UnmaskRequest, me: Identity) -> tuple[Party, UnmaskAnswer]:
    """Give the shares that take masks off, if enough shops saw what this one saw (Unmasking).

    Never of one shop both the seed's share and the key's. What is given follows from the view that
    was signed, whoever else signed it.
    """
    sharing = {*party.sealed, me.shop}
    seen = view(party.session.id, party.advertisements, sharing, party.contributors)
    if not request.signatures.keys() <= set(party.contributors):
        raise SecureSumError("the server shows a view of a shop that contributed nothing")
    _enough(request.signatures, party.session, "saw it so")
    for shop, signature in request.signatures.items():
        if not is_signed(me.roster.keys[shop], signature, CONSISTENCY, seen):
            raise SecureSumError(f"{shop[:12]}... was shown another view of this session")
    seeds, keys = {}, {}
    for shop in sorted(sharing):
        if (shares := _shares(party, shop, me)) is None:
            continue
        if shop in party.contributors:
            seeds[shop] = shares[:SECRET_BYTES]
        else:
            keys[shop] = shares[SECRET_BYTES:]
    answer = UnmaskAnswer(seeds=seeds, keys=keys)
    after = party.after(UNMASK, request, answer, sealed={}, kept_shares=b"")
    return after.model_copy(update={"sealing_secret": b""}), answer


def _digest(request: Said) -> str:
    return digest("request", request.model_dump_json().encode()).hex()


def _check_sharing(party: Party, request: OpenRequest, me: Identity) -> None:
    """Refuse shares of strangers, or of too few shops."""
    sharing = set(request.sealed) | {me.shop}
    if me.shop in request.sealed or not sharing <= party.advertisements.keys():
        raise SecureSumError("the server passes on shares of a shop that showed no keys")
    _enough(sharing, party.session, "shared")


def _enough(shops: Sized, session: Session, did: str) -> None:
    """Refuse a stage that too few shops came to."""
    if len(shops) < session.threshold:
        raise SecureSumError(f"{counted(len(shops), 'shop')} {did}, {session.threshold} are needed")


def _shares(party: Party, shop: str, me: Identity) -> bytes | None:
    """Return a shop's shares that this shop holds; None where that shop sealed rubbish."""
    return party.kept_shares if shop == me.shop else _opened(party, shop, party.sealed[shop], me)


def _opened(party: Party, shop: str, sealed: bytes, me: Identity) -> bytes | None:
    """Return both shares that a shop sealed for this one; None if they are not what it says."""
    session = party.session
    key = _sealing_key(party, party.advertisements[shop], shop, me.shop)
    try:
        parts = Sealed.of(sealed)
        shares = unseal(key, parts.text, _bound(session, shop, me.shop))
    except SecureSumError:
        return None
    return shares if _digests(session, shop, me.shop, shares) == (parts.seed, parts.key) else None


def _digests(session: Session, sender: str, receiver: str, shares: bytes) -> tuple[bytes, bytes]:
    """Return what a shop commits to of the shares of its seed and of its key, for another shop."""
    seed, key = shares[:SECRET_BYTES], shares[SECRET_BYTES:]
    return (
        share_digest(session.id, sender, receiver, "seed", seed),
        share_digest(session.id, sender, receiver, "key", key),
    )


def _sealing_key(party: Party, other: Advertisement, sender: str, receiver: str) -> bytes:
    info = b"sealing\0" + f"{sender}\0{receiver}".encode()
    return derive(agree(party.sealing_secret, other.sealing_key), party.session.id, info)


def _bound(session: Session, sender: str, receiver: str) -> bytes:
    return session.id + f"{sender}\0{receiver}".encode()
