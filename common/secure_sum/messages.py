"""What shops and server say to each other in a secure sum, stage by stage.

The stages of Bonawitz et al. 2017, figure 4: ``KEYS`` (AdvertiseKeys), ``SHARES`` (ShareKeys),
``MASKED`` (MaskedInputCollection), ``VIEW`` (ConsistencyCheck), ``UNMASK`` (Unmasking); and between
the second and the third, where the server asks for it, ``OPEN``: whose shares a shop can open. All
of it is JSON, bytes in hexadecimal; the masked vector alone is an array.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import SecureSumError
from common.protocol import FINGERPRINT_CHARS, Arrays
from common.secure_sum.primitives import (
    SEALED_EXTRA_BYTES,
    SECRET_BYTES,
    WORD,
    derive,
    digest,
)

KEYS, SHARES, OPEN = "keys", "shares", "open"
MASKED, VIEW, UNMASK = "masked", "view", "unmask"
STAGES = (KEYS, SHARES, OPEN, MASKED, VIEW, UNMASK)
#: What a signature is for.
ADVERTISEMENT, CONSISTENCY = "advertisement", "consistency"

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Secret = Annotated[bytes, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
_Signature = Annotated[bytes, Field(max_length=128)]
_Sealed = Annotated[bytes, Field(max_length=256)]


class Said(BaseModel):
    """Base of all that is said: immutable, no unknown keys, bytes in hexadecimal."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )


T = TypeVar("T", bound=Said)


class Session(Said):
    """The public facts of one sum, which every signature of it covers.

    Attributes
    ----------
    kind
        What is summed: the popularity release or a round's updates.
    stock_fingerprint
        Of the published stock table; zeros where there is none. With the plan, the catalogue, the
        roster and the state it fixes who sends which rows (:mod:`common.secure_sum.layout`).
    state_digest
        :func:`state_digest` of the global state that came with it, or of what all shops are sent
        alike of it: a server that shows every shop another model is found out by the shops' views.
    length
        Numbers in the whole vector; a shop sends those of its rows.
    nonce
        Drawn by the server: a sum that is begun again is another session.
    """

    run_id: str = Field(min_length=1, max_length=FINGERPRINT_CHARS)
    server_round: int = Field(ge=0)
    kind: Literal["release", "update"]
    plan_digest: _Digest
    catalogue_fingerprint: _Digest
    stock_fingerprint: _Digest
    state_digest: _Digest
    roster_digest: _Digest
    threshold: int = Field(ge=1)
    length: int = Field(ge=1, le=2**40)
    nonce: _Secret

    @property
    def id(self) -> bytes:
        """SHA-256 of all of it, 32 bytes."""
        return digest("session", self.model_dump_json().encode())


class Advertisement(Said):
    """A shop's keys for one session, signed by its enrolled key.

    Attributes
    ----------
    sealing_key
        X25519: what is for this shop alone is sealed under an agreement with it.
    mask_key
        X25519: pairwise masks come of agreements with it.
    commitment
        To the seed of the shop's own mask: whether shares gave back the right one can be told.
    """

    shop: _Digest
    sealing_key: _Secret
    mask_key: _Secret
    commitment: _Secret
    signature: _Signature

    def covered(self, session: bytes) -> bytes:
        """Return what the signature is of."""
        parts = (self.shop.encode(), self.sealing_key, self.mask_key, self.commitment)
        return digest("advertisement", session, *parts)


class KeysRequest(Said):
    """Begin a sum."""

    session: Session


class SharesRequest(Said):
    """All keys of those who began."""

    session: _Secret
    advertisements: tuple[Advertisement, ...]


class SharesAnswer(Said):
    """Shares of a shop's two secrets, sealed for each of the others; see :class:`Sealed`."""

    sealed: dict[_Digest, _Sealed]


class OpenRequest(Said):
    """What the others sealed for this shop."""

    session: _Secret
    sealed: dict[_Digest, _Sealed]


class OpenAnswer(Said):
    """Whose shares this shop cannot open, or are not those that their shop has committed to."""

    unopened: tuple[_Digest, ...]


class MaskedRequest(OpenRequest):
    """The same again, of all that are to be in the sum; with it comes the global state."""


class ViewRequest(Said):
    """Whose masked vectors the server has."""

    session: _Secret
    contributors: tuple[_Digest, ...]


class ViewAnswer(Said):
    """A shop's signature of its whole view of the session."""

    signature: _Signature


class UnmaskRequest(Said):
    """The signatures of those who see it so."""

    session: _Secret
    signatures: dict[_Digest, _Signature]


class UnmaskAnswer(Said):
    """Shares of the seeds of those who contributed, and of the keys of those who dropped out."""

    seeds: dict[_Digest, _Secret]
    keys: dict[_Digest, _Secret]


def most_chars(members: int) -> int:
    """Return how long a message of a sum of so many shops is at most: thrice what any needs.

    Of rubbish each piece is an error to collect, some hundred times its size: 16 MB took 2.3 GB.
    """
    return 2048 * (members + 4)


def parse(kind: type[T], text: str) -> T:
    """Return what ``text`` says; see :func:`most_chars` for how long a stranger's may be.

    Raises
    ------
    SecureSumError
        If it is not of this kind.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise SecureSumError(f"a message is no {kind.__name__}") from error


@dataclass(frozen=True)
class Sealed:
    """What travels of two shares from one shop to another.

    Attributes
    ----------
    seed, key
        :func:`share_digest` of the share of the seed, and of that of the mask key. The server reads
        them: a share that is given later is theirs, or its giver has made it up.
    text
        Both shares, for the receiver alone.
    """

    seed: bytes
    key: bytes
    text: bytes

    @property
    def whole(self) -> bytes:
        """One after the other, as they travel."""
        return self.seed + self.key + self.text

    @classmethod
    def of(cls, whole: bytes) -> "Sealed":
        """Return the parts.

        Raises
        ------
        SecureSumError
            If it is too long or too short for two shares.
        """
        if len(whole) != 4 * SECRET_BYTES + SEALED_EXTRA_BYTES:
            raise SecureSumError("what is sealed is not two shares")
        return cls(
            whole[:SECRET_BYTES],
            whole[SECRET_BYTES : 2 * SECRET_BYTES],
            whole[2 * SECRET_BYTES :],
        )


def share_digest(session: bytes, sender: str, receiver: str, what: str, share: bytes) -> bytes:
    """Return what tells a share without showing it: of 256 bits that look drawn at random.

    Parameters
    ----------
    what
        ``seed`` or ``key``.
    """
    return digest("share", session, sender.encode(), receiver.encode(), what.encode(), share)


def commitment(session: bytes, shop: str, seed: bytes) -> bytes:
    """Return what a shop says beforehand of the seed of its own mask; 256 random bits hide it."""
    return digest("commitment", session, shop.encode(), seed)


def view(
    session: bytes,
    advertisements: Mapping[str, Advertisement],
    sharing: Collection[str],
    contributors: Collection[str],
) -> bytes:
    """Return the digest of all that a shop was shown of a session: what it signs."""
    return digest(
        "view",
        session,
        digest("keys", *(advertisements[s].covered(session) for s in sorted(advertisements))),
        digest("sharing", *(s.encode() for s in sorted(sharing))),
        digest("contributors", *(s.encode() for s in sorted(contributors))),
    )


def pair_label(first: str, second: str, shown: bytes = b"") -> bytes:
    """Return HKDF's info of the mask of two shops, the same for both if they were shown the same.

    Parameters
    ----------
    shown
        Digest of the rows that both were shown; see :mod:`common.secure_sum.shown`.
    """
    return b"pairwise mask\0" + "\0".join(sorted((first, second))).encode() + shown


def own_mask_key(session: bytes, shop: str, seed: bytes) -> bytes:
    """Return the cipher key of a shop's own mask."""
    return derive(seed, session, b"own mask\0" + shop.encode())


def state_digest(state: Arrays) -> str:
    """Return the SHA-256 of named arrays: names, types, shapes and bytes."""
    parts: list[bytes] = []
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        parts += [name.encode(), f"{array.dtype.str} {array.shape}".encode(), array.tobytes()]
    return digest("state", *parts).hex()


def check_vector(vector: np.ndarray, length: int) -> np.ndarray:
    """Return a masked vector that came over the wire as native uint32.

    Raises
    ------
    SecureSumError
        If it is anything else than ``length`` numbers of 32 bits.
    """
    if vector.dtype != WORD or vector.shape != (length,):
        raise SecureSumError(
            f"a masked vector is {vector.dtype} {vector.shape}, not uint32 ({length},)"
        )
    return vector
