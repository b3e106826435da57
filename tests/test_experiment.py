"""Experiment files, and the plans that they become."""

from pathlib import Path

import pytest

from client.home_settings import LEARNED_PARTS
from common.accounting import epsilon, plan_spends
from common.config import with_overrides
from common.errors import ConfigError
from common.protocol import ModelPlan, TrainingPlan
from experiment_support import SMALL
from simulations.experiment import (
    ARMS,
    Experiment,
    PartitionSection,
    check_mixtures,
    read_experiment,
    server_config,
    training_plan,
)
from simulations.progress import Bars
from simulations.run import run_experiment

DEMO = Path(__file__).resolve().parent.parent / "simulations" / "experiments" / "demo.toml"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def plan_of(experiment: Experiment, arm: str = "federated-dp") -> TrainingPlan:
    return training_plan(experiment, arm, validation_from=100, train_until=200)


def test_the_demo_is_a_valid_experiment_with_every_arm() -> None:
    experiment = read_experiment(DEMO)
    assert set(experiment.run.arms) == set(ARMS)
    for arm in ("federated", "federated-dp"):
        assert plan_of(experiment, arm).rounds > 0


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ("privacy.target_epsilom=3", "target_epsilon"),
        ("federated-dp.model.dimention=3", "dimension"),
        ("federated_dp.rounds=1", "federated-dp"),
        ("rum.seed=3", "run"),
        ("home.federated-dp.ease_lamda=3", "ease_lambda"),
        ("data.marketplace.shop=3", "shops"),
    ],
)
def test_an_unknown_key_names_the_nearest(small: Path, change: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
        read_experiment(small, [change])


def test_a_list_is_asked_for_in_toml_s_words(small: Path) -> None:
    # "a valid tuple" is no word of TOML, and a name alone is what one would try first.
    with pytest.raises(ConfigError, match=r"run.arms: Input should be a list, .*got .local."):
        read_experiment(small, ["run.arms=local"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Nothing would be run, or one of two would only be found out after both were trained.
        ("run.arms=[]", r"run.arms is \[\]"),
        ('run.arms=["local", "local"]', r"each just once"),
        # The shop would refuse its own settings, and be left out of a run that ends well.
        ("privacy.caps.north=-3", r"privacy.caps.north: .*greater than 0"),
        ("privacy.cap_epsilon=inf", r"privacy.cap_epsilon: .*finite"),
        # A weight that works against its part makes the reference weak, and the answer a yes.
        ("home.local.start.content=-3", r"home.local.start.content: .*equal to 0"),
        ("home.local.start.contant=3", r"home.local: .*'contant'; did you mean 'content'"),
        # Each ended the run at its arm, when others had been trained.
        ("home.federated.start.pooled_ease=3", r"home.federated: .*'pooled_ease'; did you mean"),
        ('home.local.reference={"ndgc@20"=1}', r"home.local.reference: .*mean 'ndcg@20'"),
        ("federated-dp.first_norms=[0.1, 0]", r"federated-dp.first_norms.1: .*greater than 0"),
        # JSON, as which a plan travels, has no such numbers: the server refused it, unnamed.
        ("federated-dp.max_grad_norm=inf", r"federated-dp.max_grad_norm: .*finite"),
        ("federated-dp.learning_rate=inf", r"federated-dp.learning_rate: .*finite"),
        ("data.marketplace.visits_log_mean=nan", r"data.marketplace.visits_log_mean: .*finite"),
    ],
)
def test_what_would_come_to_light_after_training_is_refused(
    small: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_experiment(small, [change])


@pytest.mark.parametrize(
    ("change", "arm", "section"),
    [
        ("home.local.start={}", "local", "home.local"),
        ("home.federated.start={popularity=1}", "home-only", "home.federated"),
        ("home.federated-dp.start={}", "federated-dp", "home.federated-dp"),
    ],
)
def test_an_arm_that_would_mix_nothing_is_refused_before_all_is_trained(
    small: Path, tmp_path: Path, change: str, arm: str, section: str
) -> None:
    experiment = read_experiment(small, [change, f'run.arms=["{arm}"]'])
    with pytest.raises(ConfigError, match=rf"{section}.start names nothing by which {arm} could"):
        run_experiment(experiment, tmp_path / "out", Bars())
    check_mixtures(experiment, ["popularity", "federated-global"])  # these mix nothing


def test_overrides_take_toml_values_and_plain_text(small: Path) -> None:
    changes = [
        "data.path=/some where/else",
        "privacy.target_epsilon = 3",
        'run.arms=["local", "federated"]',
        "privacy.caps.a shop=2.5",
        "privacy.caps.joe's=3",
        'privacy.caps."st. mary"=4',
        "privacy.unit=basket",
        "home.local.start.content=0.25",
    ]
    experiment = read_experiment(small, changes)
    assert experiment.data.path == "/some where/else"
    assert experiment.privacy.target_epsilon == 3.0
    assert experiment.run.arms == ("local", "federated")
    assert experiment.privacy.caps == {"a shop": 2.5, "joe's": 3.0, "st. mary": 4.0}
    assert experiment.privacy.unit == "basket"
    assert experiment.home.local.start == {"content": 0.25, "own_ease": 2.4, "own_popularity": 0.1}


def test_an_override_of_more_than_one_key_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"is not of the form section\.key=value"):
        with_overrides({}, ['[a]\n[b]\n"c"=1'])


def test_a_date_is_one_with_and_without_quotes(small: Path) -> None:
    for date in ("2017-10-02", '"2017-10-02"'):
        assert read_experiment(small, [f"split.train_until={date}"]).split.train_until == (
            "2017-10-02"
        )


@pytest.mark.parametrize("change", ["nonsense", "seed=3", "run.=3", ".seed=3", "run.seed.more=1"])
def test_an_override_of_another_form_is_refused(small: Path, change: str) -> None:
    with pytest.raises(ConfigError):
        read_experiment(small, ["run.seed=3", change])


def test_an_unknown_arm_names_the_nearest(small: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'federated-dp'"):
        read_experiment(small, ['run.arms=["federated-pd"]'])


@pytest.mark.parametrize(
    "change", ["privacy.target_delta=0", "privacy.unit=household", "federated-dp.sample_rate=1.5"]
)
def test_a_value_out_of_its_range_is_named(small: Path, change: str) -> None:
    with pytest.raises(ConfigError, match=change.split("=")[0].split(".")[-1]):
        read_experiment(small, [change])


def test_trust_in_a_federation_shares_the_noise_among_two_thirds_of_the_shops(small: Path) -> None:
    experiment = read_experiment(small, ["privacy.trust=federation"])
    plan = training_plan(experiment, "federated-dp", validation_from=100, train_until=200, shops=20)
    assert (plan.trust, plan.honest_shops, plan.colluding_shops) == ("federation", 13, 0)
    cost = epsilon(plan_spends(plan), plan.target_delta).value
    assert 0.998 * plan.target_epsilon <= cost <= plan.target_epsilon
    with pytest.raises(ConfigError, match="honest_shops"):
        plan_of(experiment)
    # Without privacy there is no noise to share.
    bare = training_plan(experiment, "federated", validation_from=100, train_until=200, shops=20)
    assert bare.trust == "shop"


@pytest.mark.parametrize("unit", ["customer", "basket"])
@pytest.mark.parametrize("target", [0.5, 8.0])
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_a_plan_costs_what_was_asked_for_and_never_more(
    small: Path, unit: str, target: float, rate: float
) -> None:
    changes = [f"privacy.unit={unit}", f"privacy.target_epsilon={target}"]
    experiment = read_experiment(small, [*changes, f"federated-dp.sample_rate={rate}"])
    plan = plan_of(experiment)
    assert plan.private
    assert plan.unit == unit
    cost = epsilon(plan_spends(plan), plan.target_delta).value
    assert target * 0.998 <= cost <= target


def test_interactions_as_units_pay_for_popularity_alone(small: Path) -> None:
    plan = plan_of(read_experiment(small, ["privacy.unit=interaction"]))
    assert plan.rounds == 0
    assert plan.tuning_round == 0
    assert len(plan_spends(plan)) == 1
    assert 0.998 * 8 <= epsilon(plan_spends(plan), plan.target_delta).value <= 8


def test_without_privacy_there_is_no_noise_and_the_unit_is_the_customer(small: Path) -> None:
    plan = plan_of(read_experiment(small, ["privacy.unit=basket"]), "federated")
    assert not plan.private
    assert (plan.noise_multiplier, plan.popularity_noise_multiplier) == (0.0, 0.0)
    assert plan.unit == "customer"


def test_tuning_rounds_are_a_share_of_all(small: Path) -> None:
    changes = ["federated.rounds=10", "federated.tuning_share=0.7"]
    plan = plan_of(read_experiment(small, changes), "federated")
    assert (plan.tuning_round, plan.rounds) == (7, 10)
    assert (plan.validation_from, plan.reference_time) == (100, 200)


def test_baskets_may_have_a_section_of_their_own(small: Path) -> None:
    changes = ["privacy.unit=basket", "basket.rounds=1", "basket.server.server-momentum=0.1"]
    experiment = read_experiment(small, changes)
    assert plan_of(experiment).rounds == 1
    assert server_config(experiment, "federated-dp")["server-momentum"] == 0.1
    assert plan_of(experiment, "federated").rounds == 2


def test_the_server_gets_the_seed_of_the_run(small: Path) -> None:
    experiment = read_experiment(small, ["run.seed=7"])
    assert server_config(experiment, "federated")["seed"] == 7


def test_a_key_of_the_server_is_one_with_underscores_too(small: Path) -> None:
    # Flower refuses such a key, and in this process it hid the one with hyphens: an attack's own
    # bad-share, for one.
    changes = ["federated.server.bad-share=0.1", "federated.server.bad_share=0.2"]
    found = server_config(read_experiment(small, changes), "federated")
    assert found["bad-share"] == 0.2
    assert "bad_share" not in found


@pytest.mark.parametrize("unit", ["customer", "basket", "interaction"])
def test_shops_mix_nothing_learned_around_a_model_without_rounds(unit: str) -> None:
    # What stands there then is where training begins: directions drawn at random, which no shop
    # mixes. In the arm they stood beside each shop's customers.
    experiment = read_experiment(DEMO, [f"privacy.unit={unit}"])
    home, plan = experiment.home, plan_of(experiment)
    found = home.of_plan(plan)
    assert bool(set(LEARNED_PARTS) & set(found.start)) == (plan.rounds > 0) == (unit == "customer")
    assert home.basket is not None
    assert found == (home.federated_dp if unit == "customer" else home.basket)
    alone = {**home.federated_dp.start, "own_ease": 5.0}
    alone.pop("shared_ease")
    without = home.model_copy(update={"basket": None}).of_plan(plan)
    assert without.start == (home.federated_dp.start if plan.rounds else alone)
    untrained = plan_of(experiment, "federated").model_copy(update={"rounds": 0})
    assert "shared_ease" not in home.of_plan(untrained).start
    assert home.of_plan(plan_of(experiment, "federated")) == home.federated


def test_home_only_has_no_part_that_training_makes(small: Path) -> None:
    home = read_experiment(small).home.home_only()
    assert set(home.start) == {"content", "own_ease", "own_popularity"}


def test_home_only_has_what_was_chosen_for_shops_alone() -> None:
    home = read_experiment(DEMO).home
    found = home.home_only()
    assert (found.ease_lambda, found.best_sellers) == (300.0, 150)
    assert found.best == home.local.best != home.federated.best


@pytest.mark.parametrize("kind", ["uniform", "dirichlet", "column"])
def test_every_kind_of_partition_has_a_partitioner(kind: str) -> None:
    assert PartitionSection.model_validate({"kind": kind}).partitioner(0) is not None
    assert PartitionSection().partitioner(0) is None


@pytest.mark.parametrize(("name", "target"), [("shared-noise", 8.0), ("shared-noise-1", 1.0)])
def test_plans_for_shared_noise_are_held_against_one_baseline(name: str, target: float) -> None:
    demo, shared = read_experiment(DEMO), read_experiment(DEMO.with_name(f"{name}.toml"))
    assert (shared.data, shared.split, shared.content) == (demo.data, demo.split, demo.content)
    assert shared.home.local == demo.home.local
    assert shared.home.centralized == demo.home.centralized
    assert (shared.home.pooled_ridge, shared.home.pooled_power) == (333.0, 0.6)  # for both
    assert shared.home.federated_dp.reference == demo.home.federated_dp.reference
    # No arm leaves away what the others know of best sellers.
    arms = ("local", "centralized", "federated", "federated_dp", "basket")
    for arm in (*(getattr(demo.home, name) for name in arms), shared.home.federated_dp):
        assert arm.best_sellers == 150
        assert set(arm.best) == {"content", "kin"}
    plan = training_plan(shared, "federated-dp", validation_from=1, train_until=2, shops=20)
    assert (plan.trust, plan.honest_shops) == ("federation", 13)
    assert epsilon(plan_spends(plan), plan.target_delta).value <= target


def test_less_along_popularity_goes_with_rows_of_products_alone() -> None:
    assert ModelPlan(centred=False, popular_share=0.4, learned_items=9).popular_share == 0.4
    for other in ({"centred": True}, {"groups": "type", "learned_items": 9}, {"tower": "mlp"}):
        with pytest.raises(ValueError, match="popular_share"):
            ModelPlan.model_validate({"centred": False, "popular_share": 0.4, **other})
