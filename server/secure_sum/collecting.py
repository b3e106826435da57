"""One session of a secure sum as the server sees it: who is still there, and at last the sum.

Arrays and messages in, arrays and messages out, no Flower types. Shops are known by their public
names. A shop that sends nothing, or rubbish, at some stage has dropped out there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    view,
)
from common.secure_sum.primitives import agree, derive, fresh, is_signed, public_key
from common.secure_sum.sharing import combine

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
    """

    def __init__(self, session: Session, roster: Roster, layout: Layout | None = None) -> None:
        self.session, self._roster = session, roster
        self.layout = whole_layout(tuple(roster.keys), session.length) if layout is None else layout
        self._advertisements: dict[str, Advertisement] = {}
        self._sealed: dict[str, dict[str, bytes]] = {}
        self._total = np.zeros(session.length, np.uint32)
        self._contributors: set[str] = set()
        self._signatures: dict[str, bytes] = {}
        self._answers: dict[str, UnmaskAnswer] = {}
        #: Shops that gave a share which was wrong, of a secret that others gave right ones of.
        self.doubtful: set[str] = set()

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
        self._sealed[shop] = said.sealed

    def masked_request(self, shop: str) -> MaskedRequest:
        """Return what the others sealed for ``shop``, which shares."""
        self._enough(self._sealed, "shared")
        sealed = {other: texts[shop] for other, texts in self._sealed.items() if other != shop}
        return MaskedRequest(session=self.session.id, sealed=sealed)

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
        """Take a signer's shares."""
        dropped = self._sealed.keys() - self._contributors
        if (
            shop not in self._signatures
            or not said.seeds.keys() <= self._contributors
            or not said.keys.keys() <= dropped
        ):
            raise SecureSumError("shares that were not asked for")
        self._answers[shop] = said

    def sum(self) -> np.ndarray:
        """Return the sum (n,) uint32 of the contributors' vectors, modulo 2^32; 0 where none sends.

        Raises
        ------
        SecureSumError
            If too few shares came, or too few right ones: nothing is unmasked then.
        """
        self._enough(self._answers, "gave their shares")
        total = self._total.copy()
        for shop in self.contributors:
            mask = own_mask_key(self.session.id, shop, self._seed(shop))
            add_mask(total, self.layout.where(shop), mask, subtract=True)
        for shop in sorted(self._sealed.keys() - self._contributors):
            secret = self._mask_secret(shop)
            for other in self.contributors:
                agreed = agree(secret, self._advertisements[other].mask_key)
                key = derive(agreed, self.session.id, pair_label(shop, other))
                # What the other added is taken off; what it took off is added.
                where = self.layout.where(shop, other)
                add_mask(total, where, key, subtract=other < shop)
        return total

    def _seed(self, shop: str) -> bytes:
        committed = self._advertisements[shop].commitment
        return self._secret(
            f"seed of {shop[:12]}...",
            {s: a.seeds[shop] for s, a in self._answers.items() if shop in a.seeds},
            lambda seed: commitment(self.session.id, shop, seed) == committed,
        )

    def _mask_secret(self, shop: str) -> bytes:
        shown = self._advertisements[shop].mask_key
        return self._secret(
            f"key of {shop[:12]}...",
            {s: a.keys[shop] for s, a in self._answers.items() if shop in a.keys},
            lambda secret: public_key(secret) == shown,
        )

    def _secret(
        self, what: str, shares: Mapping[str, bytes], is_right: Callable[[bytes], bool]
    ) -> bytes:
        """Return the secret that shares, by giver, are of, without those whose shares are wrong.

        With as few left out as possible, who are asked last for all further secrets. Last, not
        never: that a share is wrong may be the fault of whoever sealed it.
        """
        place = self._roster.place
        order = sorted(shares, key=lambda giver: (giver in self.doubtful, place(giver)))
        for givers, left_out in islice(_subsets(order, self.session.threshold), _MOST_TRIES):
            secret = combine({place(g): shares[g] for g in givers}, self.session.threshold)
            if is_right(secret):
                self.doubtful.update(left_out)
                return secret
        raise SecureSumError(f"shares of the {what} are not that shop's")

    def _enough(self, there: Mapping[str, object] | set[str], what: str) -> None:
        if len(there) < self.session.threshold:
            raise SecureSumError(
                f"{len(there)} shops {what}; {self.session.threshold} are needed, and with fewer "
                "nothing is unmasked"
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
