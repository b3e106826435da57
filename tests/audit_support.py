"""A marketplace small enough to train many models on, and what an audit needs of it."""

from functools import lru_cache

from common.protocol import TrainingPlan
from common.schema import ShopEvents
from server.subspace import SubspaceOptimizer
from simulations.audit.membership import Trial
from simulations.experiment import Experiment, training_plan
from simulations.world import World, build_world

_VALUES = {
    "data": {
        "source": "marketplace",
        "marketplace": {
            "shops": 3,
            "customers_per_shop": 90,
            "products": 2_000,
            "groups": 100,
            "categories": 20,
            "brands": 40,
            "visits_log_mean": 2.5,
            "weeks": 20,
            "train_weeks": 16,
        },
    },
    "content": {"features": ["type", "category*brand"]},
    "home": {
        "local": {"start": {"content": 0.5, "own_ease": 2.4}},
        "centralized": {"start": {"content": 0.5, "pooled_ease": 3.0}},
        "federated": {"start": {"content": 0.4, "learned": 0.6}},
        "federated-dp": {"start": {"content": 0.4, "learned": 0.3}},
    },
    "federated": {
        "rounds": 2,
        "tuning_share": 0.5,
        "model": {"dimension": 32, "row_exponent": 0.5, "centred": False},
        "server": {"server-optimizer": "subspace", "server-momentum": 0.0},
    },
    "federated-dp": {
        "rounds": 4,
        "tuning_share": 0.5,
        "max_grad_norm": 0.2,
        "model": {"dimension": 4, "groups": "type", "learned_items": 60},
        "server": {"server-optimizer": "subspace", "server-momentum": 1.0},
    },
}


@lru_cache(maxsize=1)
def experiment() -> Experiment:
    return Experiment.model_validate(_VALUES)


@lru_cache(maxsize=1)
def world() -> World:
    return build_world(experiment())


@lru_cache(maxsize=1)
def shops() -> tuple[ShopEvents, ...]:
    return tuple(shop.before(world().split.train_until) for shop in world().shops)


def plan_of(arm: str, epsilon: float = 8.0) -> TrainingPlan:
    promised = experiment().privacy.model_copy(update={"target_epsilon": epsilon})
    return training_plan(
        experiment().model_copy(update={"privacy": promised}),
        arm,
        validation_from=world().split.validation_from,
        train_until=world().split.train_until,
    )


def trial(arm: str, epsilon: float = 8.0) -> Trial:
    plan = plan_of(arm, epsilon)
    return Trial(arm, plan, SubspaceOptimizer(plan, 1.0 if plan.private else 0.0))
