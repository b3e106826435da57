"""What shops say in one direction: no more than honest ones do, and than planned noise can.

Arrays in, arrays out. Bounds on rows let a shop stand at the bound of every row at once: next to
nothing in each, and a great deal in what is read over many of them, such as the sum of all counts.
Where the plan puts noise into every number, that is what gives bad shops away: noise has no
direction. Of ``K`` shops' ``n`` numbers of noise ``σ``, no direction holds more than
``σ (√K + √n)``, next to surely (Davidson & Szarek 2001, "Local operator theory, random matrices and
Banach spaces", theorem II.13). A direction in which what shops say beside their common profile
exceeds that is of few shops' making, bad ones or those with customers of their own taste. Nothing
is thrown out: in that direction each is cut to the largest that some honest shop says. Robust means
by way of the covariance's top direction are of Diakonikolas et al. 2017, "Being Robust (in High
Dimensions) Can Be Practical", where the covariance of honest samples is known; here it is the
plan's noise.
"""

import numpy as np


def cut_directions(values: np.ndarray, sends: np.ndarray | None, noise: float, bad: int) -> int:
    """Cut in place what shops say in directions that hold more than noise can.

    Shops that agree but for their size are not cut: each is held beside the common profile times
    its size. There are at most as many such directions as bad shops. Where shops have less in
    common than bad ones say together, it is these that the profile follows.

    Parameters
    ----------
    values
        (K, n) float64 numbers of each shop; 0 where it sends none.
    sends
        (K, n) bool: which numbers each shop sends; None: all.
    noise
        Standard deviation of the noise in each number.
    bad
        How many shops may be bad, fewer than ``K``.

    Returns
    -------
    int
        How many directions were cut.
    """
    count, width = values.shape
    for done in range(bad):
        beside, sizes = _beside_the_profile(values, sends)
        # Noise Z and the mean's share of it times the sizes: (I - a 1'/K) Z, by Chevet's bound.
        spread = float(np.mean(sizes**2))
        most = noise * (np.sqrt(spread * width) + np.sqrt(count - 2 + spread))
        squares, shops = np.linalg.eigh(beside @ beside.T)
        length = float(np.sqrt(max(squares[-1], 0.0)))
        if length <= most:
            return done
        direction = beside.T @ shops[:, -1] / length
        said = beside @ direction
        largest = np.partition(np.abs(said), count - 1 - bad)[count - 1 - bad]
        excess = said - np.clip(said, -largest, largest)
        for k in np.flatnonzero(excess):
            values[k] -= excess[k] * (direction if sends is None else direction * sends[k])
    return bad


def _beside_the_profile(
    values: np.ndarray, sends: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (K, n) what each shop says beside the mean, times the shop's size, and (K,) sizes.

    A size is what fits the mean to the shop. Without ``sends`` sizes are 1 on average.
    """
    every = np.ones((1, 1)) if sends is None else sends.astype(np.float64)
    shops = every.sum(axis=0) if sends is not None else len(values)
    mean = values.sum(axis=0) / np.maximum(shops, 1)
    sizes = values @ mean / np.maximum((every * mean**2).sum(axis=1), 1e-300)
    beside: np.ndarray = values - np.outer(sizes, mean)
    if sends is not None:
        beside *= sends
    return beside, sizes
