from collections.abc import Callable

import numpy as np
import pytest

from common.errors import SecureSumError
from common.protocol import TrainingPlan
from common.secure_sum.encoding import coordinate_bound, from_words, noise_bound
from common.secure_sum.layout import Layout, honest_senders, whole_layout
from common.secure_sum.noise import share_std
from server.secure_sum.plausible import check_counts, check_spread

SHOPS = ("a", "b", "c", "d", "e")
PLAN = TrainingPlan(
    trust="federation",
    honest_shops=3,
    rounds=1,
    noise_multiplier=4.0,
    popularity_noise_multiplier=2.0,
)


def drawn(length: int, seed: int) -> np.ndarray:
    """Return what is left under a mask: words of all values."""
    stream = np.random.default_rng(seed)
    return from_words(stream.integers(0, 2**32, length, dtype=np.uint32))


def noise(length: int, seed: int) -> np.ndarray:
    std = share_std(PLAN, PLAN.popularity_noise_multiplier) * len(SHOPS) ** 0.5
    return np.rint(np.random.default_rng(seed).normal(0, std, length)).astype(np.int64)


@pytest.mark.parametrize("length", [60, 300, 40_000])
def test_what_is_left_under_a_mask_is_told_from_a_sum_of_any_size(length: int) -> None:
    layout = whole_layout(SHOPS, length)
    std = share_std(PLAN, PLAN.noise_multiplier)
    full = len(SHOPS) * coordinate_bound(len(SHOPS), length, std, PLAN.noise_steps)
    for seed in range(20):
        with pytest.raises(SecureSumError, match="spread over all"):
            check_spread(drawn(length, seed), layout, list(SHOPS))
        total = noise(length, seed)
        check_spread(total, layout, list(SHOPS))
        # Every fifth number as full as it can be, and all others under a half.
        total += np.where(np.arange(length) % 5 == 0, full, full * 2 // 5)
        check_spread(total, layout, list(SHOPS))


def test_rows_of_one_shop_are_enough_to_tell() -> None:
    """Shop e sends a tenth of the rows: among all numbers its rubbish would be lost."""
    sends = np.ones((len(SHOPS), 10), dtype=bool)
    sends[4, 1:] = False
    layout = Layout(SHOPS, np.full(10, 100), sends)
    total = noise(1000, 0)
    total[:100] = drawn(100, 1)
    check_spread(total, layout, ["a", "b", "c", "d"])
    with pytest.raises(SecureSumError, match="spread over all"):
        check_spread(total, layout, list(SHOPS))


@pytest.mark.parametrize("change", [lambda t: t[:3] - 2**20, lambda t: drawn(len(t), 1)])
def test_counts_below_any_noise_are_no_counts(change: Callable[[np.ndarray], np.ndarray]) -> None:
    sends = np.ones((len(SHOPS), 30), dtype=bool)
    sends[3:, 10:20] = False
    sends[:, 20:] = False
    layout = Layout(SHOPS, np.ones(30, np.int64), sends)
    for seed in range(50):
        total = noise(30, seed)
        # What does not travel is 0.
        total[20:] = 0
        check_counts(total, layout, PLAN)
    changed = change(total[10:20])
    total[10 : 10 + len(changed)] = changed
    with pytest.raises(SecureSumError, match="further below 0"):
        check_counts(total, layout, PLAN)


def test_counts_are_refused_from_one_below_what_all_numbers_noise_may_be() -> None:
    """The chance is of any number of the vector, however few have as many senders."""
    sends = np.ones((len(SHOPS), 30), dtype=bool)
    sends[3:, 10:20] = False
    layout = Layout(SHOPS, np.ones(30, np.int64), sends)
    for place in (0, 10):
        senders = int(sends[:, place].sum())
        honest = int(honest_senders(PLAN, len(SHOPS), senders))
        std = share_std(PLAN, PLAN.popularity_noise_multiplier, honest)
        total = np.zeros(30, np.int64)
        total[place] = -noise_bound(senders, 30, std)
        check_counts(total, layout, PLAN)
        total[place] -= 1
        with pytest.raises(SecureSumError, match="further below 0"):
            check_counts(total, layout, PLAN)
