"""Clipped integers and their noise as numbers modulo 2^32: how large they may be, and back again.

A shop's own sum is held to a box, [-bound, bound] in each coordinate, *before* its noise is added.
Holding to a box moves no two points further apart, so the sensitivity is what it was; and the bound
is a public constant, so what a shop sends has no size that tells of its customers. With ``n``
shops the clipped part of the sum is within ``n bound``, always. Each of the at most ``n`` noise
shares is a discrete Gaussian of parameter σ₁, which is subgaussian with that parameter (Canonne,
Kamath & Steinke 2020, arXiv 2004.00010), and so is their sum with σ₁ √n. Over ``d``
coordinates the chance that any noise exceeds ``a`` is at most ``2 d exp(-a² / (2 n σ₁²))``: it is
2^-40 at ``a = σ₁ √(2 n (ln 2d + 40 ln 2))``. The bound is what is left: with
``n bound + a <= 2^31 - 1`` the sum does not wrap but with chance 2^-40. (Were it to wrap, the model
would suffer, not privacy: taking a remainder looks at nothing but what is released.)
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from common.errors import ConfigError

_LARGEST = 2**31 - 1
#: The chance that any coordinate of a sum wraps is at most 2 to the minus this.
WRAP_BITS = 40


def coordinate_bound(shops: int, length: int, share_std: float, steps: int) -> int:
    """Return the largest number that a shop may have in a coordinate, without its noise.

    Parameters
    ----------
    shops
        Members of the roster that send the coordinate: more can't contribute.
    length
        Coordinates of the whole vector.
    share_std
        σ₁ of one shop's noise, in integer steps.
    steps
        A unit's largest norm, in integer steps: what a coordinate must hold at least.

    Raises
    ------
    ConfigError
        If not even one unit's contribution fits.
    """
    bound = math.floor((_LARGEST - noise_bound(shops, length, share_std)) / shops)
    if bound < steps:
        raise ConfigError(
            f"{shops} shops' sums of {steps} steps with noise of {share_std:.4g} steps each do not "
            "fit 32 bits: take fewer steps"
        )
    return bound


def noise_bound(shops: int, length: int, share_std: float) -> int:
    """Return what no noise of a sum exceeds in any of its coordinates, but with chance 2^-40.

    Parameters as of :func:`coordinate_bound`.
    """
    return math.ceil(
        share_std * math.sqrt(2 * shops * (math.log(2 * length) + WRAP_BITS * math.log(2)))
    )


def vector_length(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many numbers arrays of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes.values())


def as_vector(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> np.ndarray:
    """Return arrays one after the other, in the order of ``names``, as (n,)."""
    return np.concatenate([arrays[name].ravel() for name in names])


def as_arrays(vector: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return what :func:`as_vector` put into (n,), by the shapes' order."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = np.split(vector, ends[:-1])
    pairs = zip(shapes.items(), parts, strict=True)
    return {name: part.reshape(shape) for (name, shape), part in pairs}


def to_words(clipped: np.ndarray, noise: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Return a shop's vector (n,) uint32: (n,) int64 sums held to the bound, then the noise.

    The bound may be another for each number, as rows have other numbers of senders.
    """
    held: np.ndarray = np.clip(clipped, -bound, bound) + noise
    return (held & 0xFFFFFFFF).astype(np.uint32)


def from_words(total: np.ndarray) -> np.ndarray:
    """Return the sum (n,) int64 that (n,) uint32 stand for, from -2^31 to 2^31 - 1."""
    return total.view(np.int32).astype(np.int64)
