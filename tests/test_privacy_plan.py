import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.privacy.plan import (
    check_paid,
    check_plan,
    check_state,
    planned_events,
)
from common.accounting import Spend, plan_spends
from common.code import code_digest
from common.errors import PrivacyError
from common.model import trained_names
from common.protocol import ITEMS, TrainingPlan

PLAN = TrainingPlan(
    popularity_noise_multiplier=5.0,
    noise_multiplier=4.0,
    rounds=3,
    local_steps=2,
    sample_rate=0.5,
)


def changed(**values: object) -> TrainingPlan:
    return PLAN.model_copy(update=values)


def test_events_cost_what_the_plan_costs() -> None:
    spends = [
        Spend(e.noise_multiplier, e.sample_rate, e.steps) for e in planned_events(PLAN, "run")
    ]
    first, steps = plan_spends(PLAN)
    assert spends[0] == first
    assert spends[1:] == [replace(steps, steps=2)] * 3


def test_round_zero_is_the_histogram_and_rounds_follow() -> None:
    events = planned_events(PLAN, "run", noise="seeded")
    assert [e.server_round for e in events] == [0, 1, 2, 3]
    assert [e.mechanism for e in events] == ["gaussian-histogram"] + ["dp-sgd"] * 3
    assert {e.run_id for e in events} == {"run"}
    assert {e.parameters["noise"] for e in events} == {"seeded"}
    assert planned_events(PLAN, "run", first_round=2) == planned_events(PLAN, "run")[2:]


def test_an_entry_pays_for_what_it_says_alone() -> None:
    """The last gate before arrays leave: whatever was charged instead costs less, or is not it."""
    (due, *_), names = planned_events(PLAN, "run", first_round=1), trained_names(PLAN)
    check_paid(PLAN, "run", 1, due, names)
    others: dict[str, Any] = {
        "mechanism": "gaussian-histogram",
        "noise_multiplier": 8.0,
        "sample_rate": 0.25,
        "steps": 1,
        "unit": "basket",
        "relation": "replace",
        "run_id": "another",
        "server_round": 2,
    }
    for name, value in others.items():
        with pytest.raises(PrivacyError, match="not charged"):
            check_paid(PLAN, "run", 1, replace(due, **{name: value}), names)
    with pytest.raises(PrivacyError, match="not charged"):
        check_paid(PLAN, "run", 1, None, names)


def test_nothing_remains_after_the_last_round() -> None:
    assert planned_events(PLAN, "run", first_round=4) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (changed(private=False), "private = false"),
        (changed(noise_multiplier=0.0), "noise_multiplier"),
        (changed(popularity_noise_multiplier=0.0), "popularity_noise_multiplier"),
        (changed(unit="interaction"), "rounds = 0"),
    ],
)
def test_plans_that_cannot_keep_their_promise_are_refused(plan: TrainingPlan, message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        planned_events(plan, "run")


def test_baskets_need_sessions() -> None:
    check_plan(changed(unit="basket"))
    with pytest.raises(PrivacyError, match="session_id"):
        check_plan(changed(unit="basket"), has_sessions=False)


def test_popularity_alone_needs_no_noise_for_rounds() -> None:
    plan = changed(unit="interaction", rounds=0, noise_multiplier=0.0)
    assert len(planned_events(plan, "run")) == 1


def test_the_code_has_a_digest() -> None:
    assert len(code_digest()) == 64
    assert code_digest() == code_digest()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        # float32 sums of clipped gradients would overflow: infinite with one unit more.
        ({"max_grad_norm": 1e38}, "max_grad_norm is"),
        ({"learning_rate": 1e300}, "learning_rate / batch_normalizer"),
        ({"learning_rate": math.inf}, "learning_rate / batch_normalizer"),
        ({"batch_normalizer": 1e-300}, "batch_normalizer"),
        # No clipping at all, or the wrong way round.
        ({"max_grad_norm": math.inf}, "max_grad_norm is"),
        ({"first_norms": (0.1, math.nan)}, "first_norms, number 2, is nan"),
        ({"first_norms": (-1.0,)}, "first_norms, number 1, is -1"),
        # Just beyond either end, and what only a plan with a later start has.
        ({"max_grad_norm": 2.0**-41}, "max_grad_norm is"),
        ({"max_grad_norm": 2.0**41}, "max_grad_norm is"),
        ({"batch_normalizer": 2.0**-41, "learning_rate": 2.0**-41}, "batch_normalizer is"),
        ({"batch_normalizer": 2.0**41, "learning_rate": 2.0**41}, "batch_normalizer is"),
        ({"noise_multiplier": 2.0**41}, "noise_multiplier"),
        ({"popularity_noise_multiplier": 2.0**41}, "popularity_noise_multiplier"),
        ({"train_from": 2**54}, "train_from"),
        # A grid that float32 cannot hold.
        ({"max_grad_norm": 1e-11, "learning_rate": 1e-9, "noise_multiplier": 1e-18}, "too small"),
        ({"popularity_noise_multiplier": 2.0**-120}, "too small"),
        # Not the first round's grid, but a later one's.
        (
            {
                "first_norms": (1.0, 2.0**-40),
                "learning_rate": 100 * 2.0**-40,
                "noise_multiplier": 2.0**-40,
            },
            "too small",
        ),
        ({"half_life_days": math.inf}, "half_life_days"),
        ({"noise_multiplier": math.inf}, "noise_multiplier"),
        ({"popularity_noise_multiplier": math.inf}, "popularity_noise_multiplier"),
        # Memory or time without end, or integers beyond 64 bits, after the charge.
        ({"rounds": 10**9}, "rounds"),
        ({"local_steps": 10**12}, "local_steps"),
        ({"negatives": 10**9}, "negatives"),
        ({"reference_time": 2**70}, "reference_time"),
        ({"validation_from": -(2**70)}, "validation_from"),
        # Whole numbers that no float holds.
        ({"reference_time": 10**400}, "reference_time is inf"),
        ({"rounds": 10**400}, "rounds is inf"),
    ],
)
def test_constants_at_the_ends_of_arithmetic_are_refused(
    values: dict[str, object], named: str
) -> None:
    with pytest.raises(PrivacyError, match=named):
        check_plan(changed(**values))


def test_a_plan_of_ten_thousand_rounds_is_not_too_much() -> None:
    assert len(planned_events(changed(rounds=10_000, first_norms=(0.1,) * 5), "run")) == 10_001


def test_a_state_beside_which_noise_would_be_rounded_away_is_refused() -> None:
    # With weights of 2^29 float32 has steps of 64: 31 units that push one way leave no trace, 33
    # move the weight by 64, and noise of standard deviation 1 moves it never.
    plan = changed(max_grad_norm=1.0, learning_rate=1.0, batch_normalizer=1.0)
    state = {name: np.full((2, 3), 0.5, np.float32) for name in trained_names(plan)}
    check_state(plan, 1, state)
    state[ITEMS][1, 2] = -(2.0**29)
    with pytest.raises(PrivacyError, match="float32 cannot hold noise"):
        check_state(plan, 1, state)
