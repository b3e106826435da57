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

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        sample: np.ndarray = self._generator.random(n) < rate
        return sample


class Keystream:
    """Random words: the keystream of AES-256 in counter mode (NIST SP 800-38A, section 6.5).

    Parameters
    ----------
    key
        32 bytes, used for nothing else.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK))).encryptor()
        # One buffer for good: the system takes longer to find fresh pages than AES to fill them.
        self._buffer = bytearray(8 * _WORDS + _BLOCK)
        self._words = np.frombuffer(self._buffer, dtype=np.uint64)

    def __call__(self, n: int) -> np.ndarray:
        """Return the next ``n`` words, at most 32,768; overwritten by the next call."""
        assert n <= _WORDS
        self._cipher.update_into(_ZEROS[: 8 * n], self._buffer)
        return self._words[:n]


class SystemNoise:
    """Noise that nobody can replay: an AES-256-CTR keystream under a key from the system.

    The key is drawn by ``os.urandom`` for each object and never leaves it. Normal values are
    float64 (see :mod:`client.privacy.normals`), uniforms have 53 bits. For one thread.
    """

    name = "system"

    def __init__(self) -> None:
        self._words = Keystream(os.urandom(32))
        self._normals = Normals(self._words)

    def normal(self, shape: int | Sequence[int], std: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        values = np.empty(_shape(shape))
        self._normals.fill(values.reshape(-1))
        if std != 1.0:
            values *= std
        return values

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        sample = np.empty(n, dtype=bool)
        for start in range(0, n, _WORDS):
            part = sample[start : start + _WORDS]
            np.less((self._words(len(part)) >> np.uint64(11)) * 2.0**-53, rate, out=part)
        return sample


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
