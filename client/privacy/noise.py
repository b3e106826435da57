"""Where noise and samples come from: the operating system, or a seed in simulations."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from client.privacy.normals import Normals

# Words of keystream made at a time.
_WORDS = 1 << 15
_ZEROS = memoryview(bytes(8 * _WORDS))
# AES' block may be asked for once more than what is written.
_BLOCK = 16
# Words of one nonce, half of what its 32-bit counter of blocks has.
_STREAM = 1 << 32


class NoiseSource(Protocol):
    """Gaussian noise and Poisson samples.

    Attributes
    ----------
    name
        ``system`` or ``seeded``, as the ledger records it.
    """

    @property
    def name(self) -> str:
        """Return the name that the ledger records."""

    def normal(self, shape: int | Sequence[int], std: float) -> np.ndarray:
        """Return independent N(0, std²) values of the given shape, float64."""

    def fill(self, values: np.ndarray) -> None:
        """Fill a contiguous float64 array with independent N(0, 1) values."""

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        """Return a mask ``(n,)`` that holds each unit with chance ``rate``, independently."""


class SeededNoise:
    """Replayable noise for simulations: whoever knows the seed can take it off again."""

    name = "seeded"

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def normal(self, shape: int | Sequence[int], std: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        values = self._generator.standard_normal(_shape(shape))
        values *= std
        return values

    def fill(self, values: np.ndarray) -> None:
        """See :class:`NoiseSource`."""
        self._generator.standard_normal(out=values)

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        sample: np.ndarray = self._generator.random(n) < rate
        return sample


class Keystream:
    """Random words: the keystream of AES-256 in counter mode, as GCM runs it.

    GCM encrypts by counter mode (NIST SP 800-38D, section 7.1): what it makes of zeros is AES of
    the nonce, 96 bits, and a counter of blocks, 32 bits from 2. Its tag is not used; it is asked
    because where a processor has wide AES instructions, OpenSSL uses them for GCM alone: half the
    time of plain counter mode.

    Parameters
    ----------
    key
        32 bytes, used for nothing else.
    """

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES256(key)
        self._nonce = self._left = 0
        self._buffer, self._words = np.empty(0, np.uint8), np.empty(0, np.uint64)

    def __call__(self, n: int) -> np.ndarray:
        """Return the next ``n`` words, at most 32,768; overwritten by the next call."""
        assert n <= _WORDS
        if not len(self._buffer):
            # One for all calls: the system takes longer to find fresh pages than AES to fill them.
            self._buffer = np.empty(8 * _WORDS + _BLOCK, np.uint8)
            self._words = self._buffer.view(np.uint64)
        if n > self._left:
            # No block is encrypted twice: each nonce is used once, and left before its end.
            mode = modes.GCM(self._nonce.to_bytes(12, "big"))
            self._cipher = Cipher(self._key, mode).encryptor()
            self._nonce, self._left = self._nonce + 1, _STREAM
        self._left -= n
        self._cipher.update_into(_ZEROS[: 8 * n], self._buffer.data)
        return self._words[:n]

    def rest(self) -> None:
        """Give the room for words back until it is needed again."""
        self._buffer, self._words = np.empty(0, np.uint8), np.empty(0, np.uint64)


class SystemNoise:
    """Noise that nobody can replay: an AES-256-CTR keystream under a key from the system.

    The key is drawn by ``os.urandom`` for each object and never leaves it. Normal values are
    float64 (see :mod:`client.privacy.normals`), uniforms have 53 bits. For one thread.

    Attributes
    ----------
    normals
        What makes normal values of the keystream.
    """

    name = "system"

    def __init__(self) -> None:
        self._words = Keystream(os.urandom(32))
        self.normals = Normals(self._words)

    def normal(self, shape: int | Sequence[int], std: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        values = np.empty(_shape(shape))
        self.fill(values)
        if std != 1.0:
            values *= std
        return values

    def fill(self, values: np.ndarray) -> None:
        """See :class:`NoiseSource`."""
        self.normals.fill(values.reshape(-1))

    def rest(self) -> None:
        """Give back memory that is of use only while noise is drawn."""
        self._words.rest()

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        sample = np.empty(n, dtype=bool)
        for start in range(0, n, _WORDS):
            part = sample[start : start + _WORDS]
            words = self._words(len(part)) >> np.uint64(11)
            np.less(words.view(np.int64) * 2.0**-53, rate, out=part)
        return sample


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
