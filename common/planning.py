"""From what a federation wants to a plan that can be run: its noise, and the groups it learns."""

import math

import numpy as np

from common.accounting import calibrate
from common.errors import ConfigError, PrivacyError
from common.features import Catalogue
from common.grid import delta_step, is_swallowed, popularity_step
from common.model import initial_state, missing_columns, trained_names
from common.protocol import ModelPlan, TrainingPlan
from common.secure_sum.noise import share_std

# Sums of clipped gradients, and what they move a weight by, must stay far from the ends of float32:
# whether a sum overflows would tell of one unit more, whatever the noise.
_LEAST, _MOST = 2.0**-40, 2.0**40
# More would keep a shop busy for ever: each round is an event, each step a pass over the units.
_MOST_ROUNDS, _MOST_STEPS, _MOST_NEGATIVES = 100_000, 10_000_000, 10_000
# Seconds that int64 holds whatever timestamp is taken off.
_MOST_SECONDS = 2**53


def with_noise(plan: TrainingPlan) -> TrainingPlan:
    """Return a private plan with the noise that its target asks for.

    Raises
    ------
    ConfigError
        If the plan asks for what this version does not have, or its target cannot be met.
    """
    shared = plan.trust == "federation"
    if shared and plan.honest_shops < 1:
        raise ConfigError(
            'trust = "federation" needs honest_shops: how many survivors of every exchange do not '
            "collude with the observer, so that each adds a share of the noise"
        )
    if shared and plan.rounds and not (plan.local_steps == 1 and plan.sample_rate == 1):
        raise ConfigError(
            'trust = "federation" takes one sum a round: set local_steps = 1 and sample_rate = 1'
        )
    if plan.unit == "interaction" and plan.rounds:
        raise ConfigError(
            'unit = "interaction" releases popularity and the bias made of it only: set rounds = 0'
        )
    try:
        check_ranges(plan)
    except PrivacyError as error:
        raise ConfigError(str(error)) from error
    popularity, training = calibrate(
        plan.target_epsilon,
        plan.target_delta,
        plan.popularity_share,
        plan.sample_rate,
        plan.rounds * plan.local_steps,
        discrete=shared,
    )
    noise = {"popularity_noise_multiplier": popularity, "noise_multiplier": training}
    if shared:
        try:
            for multiplier in (popularity, training)[: 2 if plan.rounds else 1]:
                share_std(plan, multiplier)
        except PrivacyError as error:
            raise ConfigError(f"{error}, or another privacy.target_epsilon") from error
    return plan.model_copy(update=noise)


def check_ranges(plan: TrainingPlan) -> None:
    """Refuse constants that only a careless or hostile server would choose; noise may be 0 yet.

    Whoever makes a plan asks the same as each shop that gets it.

    Raises
    ------
    PrivacyError
        Naming the key, its value and its range.
    """
    bounded = {
        "popularity_noise_multiplier": (plan.popularity_noise_multiplier, 0.0, _MOST),
        "half_life_days": (plan.half_life_days, 0.0, _MOST),
        "reference_time": (abs(plan.reference_time), 0, _MOST_SECONDS),
        "train_from": (abs(plan.train_from), 0, _MOST_SECONDS),
        "validation_from": (abs(plan.validation_from), 0, _MOST_SECONDS),
        "rounds": (plan.rounds, 0, _MOST_ROUNDS),
        "rounds times local_steps": (plan.rounds * plan.local_steps, 0, _MOST_STEPS),
        "negatives": (plan.negatives, 1, _MOST_NEGATIVES),
    }
    if plan.rounds:
        rate = plan.learning_rate / plan.batch_normalizer
        bounded |= {
            "noise_multiplier": (plan.noise_multiplier, 0.0, _MOST),
            "batch_normalizer": (plan.batch_normalizer, _LEAST, _MOST),
            "learning_rate / batch_normalizer": (rate, _LEAST, _MOST),
            "max_grad_norm": (plan.max_grad_norm, _LEAST, _MOST),
        }
        bounded |= {
            f"first_norms, number {number},": (norm, _LEAST, _MOST)
            for number, norm in enumerate(plan.first_norms, 1)
        }
    for name, (value, least, most) in bounded.items():
        if not least <= value <= most:
            # A whole number from the wire may be larger than any float.
            shown = math.inf if value > 2**1000 else value
            raise PrivacyError(
                f"{name} is {shown:g}; a private plan takes {least:g} to {most:g}: beyond it a "
                "shop would be busy for ever, or arithmetic, not noise, decide what leaves it"
            )
    popularity_step(plan)
    for server_round in plan.unlike_rounds:
        delta_step(plan, server_round)


def check_start(plan: TrainingPlan, catalogue_size: int) -> None:
    """Refuse a plan whose noise float32 rounds away beside the weights that a new run begins with.

    Server and shops ask the same of each round's state; this is before anybody is asked for one.

    Raises
    ------
    ConfigError
        Naming the keys to change.
    """
    if not plan.private or plan.trust == "federation" or not plan.rounds:
        return  # no noise, noise in whole numbers, or none that is added to weights
    state = initial_state(plan.model, catalogue_size)
    largest = max(float(np.abs(state[name]).max(initial=0.0)) for name in trained_names(plan))
    try:
        lost = any(is_swallowed(plan, number, largest) for number in plan.unlike_rounds)
    except PrivacyError:  # too little for float32 beside nothing at all
        lost = True
    if lost:
        raise ConfigError(
            f"privacy.target_epsilon = {plan.target_epsilon:g} is too large for this plan: it asks "
            f"for so little noise that float32 would round it away beside the model's weights (up "
            f"to {largest:.2g}), and no shop would train. Lower target_epsilon, or let updates be "
            "larger: raise max_grad_norm, first_norms or learning_rate"
        )


def has_groups(model: ModelPlan, catalogue: Catalogue) -> bool:
    """Return whether the catalogue has the columns whose values a model learns as groups."""
    return not missing_columns(model, catalogue)


def with_fitting_groups(model: ModelPlan, catalogue: Catalogue) -> ModelPlan:
    """Return a model that learns the finest feature it has rows for; single products without one.

    For products that lack the columns of the groups that a plan would rather learn.
    """
    fitting = [f for f in catalogue.features if len(f.values) <= model.learned_items]
    chosen = max(fitting, key=lambda f: len(f.values)).name if fitting else ""
    return model.model_copy(update={"groups": chosen})
