"""From what a federation wants to a plan that can be run."""

from typing import Any

import pandas as pd
import pytest

from common.accounting import epsilon, plan_spends
from common.errors import ConfigError
from common.features import Catalogue, ContentSpec
from common.planning import has_groups, with_fitting_groups, with_noise
from common.protocol import ModelPlan, TrainingPlan


def test_noise_costs_the_target_and_hardly_less() -> None:
    plan = with_noise(TrainingPlan(target_epsilon=3.0, rounds=5, local_steps=2, sample_rate=0.5))
    cost = epsilon(plan_spends(plan), plan.target_delta).value
    assert 0.998 * 3.0 <= cost <= 3.0
    assert plan.noise_multiplier > 0
    bare = with_noise(TrainingPlan(target_epsilon=3.0, rounds=0))
    assert (bare.noise_multiplier, bare.rounds) == (0.0, 0)
    assert epsilon(plan_spends(bare), bare.target_delta).value <= 3.0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"trust": "federation"}, "honest_shops"),
        ({"trust": "federation", "honest_shops": 3, "noise_steps": 4}, "noise_steps, or another"),
        ({"trust": "federation", "honest_shops": 3, "local_steps": 2}, "one sum a round"),
        ({"unit": "interaction", "rounds": 2}, "rounds = 0"),
        ({"popularity_share": 1.0, "rounds": 2}, "popularity_share"),
        # What every shop would refuse, told to whoever makes the plan.
        ({"rounds": 10**9}, r"rounds is 1e\+09; a private plan takes 0 to 100000"),
        ({"max_grad_norm": 1e-30}, "max_grad_norm is 1e-30"),
        (
            {"trust": "federation", "honest_shops": 3, "first_norms": (1.0, 1e-30)},
            "first_norms, number 2, is 1e-30",
        ),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        with_noise(TrainingPlan(**wrong))


def test_groups_are_the_finest_feature_that_has_rows() -> None:
    products = pd.DataFrame(
        {
            "item_id": [f"p{n}" for n in range(30)],
            "brand": [f"b{n % 3}" for n in range(30)],
            "category": [f"c{n % 7}" for n in range(30)],
        }
    )
    spec = ContentSpec(features=("brand", "category", "category*brand"))
    catalogue = Catalogue.of(products, spec)
    assert has_groups(ModelPlan(groups="brand*category", learned_items=9), catalogue)
    asked = ModelPlan(groups="type*brand", learned_items=9)
    assert not has_groups(asked, catalogue)
    assert with_fitting_groups(asked, catalogue).groups == "category"
    few = asked.model_copy(update={"learned_items": 2})
    assert with_fitting_groups(few, catalogue).groups == ""
    many = asked.model_copy(update={"learned_items": 21})
    assert with_fitting_groups(many, catalogue).groups == "category*brand"


@pytest.mark.parametrize("target", [1e-9, 1e40])
@pytest.mark.parametrize("sample_rate", [1.0, 0.1])
def test_a_target_that_no_noise_meets_is_an_error(target: float, sample_rate: float) -> None:
    with pytest.raises(ConfigError, match="no noise costs just epsilon"):
        with_noise(TrainingPlan(target_epsilon=target, sample_rate=sample_rate))
