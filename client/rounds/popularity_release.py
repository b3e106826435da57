"""The first exchange of a run: how often each product is bought, by so many units, with noise.

Arrays in, arrays out, as in :mod:`client.training`; without its libraries, which take seconds to
load.
"""

import numpy as np

from client.privacy.noise import NoiseSource
from client.privacy.whole_rows import whole_rows
from client.units import round_units, unit_rows
from common.grid import on_grid, popularity_step
from common.protocol import POPULARITY, Arrays, TrainingPlan
from common.schema import ShopEvents


def release_popularity(
    plan: TrainingPlan,
    events: ShopEvents,
    n_items: int,
    noise: NoiseSource,
    stocked: np.ndarray | None = None,
) -> Arrays:
    """Return the shop's private popularity histogram.

    Every unit's row is scaled to norm 1, so adding or removing a unit moves the sum by at most 1.
    Which records count: :func:`client.units.of_round`.

    Parameters
    ----------
    stocked
        (k,) ascending catalogue rows that the shop stocks by the published table, and all that its
        records may be of to count; None: it stocks the whole catalogue.

    Returns
    -------
    dict
        ``popularity`` (n,) float32, or (k,) of what is stocked: the sum over units, plus noise of
        standard deviation ``popularity_noise_multiplier``, on the plan's grid.
    """
    units = round_units(plan, 0, events, n_items, stocked)
    counts = np.asarray(unit_rows(units.history).sum(axis=0), dtype=np.float64).ravel()
    if stocked is not None:
        counts = counts[stocked]
    if plan.private:
        counts = counts + noise.normal(len(counts), plan.popularity_noise_multiplier)
    return {POPULARITY: on_grid(counts, popularity_step(plan))}


def whole_popularity(
    plan: TrainingPlan, events: ShopEvents, n_items: int, stocked: np.ndarray | None = None
) -> np.ndarray:
    """Return the shop's popularity histogram (n,) int64 in whole steps, before its noise.

    As :func:`release_popularity`, for a secure sum: 0 for what is not stocked.
    """
    units = round_units(plan, 0, events, n_items, stocked)
    return whole_rows(unit_rows(units.history), plan.noise_steps)
