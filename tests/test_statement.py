import json

import pytest

from common.accounting import calibrate, epsilon, plan_spends
from common.protocol import TrainingPlan
from common.statement import render_statement, statement


def plan(**values: object) -> TrainingPlan:
    popularity, noise = calibrate(8.0, 1e-5, 0.3, 1.0, 10)
    constants = {"popularity_noise_multiplier": popularity, "noise_multiplier": noise}
    return TrainingPlan.model_validate({**constants, "rounds": 10, **values})


def test_the_statement_holds_the_promise_and_survives_json() -> None:
    found = json.loads(json.dumps(statement(plan()), allow_nan=False))
    assert found["epsilon"] == epsilon(plan_spends(plan()), 1e-5).value
    assert 0.998 * 8 <= found["epsilon"] <= 8
    assert (found["delta"], found["unit"], found["relation"]) == (1e-5, "customer", "add-or-remove")
    assert [part["steps"] for part in found["mechanisms"]] == [1, 10]


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ({}, {}, "several shops"),
        ({"unit": "basket"}, {}, "n baskets has n times"),
        ({}, {"noise": "seeded"}, "knows the seed"),
        ({}, {"catalogue_from_purchases": True}, "built from purchases"),
        ({"trust": "federation"}, {}, "collude"),
    ],
)
def test_what_is_not_covered_is_said_where_it_applies(
    values: dict[str, object], options: dict[str, object], words: str
) -> None:
    found = statement(plan(**values), **options)  # type: ignore[arg-type]
    assert words in " ".join(found["not_covered"])
    assert words in " ".join(render_statement(found).split())
    if values or options:
        assert words not in " ".join(statement(plan())["not_covered"])


def test_a_model_without_privacy_says_so() -> None:
    found = statement(TrainingPlan(private=False))
    assert found["epsilon"] is None
    assert "without differential privacy" in render_statement(found)


def test_a_plan_without_noise_has_no_bound() -> None:
    found = statement(plan(noise_multiplier=0.0))
    assert found["epsilon"] is None
    assert "no bound" in render_statement(found)


def test_the_text_names_epsilon_unit_and_mechanisms() -> None:
    text = render_statement(statement(plan()))
    for words in ("delta 1e-05, per customer", "gaussian-histogram", "dp-sgd", "PRV"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 96
