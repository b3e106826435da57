"""Splits in time lose nothing and never let training see what comes later."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.schema import ShopEvents
from common.splitting import doubt_of_times, split_in_time


def shop(counts: list[int], seed: int = 0) -> ShopEvents:
    draw = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    times = draw.integers(0, 1000, len(users))
    return ShopEvents(
        merchant_id="m",
        user_ids=np.array([f"u{k:03d}" for k in range(len(counts))], dtype=object),
        users=users,
        items=draw.integers(0, 9, len(users)).astype(np.int32),
        timestamps=times[np.lexsort((times, users))],
        weights=np.ones(len(users), dtype=np.float32),
        sessions=np.arange(len(users), dtype=np.int32),
    )


def test_the_default_cut_is_three_quarters_of_the_span() -> None:
    split = split_in_time(1000, 2000)
    assert (split.validation_from, split.train_until) == (1600, 1750)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 1000), st.floats(0.01, 0.99))
def test_the_periods_follow_each_other(counts: list[int], until: int, share: float) -> None:
    events = shop(counts)
    split = split_in_time(0, 1000, until, validation_share=share)
    assert split.validation_from < split.train_until == until
    fit, validation = split.fit(events), split.validation(events)
    train, test = split.train(events), split.test(events)
    assert len(fit) + len(validation) == len(train)
    assert len(train) + len(test) == len(events)
    for earlier, later in ((fit, validation), (train, test)):
        if len(earlier) and len(later):
            assert earlier.timestamps.max() < later.timestamps.min()
    assert len({tuple(part.user_ids) for part in (fit, validation, train, test)}) == 1


def test_a_moment_belongs_to_the_period_that_it_begins() -> None:
    """What is tested on was in what weights were chosen on: a second is enough to cheat by."""
    split = split_in_time(0, 1000, 500)
    assert split.validation_from == 400
    times = np.array([0, 399, 400, 499, 500, 1000])
    events = replace(shop([6]), timestamps=times)
    for part, expected in (
        (split.fit, [0, 399]),
        (split.validation, [400, 499]),
        (split.train, [0, 399, 400, 499]),
        (split.test, [500, 1000]),
    ):
        assert part(events).timestamps.tolist() == expected


def test_one_early_time_among_good_ones_is_no_wrong_unit() -> None:
    assert doubt_of_times(np.array([5, 1_700_000_000])) == ""
    assert doubt_of_times(np.empty(0, np.int64)) == ""
    assert "before 1970-08-23T06:15:32Z" in doubt_of_times(np.array([5, 20_240_131]))


@pytest.mark.parametrize("until", [0, 1001, -3])
def test_an_empty_period_is_refused(until: int) -> None:
    with pytest.raises(ConfigError, match=r"split.train_until is 19.*Z, outside"):
        split_in_time(0, 1000, until)
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match=r"split.validation_share"):
            split_in_time(0, 1000, validation_share=share)


def test_records_of_one_moment_are_no_fault_of_the_setting() -> None:
    # Nobody set train_until: a message that names it would send its reader the wrong way.
    with pytest.raises(ConfigError, match=r"one moment, 2024-01-21T04:18:08Z.* 'timestamp'"):
        split_in_time(1705810688, 1705810688)


def test_the_last_record_alone_can_be_what_is_tested_on() -> None:
    assert split_in_time(0, 100, 100).train_until == 100
    with pytest.raises(ConfigError, match="not after"):
        split_in_time(0, 100, 101)
