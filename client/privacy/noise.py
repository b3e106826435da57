"""Where noise and samples come from: the operating system, or a seed in simulations."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

# Pairs of normals drawn at a time: bounds the memory above the result to a few MB.
_CHUNK_PAIRS = 1 << 17
_MANTISSA = 2.0**-53


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


class SystemNoise:
    """Noise that nobody can replay: the keystream of AES-256-CTR under a key from the system.

    The key is drawn by ``os.urandom`` for each object and never leaves it. Uniforms have 53 bits;
    Box and Muller's transform turns them into float64 normals (tails to 8.5 σ).
    """

    name = "system"

    def __init__(self) -> None:
        self._key = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def normal(self, shape: int | Sequence[int], std: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        values = np.empty(_shape(shape))
        flat = values.reshape(-1)
        for start in range(0, flat.size, 2 * _CHUNK_PAIRS):
            part = flat[start : start + 2 * _CHUNK_PAIRS]
            pairs = (part.size + 1) // 2
            uniform = self._uniform(2 * pairs)
            # 1 - u lies in (0, 1]: its logarithm is finite.
            radius = np.sqrt(-2.0 * np.log(1.0 - uniform[:pairs])) * std
            angle = uniform[pairs:] * (2.0 * np.pi)
            part[:pairs] = radius * np.cos(angle)
            part[pairs:] = (radius * np.sin(angle))[: part.size - pairs]
        return values

    def poisson_sample(self, n: int, rate: float) -> np.ndarray:
        """See :class:`NoiseSource`."""
        sample: np.ndarray = self._uniform(n) < rate
        return sample

    def _uniform(self, n: int) -> np.ndarray:
        """Return ``n`` uniform float64 values in [0, 1)."""
        words = np.frombuffer(self._key.update(bytes(8 * n)), dtype=np.uint64)
        return (words >> np.uint64(11)) * _MANTISSA


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)
