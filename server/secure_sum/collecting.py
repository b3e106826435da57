"""One session of a secure sum as the server sees it: who is still there, and at last the sum.

Arrays and messages in, arrays and messages out, no Flower types. Shops are known by their public
names. A shop that sends nothing, or rubbish, at some stage has dropped out there.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import combinations, islice

import numpy as np

from common.errors import SecureSumError
from common.secure_sum.layout import Layout, add_mask, whole_layout
from common.secure_sum.members import Roster
from common.secure_sum.messages import (
    ADVERTISEMENT,
    CONSISTENCY,
    Advertisement,
    MaskedRequest,
    OpenAnswer,
    OpenRequest,
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
    own_mask_key,
    pair_label,
    share_digest,
    view,
)
from common.secure_sum.primitives import agree, derive, fresh, is_signed, public_key
from common.secure_sum.sharing import combine
from common.secure_sum.shown import Shown, alike
from common.wording import counted

# Sets of givers that a secret is looked for with: all that leave out one of a hundred.
_MOST_TRIES = 128


class Collector:
    """Collects what shops say in one session, stage by stage.

    Parameters
    ----------
    session
        What all sign.
    roster
        The operator's own copy.
    layout
        Who sends which rows; None: everyone sends everything.
    shown
        Two shops -> digest of the rows that both were shown.
    """

    def __init__(
        self,
        session: Session,
        roster: Roster,
        layout: Layout | None = None,
        shown: Shown = alike,
    ) -> None:
        self.session, self._roster, self._shown = session, roster, shown
        self.layout = whole_layout(tuple(roster.keys), session.length) if layout is None else layout
        self._advertisements: dict[str, Advertisement] = {}
        self._sealed: dict[str, dict[str, bytes]] = {}
        self._total = np.zeros(session.length, np.uint32)
        self._contributors: set[str] = set()
        self._signatures: dict[str, bytes] = {}
        self._answers: dict[str, UnmaskAnswer] = {}
        #: Shops that said which shares they can open.
        self.opened: set[str] = set()
        #: Who says that it cannot open whose share.
        self.complaints: set[tuple[str, str]] = set()
        #: Shops whose shares are not what they themselves had said or committed to.
        self.proven: set[str] = set()

    @property
    def contributors(self) -> list[str]:
        """Shops whose masked vectors are in the sum."""
        return sorted(self._contributors)

    def take_keys(self, shop: str, said: Advertisement) -> None:
        """Take a shop's keys.

        Raises
        ------
        SecureSumError
            If they are not that shop's, as all the ``take`` methods do.
        """
        self._roster.place(shop)
        covered = said.covered(self.session.id)
        key = self._roster.keys[shop]
        if said.shop != shop or not is_signed(key, said.signature, ADVERTISEMENT, covered):
            raise SecureSumError("keys without the signature of their shop")
        known = {k for a in self._advertisements.values() for k in (a.mask_key, a.sealing_key)}
        if known & {said.mask_key, said.sealing_key} or said.mask_key == said.sealing_key:
            raise SecureSumError("keys that another shop shows")
        # Of a point of small order nobody can agree on anything: all others would have to stop.
        for shown in (said.mask_key, said.sealing_key):
            agree(fresh(), shown)
        self._advertisements[shop] = said

    def shares_request(self) -> SharesRequest:
        """Return what is sent to each of those who showed keys."""
        self._enough(self._advertisements, "showed keys")
        return SharesRequest(
            session=self.session.id,
            advertisements=tuple(a for _, a in sorted(self._advertisements.items())),
        )

    def take_shares(self, shop: str, said: SharesAnswer) -> None:
        """Take what a shop sealed for each of the others."""
        if said.sealed.keys() | {shop} != self._advertisements.keys() or shop in said.sealed:
            raise SecureSumError("shares for other shops than those who showed keys")
        for sealed in said.sealed.values():
            Sealed.of(sealed)
        self._sealed[shop] = said.sealed

    def open_request(self, shop: str) -> OpenRequest:
        """Return what the others sealed for ``shop``, which shares: whether it opens."""
        self._enough(self._sealed, "shared")
        return OpenRequest(session=self.session.id, sealed=self._sealed_for(shop))

    def take_open(self, shop: str, said: OpenAnswer) -> None:
        """Take whose shares a shop cannot open."""
        others = self._sealed.keys() - {shop}
        if shop not in self._sealed or not others.issuperset(said.unopened):
            raise SecureSumError("complaints of shares that it was not shown")
        self.opened.add(shop)
        self.complaints |= {(shop, other) for other in said.unopened}

    def leave_out(self, shops: Collection[str]) -> None:
        """Go on without shops that share, before any vector is asked for."""
        assert not self._contributors
        for shop in shops:
            del self._sealed[shop]

    def masked_request(self, shop: str) -> MaskedRequest:
        """Return what the others sealed for ``shop``, which shares."""
        self._enough(self._sealed, "shared")
        return MaskedRequest(session=self.session.id, sealed=self._sealed_for(shop))

    @property
    def sharing(self) -> list[str]:
        """Shops that share."""
        return sorted(self._sealed)

    def take_masked(self, shop: str, vector: np.ndarray) -> None:
        """Add a shop's masked vector, uint32 numbers of its rows, to the sum; only that is kept."""
        vector = check_vector(vector, self.layout.length_of(shop))
        if shop not in self._sealed or shop in self._contributors:
            raise SecureSumError("a vector of a shop that does not share, or its second one")
        self._total[self.layout.where(shop)] += vector
        self._contributors.add(shop)

    def view_request(self) -> ViewRequest:
        """Return what is sent to the contributors."""
        # Where no shop shares, none was asked for a vector either.
        self._enough(self._sealed, "shared")
        self._enough(self._contributors, "contributed")
        return ViewRequest(session=self.session.id, contributors=tuple(self.contributors))

    def take_view(self, shop: str, said: ViewAnswer) -> None:
        """Take a contributor's signature."""
        seen = view(self.session.id, self._advertisements, self._sealed, self._contributors)
        if shop not in self._contributors or not is_signed(
            self._roster.keys[shop], said.signature, CONSISTENCY, seen
        ):
            raise SecureSumError("a signature of another view, or of no contributor")
        self._signatures[shop] = said.signature

    @property
    def signers(self) -> list[str]:
        """Contributors that signed."""
        return sorted(self._signatures)

    def unmask_request(self) -> UnmaskRequest:
        """Return what is sent to the signers."""
        self._enough(self._signatures, "signed")
        return UnmaskRequest(session=self.session.id, signatures=self._signatures)

    def take_unmask(self, shop: str, said: UnmaskAnswer) -> None:
        """Take a signer's shares, those that are what their sealer committed to.

        A share that is missing is a complaint of its sealer, or shows up who could open it before.
        """
        dropped = self._sealed.keys() - self._contributors
        if (
            shop not in self._signatures
            or not said.seeds.keys() <= self._contributors
            or not said.keys.keys() <= dropped
        ):
            raise SecureSumError("shares that were not asked for")
        seeds = self._committed(shop, "seed", said.seeds, self._contributors)
        keys = self._committed(shop, "key", said.keys, dropped)
        self._answers[shop] = UnmaskAnswer(seeds=seeds, keys=keys)

    def _committed(
        self, giver: str, what: str, given: Mapping[str, bytes], asked: Collection[str]
    ) -> dict[str, bytes]:
        """Return the shares that are what their sealers committed to; note who is wrong."""
        right: dict[str, bytes] = {}
        for shop in asked:
            share = given.get(shop)
            if shop == giver:
                # Nobody else was shown a digest of it.
                right |= {} if share is None else {shop: share}
                continue
            sealed = Sealed.of(self._sealed[shop][giver])
            committed = sealed.seed if what == "seed" else sealed.key
            if share is None:
                could = giver in self.opened and (giver, shop) not in self.complaints
                self.proven |= {giver} if could else set()
                self.complaints |= set() if could else {(giver, shop)}
            elif share_digest(self.session.id, shop, giver, what, share) == committed:
                right[shop] = share
            else:
                # Whoever could not open it, or found another digest, gives none.
                self.proven.add(giver)
        return right

    def sum(self) -> np.ndarray:
        """Return the sum (n,) uint32 of the contributors' vectors, modulo 2^32; 0 where none sends.

        Raises
        ------
        SecureSumError
            If too few shares came, or too few right ones: nothing is unmasked then.
        """
        self._enough(self._answers, "gave their shares")
        seeds, secrets = self._secrets()
        total = self._total.copy()
        for shop, seed in seeds.items():
            mask = own_mask_key(self.session.id, shop, seed)
            add_mask(total, self.layout.where(shop), mask, subtract=True)
        for shop, secret in secrets.items():
            for other in self.contributors:
                agreed = agree(secret, self._advertisements[other].mask_key)
                label = pair_label(shop, other, self._shown(shop, other))
                key = derive(agreed, self.session.id, label)
                # What the other added is taken off; what it took off is added.
                where = self.layout.where(shop, other)
                add_mask(total, where, key, subtract=other < shop)
        return total

    def _secrets(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return the contributors' seeds, and the mask keys of those who dropped out.

        All are looked for, also where one is lost: whose shares are wrong shows by that.
        """
        seeds: dict[str, bytes] = {}
        secrets: dict[str, bytes] = {}
        lost: SecureSumError | None = None
        for shop in sorted(self._sealed):
            there = shop in self._contributors
            try:
                (seeds if there else secrets)[shop] = (
                    self._seed(shop) if there else self._mask_secret(shop)
                )
            except SecureSumError as error:
                lost = lost or error
        if lost is not None:
            raise lost
        return seeds, secrets

    def _seed(self, shop: str) -> bytes:
        committed = self._advertisements[shop].commitment
        return self._secret(
            shop,
            "seed",
            {s: a.seeds[shop] for s, a in self._answers.items() if shop in a.seeds},
            lambda seed: commitment(self.session.id, shop, seed) == committed,
        )

    def _mask_secret(self, shop: str) -> bytes:
        shown = self._advertisements[shop].mask_key
        return self._secret(
            shop,
            "key",
            {s: a.keys[shop] for s, a in self._answers.items() if shop in a.keys},
            lambda secret: public_key(secret) == shown,
        )

    def _secret(
        self,
        shop: str,
        what: str,
        shares: Mapping[str, bytes],
        is_right: Callable[[bytes], bool],
    ) -> bytes:
        """Return the secret that shares, by giver, are of, with as few as possible left out.

        All are what their sealer committed to: where one is wrong, the sealer is.
        """
        needed = self.session.threshold
        if len(shares) < needed:
            raise SecureSumError(
                f"{counted(len(shares), 'shop')} gave the share of {shop[:12]}...'s {what} that it "
                f"committed to; {needed} are needed"
            )
        place = self._roster.place
        order = sorted(shares, key=place)
        for givers, left_out in islice(_subsets(order, needed), _MOST_TRIES):
            secret = combine({place(g): shares[g] for g in givers}, needed)
            if is_right(secret):
                self.proven |= {shop} if left_out else set()
                return secret
        self.proven.add(shop)
        raise SecureSumError(f"shares of the {what} of {shop[:12]}... are not that shop's")

    def _sealed_for(self, shop: str) -> dict[str, bytes]:
        return {other: texts[shop] for other, texts in self._sealed.items() if other != shop}

    def _enough(self, there: Mapping[str, object] | set[str], what: str) -> None:
        if len(there) < self.session.threshold:
            raise SecureSumError(
                f"{counted(len(there), 'shop')} {what}; {self.session.threshold} are needed, and "
                "with fewer nothing is unmasked"
            )


def _subsets(order: Sequence[str], size: int) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the first ``size`` of ``order``, then of what is left without one of it, without two...

    Each subset once, and beside it who was left out for it. All there is, where it is less.
    """
    seen: set[tuple[str, ...]] = set()
    for few in range(max(len(order) - size, 0) + 1):
        for left_out in combinations(order, few):
            chosen = tuple(one for one in order if one not in left_out)[:size]
            if chosen not in seen:
                seen.add(chosen)
                yield chosen, left_out
