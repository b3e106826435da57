"""Which shops take part: a public key for each, and the same told to SuperLink.

The folder of keys is what counts. A running SuperLink is told at once; :func:`reconcile` tells it
whatever it missed, when the services start.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.config import nearest
from common.disk import sync, write_whole
from common.errors import ConfigError, RunError
from common.secure_sum.members import fingerprint
from common.shop_names import file_stem
from server.operating.control import Control

logger = logging.getLogger(__name__)

_SUFFIX = ".pub"
#: Below the shops' folder: keys that SuperLink will never admit again.
_REMOVED = "removed"
#: Likewise: a file for each key that SuperLink was never told of. It may know any other.
_UNTOLD = "untold"
#: Beside the keys: a line for each name that was corrected.
_RENAMED = "renamed.jsonl"


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
    if b"\n" in data.strip():
        # The first would be enrolled alone, and whoever gave the file may mean another.
        raise ConfigError(f"{path} holds more than one line of a key: let the shop send its own")
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
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            # A file being written starts with a dot.
            if path.name.startswith("."):
                continue
            try:
                key = read_key(path)
            except ConfigError:
                if path.exists():
                    raise
                return self.all()  # It was removed, or renamed, at this very moment.
            found.append(Shop(unquote(path.name.removesuffix(_SUFFIX)), key))
        return sorted(found, key=lambda shop: shop.name)

    def enrol(self, name: str, key_file: Path) -> Shop:
        """Add a shop; the same shop with the same key again changes nothing.

        Raises
        ------
        ConfigError
            If the name or the key is another shop's, was removed, or is not valid.
        """
        path, key = self._path(name), read_key(key_file)
        with self.alone():
            return self._enrol(Shop(name, key), path, key_file)

    def _enrol(self, new: Shop, path: Path, key_file: Path) -> Shop:
        name = new.name
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
                    f"{key_file} is the key of shop {shop.name!r}: each shop has its own. If that "
                    "name is mistyped, `python -m server rename` corrects it"
                )
        if self._grave(new).exists():
            raise ConfigError(
                f"{key_file} is a key that was removed, and SuperLink never admits one again: "
                "let the shop make a new one"
            )
        untold = self._untold(new)
        untold.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(untold, b"")
        write_whole(path, _openssh(new.key))
        return new

    def rename(self, name: str, to: str) -> Shop:
        """Give a shop that was enrolled under a wrong name the right one, with the same key.

        Raises
        ------
        ConfigError
            If there is no such shop, the new name is taken or not valid, or SuperLink may know the
            key: it never takes one under a second name.
        """
        place = self._path(to)
        with self.alone():
            shop = self._named(name)
            if to == name:
                raise ConfigError(f"that shop's name is {name!r} already: nothing was changed")
            if place.exists():
                raise ConfigError(f"a shop is enrolled as {to!r} already: remove that one first")
            if not self._untold(shop).exists():
                raise ConfigError(
                    f"SuperLink was told of the key of {name!r}, and takes none under a second "
                    "name: `python -m server remove` it, and let the shop make a new one (`python "
                    "-m client key new SHOP.toml`)"
                )
            self._note({"from": name, "to": to, "key": shop.fingerprint})
            self._path(name).replace(place)
            sync(self.folder)
        return Shop(to, shop.key)

    def remove(self, name: str) -> Shop:
        """Take a shop off the list; its key is never admitted again.

        Raises
        ------
        ConfigError
            If there is no such shop.
        """
        with self.alone():
            shop = self._named(name)
            self._grave(shop).parent.mkdir(mode=0o700, exist_ok=True)
            self._path(name).replace(self._grave(shop))
            for folder in (self._grave(shop).parent, self.folder):
                sync(folder)
            self.told(shop)
        return shop

    def told(self, shop: Shop) -> None:
        """Note, before it is so, that SuperLink knows a key: it keeps its name from now on."""
        if (untold := self._untold(shop)).exists():
            untold.unlink()
            sync(untold.parent)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody else change the list, or tell SuperLink of it, meanwhile."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _named(self, name: str) -> Shop:
        shops = {shop.name: shop for shop in self.all()}
        if (shop := shops.get(name)) is None:
            known = nearest(name, list(shops)) if shops else "no shop is enrolled"
            raise ConfigError(f"no shop {name!r} is enrolled; {known}")
        return shop

    def _note(self, act: dict[str, str]) -> None:
        """Write an act down, on the disk before this returns."""
        line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **act}
        path = self.folder / _RENAMED
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        sync(path)
        sync(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{file_stem(name)}{_SUFFIX}"

    def _grave(self, shop: Shop) -> Path:
        return self.folder / _REMOVED / f"{shop.fingerprint}{_SUFFIX}"

    def _untold(self, shop: Shop) -> Path:
        return self.folder / _UNTOLD / shop.fingerprint


def reconcile(shops: Shops, control: Control) -> list[str]:
    """Have SuperLink admit the enrolled shops and nobody else.

    Returns
    -------
    list of str
        Names of enrolled shops that it does not admit: it knows their keys as removed ones.
    """
    with shops.alone():
        return _reconcile(shops, control)


def _reconcile(shops: Shops, control: Control) -> list[str]:
    wanted = {shop.pem: shop for shop in shops.all()}
    known = {node.public_key: node for node in control.nodes()}
    for key, node in known.items():
        if key not in wanted or wanted[key].name != node.name:
            control.unregister(node.node_id)
            logger.warning("shop=%r event=refused node=%d", node.name, node.node_id)
    not_admitted = []
    for key, shop in wanted.items():
        shops.told(shop)
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
