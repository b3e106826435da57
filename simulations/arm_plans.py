"""The plan of an arm's federation: as asked for, as it fits the data, and what is told of it."""

from collections.abc import Iterable

from common.planning import has_groups, with_fitting_groups
from common.protocol import TrainingPlan
from simulations.experiment import Experiment, section_of, training_plan
from simulations.world import World


def asked_plan(experiment: Experiment, name: str, world: World) -> TrainingPlan:
    """Return the plan that an experiment asks for, whatever columns the products have."""
    return training_plan(
        experiment,
        name,
        validation_from=world.split.validation_from,
        train_until=world.split.train_until,
        shops=len(world.shops),
    )


def plan_notes(experiment: Experiment, names: Iterable[str], world: World) -> list[str]:
    """Return what a reader of any document must know of these arms' plans on these data."""
    notes = []
    most = max(len(shop.user_ids) for shop in world.shops)
    for name in names:
        plan = asked_plan(experiment, name, world)
        if plan.private and plan.target_delta * most >= 1:
            notes.append(
                f"δ = {plan.target_delta:g} promises little: the largest shop has {most} "
                "customers, and what published some of them whole, each with chance δ, would keep "
                f"it. Take a δ far below 1/{most}"
            )
        fitting = fitting_plan(plan, world)
        if fitting != plan:
            key = section_of(experiment, name).replace("_", "-")
            notes.append(
                f"the products have no columns for the groups {plan.model.groups} that {name} "
                f"learns: it learns {fitting.model.groups or 'single products'} instead "
                f"({key}.model.groups names others)"
            )
    return notes


def fitting_plan(plan: TrainingPlan, world: World) -> TrainingPlan:
    """Return a plan that learns groups which the products have columns for, or single products."""
    if has_groups(plan.model, world.catalogue):
        return plan
    model = with_fitting_groups(plan.model, world.catalogue)
    return plan.model_copy(update={"model": model})
