"""How well the global model serves a shop's customers, released with noise.

Only the *global* model is measured, and popularity as it was released. A customer's figures then
follow from public state and their own records: one customer more or less moves the sums by that
customer's vector alone. With a home mixture they would not: it is fitted on all customers, so one
more changes what every other one is shown, and no clipping bounds that.

Each customer's products stand in the order of their first records. The last fifth of them is held
back, the lists are made from the others, and rank the whole catalogue. The global model was trained
on all of them, within its own ε. No time or threshold here comes from the shop's records.
"""

import math

import numpy as np
from scipy import sparse

from client.home_settings import EvaluationSettings
from client.privacy.events import EVALUATED, Event
from client.privacy.noise import NoiseSource
from common.accounting import calibrate
from common.errors import PrivacyError
from common.evaluation import EVALUATION, EVALUATION_NAMES, EVALUATION_SCALES
from common.features import Catalogue
from common.grid import grid_step, on_grid
from common.metrics import CUTOFF, evaluate, tail_mask
from common.model import GlobalModel
from common.protocol import POPULARITY, Arrays, Unit
from common.schema import ShopEvents
from common.scoring import top_k

#: Of a customer's products one in so many is held back, the last ones.
_ONE_IN = 5
# Contributions are multiples of it, so that sums of millions in float64 are exact in any order.
_GRAIN = 2.0**-30


def check_unit(unit: Unit) -> None:
    """Raise :class:`PrivacyError` unless a shop that protects this unit can release figures."""
    if unit != "customer":
        raise PrivacyError(
            f'a shop with unit = "{unit}" can release no figures: they are of whole customers. '
            "Take out [evaluation]"
        )


def evaluation_event(
    settings: EvaluationSettings, unit: Unit, run_id: str, *, noise: str = ""
) -> Event:
    """Return what one release costs, with the noise that the shop's own ε asks for.

    Parameters
    ----------
    unit
        What the shop protects: only whole customers can be measured.
    noise
        Name of the shop's noise source, kept with the event.

    Raises
    ------
    PrivacyError
        If the shop protects another unit than a customer.
    """
    check_unit(unit)
    multiplier, _ = calibrate(settings.epsilon, settings.delta, 1.0, 1.0, 0)
    parameters: dict[str, object] = {"max_norm": 1.0, "trust": "shop"}
    if noise:
        parameters["noise"] = noise
    return Event(
        mechanism=EVALUATED,
        noise_multiplier=multiplier,
        sample_rate=1.0,
        steps=1,
        unit=unit,
        run_id=run_id,
        parameters=parameters,
    )


def release_evaluation(
    model: GlobalModel,
    events: ShopEvents,
    catalogue: Catalogue,
    noise_multiplier: float,
    noise: NoiseSource,
) -> Arrays:
    """Return the noisy sums of all customers' vectors.

    Parameters
    ----------
    model
        As it was released.
    noise_multiplier
        Of :func:`evaluation_event`: the noise's standard deviation, since each vector's norm is 1
        at most.

    Returns
    -------
    dict
        ``evaluation`` (K,) float32, on a fixed grid; :mod:`common.evaluation` reads it.

    Raises
    ------
    PrivacyError
        If there would be no noise.
    """
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise PrivacyError("figures leave a shop with noise only: noise_multiplier is not above 0")
    sums = contributions(model, events, catalogue).sum(axis=0)
    sums = sums + noise.normal(len(EVALUATION_NAMES), noise_multiplier)
    return {EVALUATION: on_grid(sums, grid_step(noise_multiplier))}


def contributions(model: GlobalModel, events: ShopEvents, catalogue: Catalogue) -> np.ndarray:
    """Return (U, K) float64: what each customer adds, a vector of norm 1 at most.

    A customer with fewer than two products adds nothing. Customers are scored one at a time: in a
    batch, the last bits of a score could depend on who else is in it.
    """
    n = catalogue.size
    tail = tail_mask(np.asarray(model.state[POPULARITY]))
    offered = catalogue.offered
    popular = np.asarray(model.state[POPULARITY])[None, :]
    rows = np.zeros((len(events.user_ids), len(EVALUATION_NAMES)))
    for user, (start, stop) in enumerate(zip(events.offsets[:-1], events.offsets[1:], strict=True)):
        items, weights = _in_order(
            events.items[start:stop], events.timestamps[start:stop], events.weights[start:stop]
        )
        held = max(len(items) // _ONE_IN, 1)
        if len(items) <= held:
            continue
        history = _row(items[:-held], weights[:-held], n)
        targets = _row(items[-held:], np.ones(held, np.float32), n)
        figures = [
            _figures(scores, history, targets, tail, offered)
            # A model whose numbers overflow for some histories must not end in an error for them.
            for scores in (np.nan_to_num(model.scores(history)), popular)
        ]
        has_tail = float(tail[items[-held:]].any())
        rows[user] = (1.0, has_tail, *figures[0], *figures[1])
    kept: np.ndarray = np.floor(np.clip(rows, 0.0, 1.0) * EVALUATION_SCALES / _GRAIN) * _GRAIN
    return kept


def _figures(
    scores: np.ndarray,
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
    offered: np.ndarray,
) -> tuple[float, float]:
    """Return one customer's ndcg@20 and tail_ndcg@20, 0 where there is none."""
    lists = [
        top_k(scores, CUTOFF, exclude=history, allowed=allowed)[0]
        for allowed in (offered, offered & tail)
    ]
    sums = evaluate(lists[0], lists[1], targets, tail)
    found = np.nan_to_num([sums.ndcg[0], sums.tail_ndcg[0]])
    return float(found[0]), float(found[1])


def _in_order(
    items: np.ndarray, timestamps: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a customer's distinct products by their first record, and their largest weights."""
    order = np.lexsort((items, timestamps))
    distinct, first, places = np.unique(items[order], return_index=True, return_inverse=True)
    largest = np.zeros(len(distinct), np.float32)
    np.maximum.at(largest, places, weights[order])
    by_time = np.argsort(first, kind="stable")
    return distinct[by_time], largest[by_time]


def _row(items: np.ndarray, weights: np.ndarray, n: int) -> sparse.csr_matrix:
    order = np.argsort(items)
    indptr = np.array([0, len(items)])
    return sparse.csr_matrix((weights[order], items[order], indptr), shape=(1, n))
