"""How large numbers may be: of a reply, and of the state that is made of replies.

How many customers a shop has is its own secret, so the bound on a reply is one that no shop comes
near. It keeps one reply from making a state that no shop can work with; it is no defence against
poison (``docs/poison.md``).
"""

import numpy as np

from common.errors import RunError
from common.grid import is_swallowed
from common.protocol import RELEASE, TRAIN, Arrays, TrainingPlan
from server.job import Job

# A shop that has more customers than this is none, and noise is never so many times as large as its
# standard deviation.
_MOST_UNITS, _MOST_SPREADS = 2.0**32, 32.0
# Of a number that no plan bounds: there is no clipping norm without privacy.
_MOST = 2.0**40


def largest(plan: TrainingPlan, kind: str, server_round: int) -> float:
    """Return how large a number of a reply can be that is what the plan asks for; 0: no bound.

    A number of a private release holds 1 of each unit at most, and one of an update the clipping
    norm of each in each local step, as far as the learning rate moves. The bound is that of 2^32
    units, and noise. Without privacy it is 2^40. What is released of evaluation has a shop's own
    noise in it, and is added up where nothing overflows.
    """
    if kind not in (RELEASE, TRAIN):
        return 0.0
    if not plan.private:
        return _MOST
    if kind == RELEASE:
        return _MOST_UNITS + _MOST_SPREADS * plan.popularity_noise_multiplier
    unit = plan.clipping_norm(server_round) * plan.learning_rate / plan.batch_normalizer
    # What is moved in a step goes on in all that follow, where shops use momentum.
    moves = plan.local_steps**2
    return unit * moves * (_MOST_UNITS + _MOST_SPREADS * plan.noise_multiplier)


def refusal(job: Job, server_round: int, state: Arrays, memory: Arrays) -> str:
    """Return why no run can go on from what was made in a round; empty where it can.

    ``memory`` is the server optimiser's.
    """
    plan = job.plan
    for name, array in {**memory, **state}.items():
        if not np.isfinite(array).all():
            return f"{name} would hold numbers that are not finite"
    if not plan.private or plan.trust == "federation" or server_round >= plan.rounds:
        return ""
    if not plan.noise_multiplier:
        return ""  # shops refuse such a plan for what it is
    # As each shop asks before it trains.
    most = max((float(np.abs(state[name]).max(initial=0.0)) for name in job.trained), default=0.0)
    if any(is_swallowed(plan, each, most) for each in _norms_from(plan, server_round + 1)):
        return f"the state would hold {most:.4g}, beside which float32 rounds the noise away"
    return ""


def check_start(job: Job, server_round: int, state: Arrays, memory: Arrays) -> None:
    """Refuse to begin with, or to go on from, what every shop would refuse.

    Raises
    ------
    RunError
        Naming what is wrong with it.
    """
    if why := refusal(job, server_round, state, memory):
        raise RunError(
            f"there is nothing to go on from after round {server_round}: {why}. Begin a new run, "
            "from another model or with another plan"
        )


def _norms_from(plan: TrainingPlan, server_round: int) -> list[int]:
    """Return rounds, from this one on, that have all the clipping norms of those to come."""
    early = range(server_round, min(len(plan.first_norms), plan.rounds) + 1)
    return [*early, plan.rounds]
