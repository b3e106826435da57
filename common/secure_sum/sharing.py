"""Secrets of 256 bits in shares, any ``threshold`` of which give them back (Shamir 1979).

PyCryptodome's sharing, over GF(2^128), takes secrets of 128 bits. A secret is therefore two blocks,
each with a polynomial of its own, drawn afresh: shares of the one say nothing of the other, so
``threshold - 1`` shares are consistent with each of the 2^256 secrets, equally. Nothing is
stretched from 128 bits.

The library makes the shares, which is all that secrecy hangs on. Putting them together is
interpolation at 0 and keeps no secret; the library finds the same weights anew for every secret,
half a minute for a hundred shops, so :func:`combine` finds them once for each set of givers. A test
holds its answers against the library's, and whoever combines checks what comes of it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from Crypto.Protocol.SecretSharing import Shamir

from common.errors import SecureSumError
from common.secure_sum.primitives import SECRET_BYTES

_BLOCK = 16
_BITS = 8 * _BLOCK
# The library's field: polynomials over GF(2) modulo x^128 + x^7 + x^2 + x + 1.
_MODULUS = (1 << _BITS) | 0x87


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
    places = tuple(sorted(shares)[:threshold])
    weights = _weights(places)
    secret = b""
    for start in range(0, SECRET_BYTES, _BLOCK):
        total = 0
        for place, powers in zip(places, weights, strict=True):
            value = int.from_bytes(shares[place][start : start + _BLOCK], "big")
            while value:
                low = value & -value
                total ^= powers[low.bit_length() - 1]
                value ^= low
        secret += total.to_bytes(_BLOCK, "big")
    return secret


@lru_cache(maxsize=16)
def _weights(places: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return Lagrange's weight of each place at 0, times 1, x, x^2 and so on up to x^127.

    The share of place ``p`` is the polynomial's value at ``p + 1``. The weight of ``a`` is the
    product of ``b / (a + b)`` over all others; all inverses come of one (Montgomery 1987).
    """
    points = [place + 1 for place in places]
    whole = _product(points)
    below = [_multiply(a, _product([a ^ b for b in points if b != a])) for a in points]
    before = [1]
    for value in below:
        before.append(_multiply(before[-1], value))
    rest = _inverse(before[-1])
    found: list[tuple[int, ...]] = []
    for place in reversed(range(len(points))):
        weight = _multiply(whole, _multiply(rest, before[place]))
        rest = _multiply(rest, below[place])
        powers = [weight]
        for _ in range(_BITS - 1):
            powers.append(_reduced(powers[-1] << 1))
        found.append(tuple(powers))
    return tuple(reversed(found))


def _product(values: Sequence[int]) -> int:
    product = 1
    for value in values:
        product = _multiply(product, value)
    return product


def _multiply(left: int, right: int) -> int:
    product = 0
    while right:
        if right & 1:
            product ^= left
        left = _reduced(left << 1)
        right >>= 1
    return product


def _reduced(value: int) -> int:
    return value ^ _MODULUS if value >> _BITS else value


def _inverse(value: int) -> int:
    """Return the inverse: ``value`` to the power 2^128 - 2 (Fermat)."""
    inverse = 1
    for _ in range(_BITS - 1):
        value = _multiply(value, value)
        inverse = _multiply(inverse, value)
    return inverse
