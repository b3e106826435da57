"""Secrets of 256 bits in shares, any ``threshold`` of which give them back (Shamir 1979).

PyCryptodome's sharing, over GF(2^128), takes secrets of 128 bits. A secret is therefore two blocks,
each with a polynomial of its own, drawn afresh: shares of the one say nothing of the other, so
``threshold - 1`` shares are consistent with each of the 2^256 secrets, equally. Nothing is
stretched from 128 bits.
"""

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

from common.errors import SecureSumError
from common.secure_sum.primitives import SECRET_BYTES

_BLOCK = 16


def split(secret: bytes, threshold: int, shares: int) -> list[bytes]:
    """Return ``shares`` shares of 32 bytes each; the first is that of place 0.

    Parameters
    ----------
    secret
        32 bytes.
    threshold
        How many give it back: from 1 to ``shares``.
    """
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= shares
    blocks = [
        Shamir.split(threshold, shares, secret[start : start + _BLOCK], ssss=False)
        for start in range(0, SECRET_BYTES, _BLOCK)
    ]
    return [b"".join(block[place][1] for block in blocks) for place in range(shares)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret that shares, by place, are of.

    Fewer shares, or wrong ones, would give another secret and not say so: check what comes of it.

    Raises
    ------
    SecureSumError
        If they are fewer than the threshold.
    """
    if len(shares) < threshold:
        raise SecureSumError(f"{len(shares)} shares of a secret that takes {threshold}")
    chosen = sorted(shares.items())[:threshold]
    return b"".join(
        Shamir.combine(
            [(place + 1, share[start : start + _BLOCK]) for place, share in chosen], ssss=False
        )
        for start in range(0, SECRET_BYTES, _BLOCK)
    )
