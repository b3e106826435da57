"""Noise of whole numbers: the discrete Gaussian, exact from the operating system's generator.

OpenDP samples it in exact rational arithmetic (Canonne, Kamath & Steinke 2020, arXiv 2004.00010,
algorithm 3): no floating point decides a bit of it, so nothing can be read off its lowest bits.
Where a shop's own settings ask for replayable noise, as simulations do, it is a rounded Gaussian:
at the least standard deviation that a plan may have (:data:`common.secure_sum.noise.LEAST_SHARE`)
its probabilities differ from the discrete Gaussian's by parts in a thousand, at those of real plans
by parts in millions; it protects nobody, as seeded noise never does.
"""

import numpy as np

from client.privacy.noise import NoiseSource

# Values passed to and from the library at a time, as Python's numbers.
_PART = 1 << 16


def discrete_gaussian(noise: NoiseSource, count: int, std: float) -> np.ndarray:
    """Return ``count`` independent draws of N_Z(0, std²), int64."""
    if noise.name != "system":
        rounded: np.ndarray = np.rint(noise.normal(count, std)).astype(np.int64)
        return rounded
    import opendp.measurements as measurements
    from opendp.domains import atom_domain, vector_domain
    from opendp.metrics import l2_distance
    from opendp.mod import enable_features

    # What OpenDP calls contributed are its measurements, this one with a proof among them.
    enable_features("contrib")
    sampler = measurements.make_gaussian(
        vector_domain(atom_domain(T="i64")), l2_distance(T="f64"), scale=std
    )
    values = np.empty(count, np.int64)
    for start in range(0, count, _PART):
        part = values[start : start + _PART]
        part[:] = sampler([0] * len(part))
    return values
