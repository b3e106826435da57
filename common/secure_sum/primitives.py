"""The cryptography of a secure sum, each primitive as its standard says, from ``cryptography``.

Every key is derived for one purpose, one session and one (pair of) shop(s): labels and numbers go
into HKDF's ``info``, the session into its salt.
"""

import os

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import SecureSumError

#: Bytes of every secret, seed and derived key: 256 bits.
SECRET_BYTES = 32
#: Masks are added modulo 2^32.
WORD = np.dtype("<u4")

_NONCE_BYTES, _TAG_BYTES = 12, 16
#: By how many bytes a sealed text is longer.
SEALED_EXTRA_BYTES = _NONCE_BYTES + _TAG_BYTES
_BLOCK = 16
# Words of keystream made at a time: what is worked on stays near the processor.
_WORDS = 1 << 15
_ZEROS = memoryview(bytes(WORD.itemsize * _WORDS))


def fresh() -> bytes:
    """Return 256 bits from the operating system."""
    return os.urandom(SECRET_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key (RFC 7748), 32 bytes, of a secret of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret: bytes, public: bytes) -> bytes:
    """Return the X25519 shared secret, 32 bytes; never use it but through :func:`derive`.

    Raises
    ------
    SecureSumError
        If the other's key is a point of small order: anyone could know what comes of it.
    """
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise SecureSumError("a shop's X25519 key is not one to agree with") from error


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """Return a key of 32 bytes by HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), SECRET_BYTES, salt, info).derive(secret)


def add_keystream(total: np.ndarray, key: bytes, *, subtract: bool = False) -> None:
    """Add the keystream of AES-256-CTR (NIST SP 800-38A, section 6.5) to uint32 words in place.

    The counter starts at 0: a key is used for one vector only.

    Parameters
    ----------
    total
        (n,) uint32; additions wrap modulo 2^32. Words of the stream are little endian.
    """
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK))).encryptor()
    buffer = bytearray(WORD.itemsize * _WORDS + _BLOCK)
    words = np.frombuffer(buffer, WORD, _WORDS)
    for start in range(0, len(total), _WORDS):
        part = total[start : start + _WORDS]
        cipher.update_into(_ZEROS[: WORD.itemsize * len(part)], buffer)
        if subtract:
            part -= words[: len(part)]
        else:
            part += words[: len(part)]


def seal(key: bytes, text: bytes, bound: bytes) -> bytes:
    """Return ``text`` under AES-256-GCM (NIST SP 800-38D), its nonce first; ``bound`` is not sent.

    The key seals one text, and the nonce is drawn all the same.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, bound)


def unseal(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """Return what :func:`seal` was given.

    Raises
    ------
    SecureSumError
        If it is not what this key sealed, bound to the same.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
    except (InvalidTag, ValueError) as error:
        raise SecureSumError("a sealed message is not what its sender made for us") from error


def sign(key: ec.EllipticCurvePrivateKey, label: str, digest: bytes) -> bytes:
    """Return an ECDSA signature with SHA-384 (FIPS 186-5); ``label`` says what is signed for."""
    return key.sign(_labelled(label, digest), ec.ECDSA(hashes.SHA384()))


def is_signed(key: ec.EllipticCurvePublicKey, signature: bytes, label: str, digest: bytes) -> bool:
    """Return whether :func:`sign` made this signature with this key's secret."""
    try:
        key.verify(signature, _labelled(label, digest), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True


def digest(label: str, *parts: bytes) -> bytes:
    """Return the SHA-256 of a label and parts, each after its length: no two lists read alike."""
    found = hashes.Hash(hashes.SHA256())
    for part in (label.encode(), *parts):
        found.update(len(part).to_bytes(8, "big"))
        found.update(part)
    return found.finalize()


def _labelled(label: str, digest: bytes) -> bytes:
    # Flower signs its requests with the same key: no text of either can be taken for the other's.
    return b"fedtail secure sum\0" + label.encode() + b"\0" + digest
