"""Who may take part in a secure sum: the shops' enrolled keys, in a file that every shop holds.

The server cannot put itself, or shops that it invented, in the place of a shop whose key stands
here: every message that matters is signed, and shops check signatures against their own copy. All
copies are the same file: people compare its digest over a channel that is not the server's.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, unquote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from common.errors import ConfigError, SecureSumError
from common.protocol import shop_key
from common.secure_sum.primitives import digest

_CURVE = "secp384r1"


@dataclass(frozen=True)
class Roster:
    """The members of a federation, in the order of their shops' public names.

    Attributes
    ----------
    keys
        Public name of a shop (:func:`common.protocol.shop_key`) -> its EC P-384 key.
    """

    keys: dict[str, ec.EllipticCurvePublicKey]

    def __post_init__(self) -> None:
        if len({_bytes(key) for key in self.keys.values()}) < len(self.keys):
            raise ConfigError("two shops of the roster have the same key")

    @classmethod
    def of(cls, shops: Iterable[tuple[str, ec.EllipticCurvePublicKey]]) -> "Roster":
        """Return the roster of (merchant_id, key)."""
        return cls(dict(sorted((shop_key(name), key) for name, key in shops)))

    @cached_property
    def places(self) -> dict[str, int]:
        """Public name -> place, from 0."""
        return {shop: place for place, shop in enumerate(self.keys)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all names and keys, 64 hex digits: what shops compare."""
        parts = [part for s, key in self.keys.items() for part in (s.encode(), _bytes(key))]
        return digest("roster", *parts).hex()

    def place(self, shop: str) -> int:
        """Return a shop's place.

        Raises
        ------
        SecureSumError
            If it is no member.
        """
        if (place := self.places.get(shop)) is None:
            raise SecureSumError(f"{shop[:12]}... is no member of this federation's roster")
        return place


def threshold(members: int, honest: int, colluding: int) -> int:
    """Return how many shops must still be there for a sum to be unmasked.

    At least ``honest + colluding``, so that however many of the survivors collude with the observer
    the plan's number of honest noise shares is in the sum. And more than half of the members and
    the colluding together: of two views of who survived, each of which so many shops sign, honest
    shops sign one alone, the colluding both, and there are not enough (Bonawitz et al.
    2017).

    Raises
    ------
    ConfigError
        If there are not so many members.
    """
    needed = max(honest + colluding, (members + colluding) // 2 + 1)
    if honest < 1 or colluding < 0 or needed > members:
        raise ConfigError(
            f"a sum of {honest} honest survivors beside {colluding} that collude takes {needed} "
            f"shops; the roster holds {members}"
        )
    return needed


def read_roster(path: Path) -> Roster:
    """Read a roster; see :func:`read_members`."""
    return Roster.of(read_members(path).items())


def read_members(path: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """Read a roster: a line a shop, its key in OpenSSH's form and its percent-encoded name.

    Returns
    -------
    dict
        merchant_id -> key, as the file has them.

    Raises
    ------
    ConfigError
        Naming the first line that is wrong, or that repeats a name or a key.
    """
    try:
        return parse_members(path.read_bytes(), path)
    except OSError as error:
        raise ConfigError(f"cannot read the roster {path}: {error.strerror}") from error


def parse_members(content: bytes, path: Path) -> dict[str, ec.EllipticCurvePublicKey]:
    """Return what a roster holds; see :func:`read_members`. ``path`` is for what errors say."""
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no roster: it is not plain text") from error
    shops: dict[str, ec.EllipticCurvePublicKey] = {}
    holders: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            kind, text, quoted = line.split()
            key = load_ssh_public_key(f"{kind} {text}".encode())
        except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
            raise ConfigError(f"{path}, line {number}: no key and name of a shop") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != _CURVE:
            raise ConfigError(f"{path}, line {number}: not an EC P-384 key, as shops have")
        name = unquote(quoted)
        if name in shops:
            raise ConfigError(f"{path}, line {number}: the shop {name!r} a second time")
        if (other := holders.setdefault(_bytes(key), name)) != name:
            raise ConfigError(
                f"{path}, line {number}: the shop {name!r} has the same key as {other!r}, and each "
                "shop has its own"
            )
        shops[name] = key
    return shops


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a key's DER form, 64 hex digits: what people read to each other."""
    return hashlib.sha256(_bytes(key)).hexdigest()


def roster_text(shops: Iterable[tuple[str, ec.EllipticCurvePublicKey]]) -> str:
    """Return the roster file of (merchant_id, key)."""
    lines = [
        b" ".join((key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), _quoted(name)))
        for name, key in sorted(shops, key=lambda shop: shop[0])
    ]
    return b"\n".join([*lines, b""]).decode()


def _quoted(name: str) -> bytes:
    return quote(name, safe="").encode()


def _bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
