import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.accounting import Spend, calibrate, epsilon, plan_spends
from common.protocol import TrainingPlan
from common.statement import at_least, at_most, promise_words, render_statement, statement


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
        ({}, {"dates_from_records": True}, "first and last record of all shops"),
        ({"trust": "federation", "honest_shops": 3}, {}, "collude"),
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


@given(st.floats(0, 1e300, allow_subnormal=False))
def test_no_epsilon_in_words_is_less_than_it_is_and_nothing_left_is_more(value: float) -> None:
    assert value <= float(at_most(value)) <= value * 1.0011
    assert value * 0.9989 <= float(at_least(value)) <= value
    assert len(at_most(value).partition("e")[0].replace(".", "").lstrip("0")) <= 4


def test_what_is_in_four_digits_already_stays_as_it_is() -> None:
    for words in ("0", "8", "7.995", "0.001234", "1e-09", "inf"):
        assert (at_most(float(words)), at_least(float(words))) == (words, words)
    assert (at_most(7.9941), at_least(7.9949)) == ("7.995", "7.994")
    assert promise_words({**statement(plan()), "epsilon": 7.9941}).startswith("epsilon 7.995,")


def test_what_is_protected_is_said_to_be_as_well_hidden_as_it_is() -> None:
    """At ε = 8 an attack tells who was there with an AUC of .85: that is not "hardly"."""
    found = statement(plan())
    text = " ".join(render_statement(found).split())
    assert "hardly" not in text
    times = re.search(r"no more than e\^epsilon = (\d+) times as likely, and delta more", text)
    assert times is not None
    assert math.exp(found["epsilon"]) <= float(times[1]) <= 1.001 * math.exp(found["epsilon"])
    bare = " ".join(render_statement(statement(plan(noise_multiplier=0.0))).split())
    assert "nothing bounds what can be told of it" in bare
    assert "times as likely" not in bare
    huge = statement(plan(noise_multiplier=0.01))
    assert "no more than e^epsilon times as likely" in " ".join(render_statement(huge).split())


def test_many_units_of_one_customer_are_not_said_to_cost_only_as_many_times_epsilon() -> None:
    """Of n units at once the shift is n times: at the same delta that is worth more than n ε."""
    (text,) = [t for t in statement(plan(unit="basket"))["not_covered"] if "n baskets" in t]
    assert "only at a larger delta" in text
    assert "At this delta it is more than n times" in text
    delta = 1e-5
    for target in (0.1, 1.0, 8.0):
        sigma, _ = calibrate(target, delta, 1.0, 1.0, 0)
        one = epsilon([Spend(sigma, 1.0, 1)], delta).value
        for n in (2, 3, 10):
            at_once = [Spend(sigma / n, 1.0, 1)]
            assert epsilon(at_once, delta).value > n * one
            larger = delta * math.expm1(n * one) / math.expm1(one)
            if larger < 1:
                assert epsilon(at_once, larger).value <= n * one


def test_a_model_of_several_runs_trusts_whom_any_of_them_has_to_trust() -> None:
    """What an earlier run learned under secure sums is in the model: so is what it rests on."""
    alone = plan()
    sums = plan(trust="federation", honest_shops=13, colluding_shops=2, honest_stockers=5)
    fewer = plan(trust="federation", honest_shops=15, colluding_shops=1)
    found = statement(alone, earlier=[sums, alone])
    assert (found["trust"], found["honest_shops"], found["colluding_shops"]) == (
        "federation",
        13,
        2,
    )
    assert "So in 1 of 3 runs" in found["trust_means"]
    both = statement(fewer, earlier=[sums])
    assert (both["honest_shops"], both["colluding_shops"]) == (13, 1)
    assert "13 shops that do not collude" in both["trust_means"]
    assert "3 at least" in both["trust_means"]
    assert statement(alone, earlier=[alone])["trust"] == "shop"
    assert statement(sums)["trust_means"] == statement(sums, earlier=[sums])["trust_means"]


def test_what_was_done_again_is_said_to_be_in_no_models_epsilon() -> None:
    assert "were done again" in " ".join(statement(plan())["not_covered"])


def test_several_runs_of_which_one_is_sampled_say_that_they_were_not_planned_beforehand() -> None:
    """The bound of sampled steps together is proven for constants that no release chose.

    One sampled run is enough: of plans that each cost the rest of a cap, whoever has seen what an
    unsampled run released can choose the rate, and take twice the delta.
    """
    sampled, words = plan(sample_rate=0.5), "planned in view of what earlier ones had released"
    for found in (
        statement(sampled, earlier=[sampled]),
        statement(sampled, earlier=[plan()]),
        statement(plan(), earlier=[sampled]),
    ):
        assert words in " ".join(found["not_covered"])
    for found in (
        statement(sampled),
        statement(plan(), earlier=[plan()]),
        statement(plan(), earlier=[plan(sample_rate=0.5, rounds=0)]),
    ):
        assert words not in " ".join(found["not_covered"])


def test_every_clipping_norm_of_the_plan_is_named() -> None:
    found = statement(plan(first_norms=(0.1, 0.2), max_grad_norm=0.4))
    histogram, steps = found["mechanisms"]
    assert (histogram["max_norms"], steps["max_norms"]) == ([1.0], [0.1, 0.2, 0.4])
    assert "clipping norm 0.1 then 0.2 then 0.4" in " ".join(render_statement(found).split())


def test_where_the_noise_comes_from_and_what_rounding_does_not_prove_is_said() -> None:
    found = statement(plan())
    text = " ".join(render_statement(found).split())
    for words in (
        "AES-256",
        "operating system",
        "fixed grid",
        "Mironov 2012",
        "summed in 64 bits",
        "Casacuberta et al. 2022",
        "Neither is a proof",
    ):
        assert words in text
    assert found["rounds"] == 10


def test_a_plan_of_secure_sums_says_what_is_shared_and_how_it_is_drawn() -> None:
    found = statement(plan(trust="federation", honest_shops=13))
    assert [part["mechanism"] for part in found["mechanisms"]] == [
        "shared-gaussian-histogram",
        "shared-gaussian-step",
    ]
    text = " ".join(render_statement(found).split())
    for words in ("only the sum over shops", "exact sampler of the discrete Gaussian", "at most"):
        assert words in text
    assert (found["honest_shops"], found["colluding_shops"]) == (13, 0)
    assert "unless 13 shops that do not collude with whoever looks at the sum are in it" in text
    assert "a product's row may be of fewer of them, 3 at least" in text
    assert "honest_shops" not in statement(plan())
    # Whole numbers have no lowest bits that were rounded.
    assert "Mironov" not in text
    both = statement(plan(trust="federation", honest_shops=13), earlier=[plan()])
    assert "Mironov" in " ".join(both["not_covered"])
    assert "in secure sums" in both["noise_means"]


def test_a_bound_that_is_not_tight_is_said_to_be_one() -> None:
    loose = plan(rounds=10**8, noise_multiplier=5000.0, sample_rate=0.1)
    found = statement(loose)
    assert found["accountant"] == {"method": "rdp", "upper_bound": True}
    text = render_statement(found)
    assert "epsilon at most" in text
    assert "not tight" in text
    assert "at most" not in render_statement(statement(plan()))


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
