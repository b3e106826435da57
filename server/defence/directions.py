"""What shops say in one direction: no more than honest ones do, where it is more than it may be.

Arrays in, arrays out. Bounds on rows let a shop stand at the bound of every row at once: next to
nothing in each, and a great deal in what is read over many of them, such as the sum of all counts.
Where the plan puts noise into every number, that is what gives bad shops away: noise has no
direction. Of ``K`` shops' ``n`` numbers of noise ``σ``, no direction holds more than
``σ (√K + √n)``, next to surely (Davidson & Szarek 2001, "Local operator theory, random matrices and
Banach spaces", theorem II.13). Where there is none, shops that have nothing to do with each other
stand each in a direction of its own, which holds what the longest of them says: one that holds
several times as much energy is several shops' common work. A direction in which what shops say
beside their common profile exceeds that is of few shops' making, bad ones or those with customers
of their own taste. Nothing is thrown out: in that direction each is cut to the largest that some
honest shop says. Robust means by way of the covariance's top direction are of Diakonikolas et al.
2017, "Being Robust (in High Dimensions) Can Be Practical", where the covariance of honest samples
is known; here it is the plan's noise, or what one shop says.
"""

import numpy as np

from server.defence.blocks import blocks

# Without noise: how many times the energy of the longest shop one direction may hold. Two shops
# that sell what no others do hold twice as much in one, three nearly three times.
_SHOPS = 2.5


def cut_directions(values: np.ndarray, sends: np.ndarray | None, noise: float, bad: int) -> int:
    """Cut in place what shops say in directions that hold more than they may.

    Shops that agree but for their size are not cut: each is held beside the common profile times
    its size. There are at most as many such directions as bad shops. Of several, the one in which
    most is cut comes first: where honest shops are of two kinds, the direction between them is
    long, and nobody sticks out in it. Where shops have less in common than bad ones say together,
    it is these that the profile follows.

    Parameters
    ----------
    values
        (K, n) numbers of each shop; 0 where it sends none.
    sends
        (K, n) bool: which numbers each shop sends; None: all.
    noise
        Standard deviation of the noise in each number; 0: there is none, and no direction holds
        more than two and a half times the energy of what the longest shop says beside the profile.
    bad
        How many shops may be bad, fewer than ``K``.

    Returns
    -------
    int
        How many directions were cut.
    """
    count, width = values.shape
    for done in range(bad):
        mean, sizes = _profile(values, sends)
        gram = np.zeros((count, count))
        for part in blocks(width, count):
            beside = _beside(values, sends, mean, sizes, part)
            gram += beside @ beside.T
        if noise > 0:
            # Noise Z and the mean's share of it times the sizes: (I - a 1'/K) Z, Chevet's bound.
            spread = float(np.mean(sizes**2))
            most = noise * (np.sqrt(spread * width) + np.sqrt(count - 2 + spread))
        else:
            most = float(np.sqrt(_SHOPS * gram.diagonal().max()))
        squares, shops = np.linalg.eigh(gram)
        lengths = np.sqrt(np.maximum(squares, 0.0))
        # What each shop says in each direction, (K, K), and what of it is above honest shops'.
        said = shops * lengths
        largest = np.partition(np.abs(said), count - 1 - bad, axis=0)[count - 1 - bad]
        excess = np.where(lengths > most, said - np.clip(said, -largest, largest), 0.0)
        worst = int(np.argmax(np.square(excess).sum(axis=0)))
        above = excess[:, worst]
        if not above.any():
            return done
        for part in blocks(width, count):
            beside = _beside(values, sends, mean, sizes, part)
            direction = beside.T @ shops[:, worst] / lengths[worst]
            for k in np.flatnonzero(above):
                sent = direction if sends is None else direction * sends[k, part]
                values[k, part] -= above[k] * sent
    return bad


def _profile(values: np.ndarray, sends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) the mean of what shops say, and (K,) the size of each that fits it to the shop.

    Without ``sends`` sizes are 1 on average.
    """
    count, width = values.shape
    mean = np.empty(width)
    fits, squares = np.zeros(count), np.zeros(count)
    for part in blocks(width, count):
        block = values[:, part].astype(np.float64)
        every = np.ones((1, 1)) if sends is None else sends[:, part].astype(np.float64)
        shops = count if sends is None else np.maximum(every.sum(axis=0), 1)
        mean[part] = block.sum(axis=0) / shops
        fits += block @ mean[part]
        squares += every @ mean[part] ** 2 if sends is not None else mean[part] @ mean[part]
    return mean, fits / np.maximum(squares, 1e-300)


def _beside(
    values: np.ndarray,
    sends: np.ndarray | None,
    mean: np.ndarray,
    sizes: np.ndarray,
    part: slice,
) -> np.ndarray:
    """Return (K, b) float64, what each shop says in some numbers beside the mean times its size."""
    beside: np.ndarray = values[:, part] - np.outer(sizes, mean[part])
    if sends is not None:
        beside *= sends[:, part]
    return beside
