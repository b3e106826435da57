"""A shop's records as privacy units: who one unit is, and what it holds.

A unit's row is made of its own records, released state and public constants alone. Random choices
inside a unit come from a counter-based hash of (key, unit, place), not from one stream over all
units, and a unit goes by a digest of its own records there, not by its number: neither another
unit's records nor one unit more can shift them.
"""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from common.protocol import TrainingPlan, Unit
from common.schema import ShopEvents

logger = logging.getLogger(__name__)

_DAY = 86_400.0


@dataclass(frozen=True)
class Units:
    """The units of one shop.

    Attributes
    ----------
    history
        (U, n) float32 weights of each unit's distinct products, see :func:`unit_histories`.
    owners
        (U,) int64: the user of each unit.
    """

    history: sparse.csr_matrix
    owners: np.ndarray


def event_weights(events: ShopEvents, half_life_days: float, reference_time: int) -> np.ndarray:
    """Return (N,) float32: behaviour weight times ``2^(-age / half-life)``.

    Age counts from the plan's date, a public constant; a half-life of 0 forgets nothing.
    """
    if not half_life_days:
        return events.weights
    age = np.maximum(reference_time - events.timestamps, 0) / (_DAY * half_life_days)
    weights: np.ndarray = (events.weights * np.exp2(-age)).astype(np.float32)
    return weights


def unit_histories(
    events: ShopEvents,
    unit: Unit,
    n_items: int,
    weights: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> Units:
    """Return the units of a shop; a product counts once, with its largest weight.

    Parameters
    ----------
    unit
        ``customer``: all records of a user. ``basket``: all of one session. ``interaction``: one
        record.
    weights
        (N,) weights of the records; the behaviours' own without it.
    among
        (N,) bool: the only records that count. A unit without any of them stays, with an empty
        history: the numbers of all others, and so their draws, do not tell of it.
    """
    if unit == "customer":
        codes, owners = events.users.astype(np.int64), np.arange(len(events.user_ids))
    elif unit == "basket":
        # Plans that need sessions are checked before; a shop without records needs no column.
        assert events.sessions is not None or not len(events)
        sessions = np.zeros(0, np.int32) if events.sessions is None else events.sessions
        found, first, codes = np.unique(sessions, return_index=True, return_inverse=True)
        owners = events.users[first].astype(np.int64)
        codes = codes.astype(np.int64)
        assert len(found) == len(owners)
    else:
        codes, owners = np.arange(len(events)), events.users.astype(np.int64)
    values = events.weights if weights is None else weights
    order = np.lexsort((-values, events.items, codes))
    if among is not None:
        order = order[among[order]]
    key = codes[order] * n_items + events.items[order]
    first_of = np.ones(len(key), dtype=bool)
    first_of[1:] = key[1:] != key[:-1]
    kept = order[first_of]
    shape = (len(owners), n_items)
    entries = (values[kept].astype(np.float32), (codes[kept], events.items[kept]))
    return Units(sparse.csr_matrix(entries, shape=shape), owners)


def planned_units(
    plan: TrainingPlan, events: ShopEvents, n_items: int, among: np.ndarray | None = None
) -> Units:
    """Return the units that a plan protects, weighted as it says; see :func:`unit_histories`."""
    weights = event_weights(events, plan.half_life_days, plan.reference_time)
    return unit_histories(events, plan.unit, n_items, weights, among)


def of_round(plan: TrainingPlan, events: ShopEvents, server_round: int) -> np.ndarray:
    """Return (N,) bool of the records that a round counts; round 0 is the popularity release.

    Up to ``plan.tuning_round``, the release among them, those before ``plan.validation_from``
    alone: what a shop tunes its own mixture on then is new to all that it is given. And rounds
    hold rows against the released popularity: had that seen later records than they, what had
    become less popular since would stand out in every row. Records before ``plan.train_from``
    count in the release alone.
    """
    among = np.ones(len(events), dtype=bool)
    if server_round and plan.train_from:
        among &= events.timestamps >= plan.train_from
    if plan.tuning_round and server_round <= plan.tuning_round:
        among &= events.timestamps < plan.validation_from
    return among


def tell_if_none(plan: TrainingPlan, server_round: int, events: ShopEvents) -> None:
    """Say in the shop's own log that all its records are older than the model a run goes on from.

    Nothing is said of rounds that leave the validation weeks out: of a shop that is newer than
    they, later rounds learn, and its tables are up to date.
    """
    since = plan.train_from if server_round else 0
    if since and len(events) and not (events.timestamps >= since).any():
        # To refuse would tell whoever asked that the shop has none.
        logger.warning(
            "data=read records=none: all of the shop's records are older than the model that the "
            "run goes on from, and the shop takes part with noise alone. If that is not so, bring "
            "the shop's tables up to date: python -m client check tells their days"
        )


def round_units(
    plan: TrainingPlan,
    server_round: int,
    events: ShopEvents,
    n_items: int,
    stocked: np.ndarray | None,
) -> Units:
    """Return the units of a round, with the records that it counts: :func:`of_round`.

    Of those, where ``stocked`` is given, the ones of products that the shop stocks: catalogue rows
    of the published table, so what decides over a unit's record is public and its own.
    """
    among = of_round(plan, events, server_round)
    if stocked is not None:
        listed = np.zeros(n_items, dtype=bool)
        listed[stocked] = True
        among &= listed[events.items]
    return planned_units(plan, events, n_items, among)


def unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the matrix with every row scaled to Euclidean norm 1; an empty row stays empty.

    In float64: weights of long ago have squares that float32 rounds to 0 or up to its smallest
    number, and a row scaled by such a norm could be any length.
    """
    wide = matrix.astype(np.float64)
    norms = np.sqrt(np.asarray(wide.multiply(wide).sum(axis=1)).ravel())
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return sparse.csr_matrix(sparse.diags_array(scale) @ wide)


def unit_digests(units: Units, user_ids: np.ndarray) -> np.ndarray:
    """Return (U,) uint64 that each unit's own draws come of: of its user and of what it holds.

    Numbers would not do: one customer more, ahead of others, moves theirs, and by other draws so
    moves what each of them adds. Baskets of one customer that hold the same have one digest.
    """
    names = (str(name).encode("utf-8", "surrogatepass") for name in user_ids)
    digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
    users = np.frombuffer(digests, "<u8").astype(np.uint64)
    history = units.history
    with np.errstate(over="ignore"):
        weights = np.ascontiguousarray(history.data, np.float32).view(np.uint32)
        entries = _mix(_mix(history.indices.astype(np.uint64)) + weights.astype(np.uint64))
        # Modulo 2^64, so that a row's sum is its own to the bit, whatever is before it.
        sums = np.append(np.uint64(0), np.cumsum(entries, dtype=np.uint64))
        held = sums[history.indptr[1:]] - sums[history.indptr[:-1]]
        return _mix(users[units.owners] + _mix(held))


def uniforms(key: int, units: np.ndarray, places: int) -> np.ndarray:
    """Return (B, places) float64 in [0, 1): SplitMix64 (Steele et al. 2014) of (key, unit, place).

    The draw of a unit depends on the key and its own number, or digest, alone.
    """
    with np.errstate(over="ignore"):
        seed = np.uint64(key) + units.astype(np.uint64)[:, None] * np.uint64(0xD1342543DE82EF95)
        state = _mix(seed) + np.arange(1, places + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
