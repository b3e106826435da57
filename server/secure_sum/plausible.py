"""Whether an unmasked sum can be one: what is spread over all of 32 bits is the rest of a mask.

A shop that sends an old vector again, or one under other masks than it agreed on, adds words that
look drawn at random to every number it sends, and nothing tells its vector from a good one before
the sum is there. A sum with such words in it would be taken for the model. It is refused here: the
round keeps the old model. Whoever knows this and adds something shorter is not found: no bound on
a sum is one on a shop (``docs/poison.md``).
"""

import numpy as np

from common.errors import SecureSumError
from common.protocol import TrainingPlan
from common.secure_sum.encoding import noise_bound
from common.secure_sum.layout import Layout, honest_senders
from common.secure_sum.noise import share_std

# Of numbers drawn from all of 32 bits half are beyond this. Clipped sums come near it where a
# shop's box is half full, which takes thousands of customers who all move the same number one way.
_HALF = 1 << 30
# Of fewer numbers too few may be beyond it by chance.
_LEAST_NUMBERS = 32


def check_spread(total: np.ndarray, layout: Layout, contributors: list[str]) -> None:
    """Refuse a sum of which a contributor's numbers are spread over all of 32 bits.

    Parameters
    ----------
    total
        (n,) int64, of the whole vector.

    Raises
    ------
    SecureSumError
        If more than a quarter of the numbers that one of them sends are beyond 2^30. No more are
        of 32 random ones, the fewest that are looked at, with a chance of .4%, of 64 with 4e-5.
    """
    large = np.abs(total) > _HALF
    looked: set[bytes] = set()
    for shop in contributors:
        where = layout.where(shop)
        # Shops of the same rows are one case: without a stock table all are.
        key = b"" if isinstance(where, slice) else np.packbits(where).tobytes()
        if key in looked:
            continue
        looked.add(key)
        share = large[where]
        if len(share) >= _LEAST_NUMBERS and np.count_nonzero(share) > len(share) / 4:
            raise SecureSumError(
                "the sum is spread over all of 32 bits: a shop's vector was not under the masks "
                "that it had agreed on, as one of another round is not (or the shops' own sums are "
                "too large for 32 bits: then take fewer noise_steps)"
            )


def check_counts(total: np.ndarray, layout: Layout, plan: TrainingPlan) -> None:
    """Refuse counts that are further below 0 than their noise can be.

    Parameters
    ----------
    total
        (n,) int64, of the popularity release: nobody bought a product less than never.

    Raises
    ------
    SecureSumError
        If a number is: by chance, with 2^-40.
    """
    senders = np.repeat(layout.senders, layout.widths)
    for count in np.unique(senders[senders > 0]).tolist():
        honest = int(honest_senders(plan, len(layout.members), count))
        std = share_std(plan, plan.popularity_noise_multiplier, honest)
        if total[senders == count].min() < -noise_bound(count, layout.length, std):
            raise SecureSumError(
                "the sum has counts that are further below 0 than any noise: a shop's vector was "
                "not under the masks that it had agreed on, or holds what no customers bought"
            )
