"""Which shops take part: a public key for each, and the same told to SuperLink.

The folder of keys is what counts. A running SuperLink is told at once; :func:`reconcile` tells it
whatever it missed, when the services start.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.config import nearest
from common.disk import write_whole
from common.errors import ConfigError, RunError
from server.operating.control import Control

logger = logging.getLogger(__name__)

_SUFFIX = ".pub"
#: Below the shops' folder: keys that SuperLink will never admit again.
_REMOVED = "removed"
_LONGEST_FILE_NAME = 250


@dataclass(frozen=True)
class Shop:
    """An enrolled shop; ``name`` is the ``merchant_id`` of its data."""

    name: str
    key: ec.EllipticCurvePublicKey

    @property
    def pem(self) -> bytes:
        """The key as Flower keeps it."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, in hexadecimal: both sides can read it out to each other."""
        return fingerprint(self.key)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a key's DER form, in hexadecimal."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()


def read_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read an EC P-384 public key in OpenSSH's form.

    Raises
    ------
    ConfigError
        If it is anything else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if b"PRIVATE KEY" in data:
        raise ConfigError(
            f"{path} holds a private key: it must never leave its shop. Let the shop make a new "
            "pair, and enrol the .pub"
        )
    try:
        key = serialization.load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise ConfigError(
            f"{path} is no public key in OpenSSH's form: `python -m client init` makes "
            f"keys/node.pub at the shop ({error})"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
        raise ConfigError(
            f"{path} is a key of another kind ({kind}): nodes need EC P-384, which "
            "`python -m client init` makes at the shop"
        )
    return key


class Shops:
    """The enrolled shops of a federation's folder.

    Parameters
    ----------
    folder
        Holds ``<percent-encoded name>.pub`` for each shop.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self) -> list[Shop]:
        """Return all shops by name."""
        found = [
            Shop(unquote(path.name.removesuffix(_SUFFIX)), read_key(path))
            for path in self.folder.glob(f"*{_SUFFIX}")
            # A file being written starts with a dot.
            if not path.name.startswith(".")
        ]
        return sorted(found, key=lambda shop: shop.name)

    def enrol(self, name: str, key_file: Path) -> Shop:
        """Add a shop; the same shop with the same key again changes nothing.

        Raises
        ------
        ConfigError
            If the name or the key is another shop's, was removed, or is not valid.
        """
        path, key = self._path(name), read_key(key_file)
        new = Shop(name, key)
        for shop in self.all():
            same_key = shop.fingerprint == new.fingerprint
            if shop.name == name and same_key:
                return shop
            if shop.name == name:
                raise ConfigError(
                    f"shop {name!r} is enrolled with another key ({shop.fingerprint[:16]}...): "
                    "remove it first if the new key is really the shop's"
                )
            if same_key:
                raise ConfigError(
                    f"{key_file} is the key of shop {shop.name!r}: each shop has its own"
                )
        if self._grave(new).exists():
            raise ConfigError(
                f"{key_file} is a key that was removed, and SuperLink never admits one again: "
                "let the shop make a new one"
            )
        write_whole(path, _openssh(key))
        return new

    def remove(self, name: str) -> Shop:
        """Take a shop off the list; its key is never admitted again.

        Raises
        ------
        ConfigError
            If there is no such shop.
        """
        shops = {shop.name: shop for shop in self.all()}
        if (shop := shops.get(name)) is None:
            known = nearest(name, list(shops)) if shops else "no shop is enrolled"
            raise ConfigError(f"no shop {name!r} is enrolled; {known}")
        self._grave(shop).parent.mkdir(mode=0o700, exist_ok=True)
        self._path(name).replace(self._grave(shop))
        return shop

    def _path(self, name: str) -> Path:
        if not name.strip() or name != name.strip() or not name.isprintable():
            raise ConfigError(
                f"{name!r} cannot be a shop's name: give the merchant_id that its data bears"
            )
        file_name = quote(name, safe=" ").replace(".", "%2E") + _SUFFIX
        if len(file_name) > _LONGEST_FILE_NAME:
            raise ConfigError(f"{name[:40]!r}... is too long for a shop's name")
        return self.folder / file_name

    def _grave(self, shop: Shop) -> Path:
        return self.folder / _REMOVED / f"{shop.fingerprint}{_SUFFIX}"


def reconcile(shops: Shops, control: Control) -> list[str]:
    """Have SuperLink admit the enrolled shops and nobody else.

    Returns
    -------
    list of str
        Names of enrolled shops that it does not admit: it knows their keys as removed ones.
    """
    wanted = {shop.pem: shop for shop in shops.all()}
    known = {node.public_key: node for node in control.nodes()}
    for key, node in known.items():
        if key not in wanted or wanted[key].name != node.name:
            control.unregister(node.node_id)
            logger.warning("shop=%r event=refused node=%d", node.name, node.node_id)
    not_admitted = []
    for key, shop in wanted.items():
        if key in known and known[key].name == shop.name:
            continue
        try:
            node_id = control.register(shop.pem, shop.name)
            logger.info("shop=%r event=admitted node=%d", shop.name, node_id)
        except RunError as error:
            # One shop's key must not keep the others out.
            not_admitted.append(shop.name)
            logger.error(
                "shop=%r event=not_admitted do='remove it and enrol a new key' reason=%s",
                shop.name,
                error,
            )
    return not_admitted


def _openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    return (
        key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"
    )
