"""Sums with shared noise under audit: what is released, and what each planted mistake changes."""

import numpy as np
import pandas as pd
import pytest

from audit_support import shops
from common.features import Catalogue
from common.planning import with_noise
from common.protocol import POPULARITY, TrainingPlan
from common.schema import ShopEvents
from simulations.audit import sums as audited
from simulations.audit.canaries import plant
from simulations.audit.settings import AuditSection
from simulations.audit.sums import HONEST, MEMBERS, SHARES, audit_sums
from simulations.audit.training import only

COUNT = 4_000
SETTINGS = AuditSection(canaries=COUNT, guesses=300)


def empty_shop() -> ShopEvents:
    shop = shops()[0]
    return only(shop, np.zeros(len(shop.user_ids), dtype=bool))


def catalogue() -> Catalogue:
    items = [f"i{number:05}" for number in range(COUNT)]
    return Catalogue.of(pd.DataFrame({"item_id": items, "category": "c"}))


def plan() -> TrainingPlan:
    return with_noise(
        TrainingPlan(trust="federation", honest_shops=HONEST, rounds=1, target_epsilon=2.0)
    )


@pytest.mark.parametrize(
    ("way", "times"),
    [
        ("shared", 1.0),
        ("shares-for-all", HONEST / MEMBERS),
        ("shares-of-deviation", 1 / HONEST),
        ("table-of-sums-without-noise", 0.0),
    ],
)
def test_each_way_has_just_its_share_of_the_planned_variance(way: str, times: float) -> None:
    assert set(SHARES) == {
        *("shared", "shares-for-all", "shares-of-deviation", "table-of-sums-without-noise")
    }
    sums = audited._Sums(plan(), way, empty_shop(), catalogue(), 0)
    total = sums.of(0, {POPULARITY: (COUNT,)}, {}).arrays[POPULARITY]
    planned = (plan().popularity_noise_multiplier * plan().noise_steps) ** 2
    assert total.var() / planned == pytest.approx(times, rel=5 * (2 / COUNT) ** 0.5, abs=1e-12)
    # The mistake of one table is in the other sums not made.
    if way == "table-of-sums-without-noise":
        multiplier = plan().noise_multiplier
        assert SHARES[way](plan(), multiplier, 1) == SHARES["shared"](plan(), multiplier, 1)


def test_the_customers_are_in_the_sum_once() -> None:
    shop = plant(empty_shop(), np.arange(0, COUNT, 2))
    sums = audited._Sums(plan(), "table-of-sums-without-noise", shop, catalogue(), 0)
    total = sums.of(0, {POPULARITY: (COUNT,)}, {}).arrays[POPULARITY]
    # Cut towards zero: a unit is never more than the plan's steps.
    assert set(total[::2].tolist()) <= {plan().noise_steps, plan().noise_steps - 1}
    assert not total[1::2].any()


def test_records_say_what_was_guessed_and_a_seed_gives_them_again() -> None:
    arguments = (2.0, empty_shop(), catalogue(), SETTINGS)
    record = audit_sums("shared", *arguments, 3)
    assert (record["canaries"], record["guesses"], record["step"]) == (COUNT, 300, "shared")
    assert 1.99 < record["claimed_epsilon"] <= 2
    assert not record["refuted"]
    assert record == audit_sums("shared", *arguments, 3)
    broken = audit_sums("table-of-sums-without-noise", *arguments, 3)
    assert broken["refuted"]
    assert broken["correct"] == 300
