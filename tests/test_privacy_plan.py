from dataclasses import replace

import pytest

from client.privacy.plan import check_plan, code_digest, planned_events, remaining_events
from common.accounting import Spend, plan_spends
from common.errors import PrivacyError
from common.protocol import TrainingPlan

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


def test_what_remains_after_a_round() -> None:
    assert remaining_events(PLAN, "run", 0) == planned_events(PLAN, "run")[1:]
    assert remaining_events(PLAN, "run", 3) == []


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
