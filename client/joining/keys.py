"""A shop's key pair and its local secret: made once, kept to their owner.

The private key proves to the federation which shop this is. The secret keeps other programs on
this machine from posing as the shop's own executor.
"""

import os
import secrets
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from common.disk import sync
from common.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_OWNER_ONLY = 0o600
_READABLE_BY_OTHERS = 0o077
_SECRET_BYTES = 32
_ANOTHER_KEY = (
    "put it back from the backup, or make another with `python -m client key new SHOP.toml`, which "
    "the operator has to enrol"
)


def make_keys(private: Path) -> Path:
    """Write a new private key and, beside it, its public key; return the latter's path.

    Elliptic curve P-384 in OpenSSH's format: the one kind that Flower's SuperLink takes.

    Raises
    ------
    ConfigError
        If a file is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP384R1())
    write_new(
        private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), _OWNER_ONLY
    )
    return _write_public(private, key)


def complete_keys(private: Path) -> Path | None:
    """Write the public key beside a private one that lacks it; return its path if it did.

    Raises
    ------
    ConfigError
        If the private key is of no use, or the other cannot be written.
    """
    return None if public_path(private).exists() else _write_public(private, private_key(private))


def check_pair(private: Path) -> None:
    """Check both keys, and make the public one where there is none and it can be written.

    By one of another private key, which a shop gives its operator, nobody could be admitted.

    Raises
    ------
    ConfigError
        Saying what is wrong and what to do.
    """
    public, key = public_path(private), private_key(private)
    if not public.exists():
        with suppress(ConfigError):  # The keys may lie where nobody writes, and `run` needs none.
            complete_keys(private)
        return
    try:
        there = public.read_bytes().split()[:2]
    except OSError as error:
        raise ConfigError(f"cannot read {public}: {error.strerror}") from error
    if there != _public_words(key).split():
        raise ConfigError(
            f"{public} is not the public key of {private}: delete it, and say this again, which "
            "makes it anew; then give the operator that one"
        )


def _write_public(private: Path, key: "EllipticCurvePrivateKey") -> Path:
    write_new(public_path(private), _public_words(key) + b"\n", 0o644)
    return public_path(private)


def _public_words(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def renew_keys(private: Path, now: datetime | None = None) -> tuple[Path, Path | None]:
    """Write a new key pair in place of the one that is there, on the disk when this returns.

    The old pair stays beside it under a name with the time: whoever wants it back can have it.

    Returns
    -------
    tuple of Path
        The new public key, and where the old private key is now; None where there was none.

    Raises
    ------
    ConfigError
        If a file cannot be written; the old pair is then in its place.
    """
    now = datetime.now(UTC) if now is None else now
    public, aside = public_path(private), private.with_stem(f"{private.stem}-{now:%Y%m%dT%H%M%SZ}")
    kept = None
    try:
        # On the same disk as their place, and whole before anything is moved.
        with tempfile.TemporaryDirectory(prefix=".new-key-", dir=private.parent) as folder:
            fresh = Path(folder) / private.name
            make_keys(fresh)
            for old, name in ((private, aside), (public, public_path(aside))):
                if old.exists():
                    # A link is never made over a file.
                    os.link(old, name)
            kept = aside if private.exists() else None
            # Killed between the two, the public key is made again of the private one: check_pair.
            fresh.replace(private)
            public_path(fresh).replace(public)
            sync(private.parent)
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename2 or error.filename} is there already and stays as it is: try again"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot renew the key {private}: {error.strerror}") from error
    return public, kept


def make_secret(path: Path) -> None:
    """Write a new secret.

    Raises
    ------
    ConfigError
        If the file is there already, or cannot be written.
    """
    write_new(path, secrets.token_hex(_SECRET_BYTES).encode(), _OWNER_ONLY)


def private_key(path: Path) -> "EllipticCurvePrivateKey":
    """Return the shop's key, if Flower could use it and nobody else can read it.

    Raises
    ------
    ConfigError
        Saying what is wrong and what to do.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    if not path.exists():
        raise ConfigError(f"there is no private key {path}: {_ANOTHER_KEY}")
    data = read_own(path, "the shop's private key", _ANOTHER_KEY)
    try:
        key = load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{path} is not a private key in OpenSSH's format without a passphrase ({error}): "
            f"{_ANOTHER_KEY}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            f"{path} is a key of another kind: an elliptic curve key P-384 (nistp384) is needed; "
            "`python -m client key new SHOP.toml` makes one"
        )
    return key


def read_own(path: Path, what: str, mend: str) -> bytes:
    """Return a file that only its owner may read.

    Parameters
    ----------
    what, mend
        What it is, and what to do where it is empty, in words of errors.

    Raises
    ------
    ConfigError
        If it is missing, empty, or others can read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise ConfigError(f"cannot read {what}, {path}: {error.strerror}") from error
    if mode & _READABLE_BY_OTHERS:
        raise ConfigError(f"{what}, {path}, is open to others on this machine: chmod 600 {path}")
    if not data:
        raise ConfigError(f"{what}, {path}, is empty: {mend}")
    return data


def public_path(private: Path) -> Path:
    """Return where the public key of ``private`` lies."""
    return private.with_suffix(".pub")


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, whole or not at all, as ``mode`` says from the first on.

    Raises
    ------
    ConfigError
        If it is there, or cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A link is never made over a file.
        os.link(draft, path)
        sync(path.parent)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already and stays as it is") from error
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
