"""From scores to lists: top-k in blocks, filters, and the tail dial."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from common.errors import FedtailError, InputError

#: Returns ``(B, n)`` scores of the customers in a slice.
ScoreFunction = Callable[[slice], np.ndarray]

_BLOCK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class TopLists:
    """Lists of ``(U, k)`` rows (-1 where too short) and scores, best first."""

    rows: np.ndarray
    scores: np.ndarray


def top_k(
    scores: np.ndarray,
    k: int,
    exclude: sp.csr_matrix | None = None,
    allowed: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best products of each customer; of equals, the earlier row comes first.

    Parameters
    ----------
    scores
        ``(B, n)`` float; left as it is. ``-inf`` is never listed.
    exclude
        ``(B, n)``; stored entries are never listed (what the customer has bought).
    allowed
        ``(n,)`` bool; only these are listed.

    Returns
    -------
    rows, scores
        ``(B, k)`` int64 and float; -1 and ``-inf`` where a list is shorter than k.

    Raises
    ------
    FedtailError
        If a listed score would be NaN.
    """
    n_customers, n_items = scores.shape
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    if exclude is not None:
        scores = scores.copy() if allowed is None else scores
        customers = np.repeat(np.arange(n_customers), np.diff(exclude.indptr))
        scores[customers, exclude.indices] = -np.inf
    width = min(k, n_items)
    rows = np.full((n_customers, k), -1, np.int64)
    best = np.full((n_customers, k), -np.inf, scores.dtype)
    if width:
        chosen = _best(scores, width)
        values = np.take_along_axis(scores, chosen, axis=1)
        if np.isnan(values).any():
            raise FedtailError("a score is not a number: the model that gave it is damaged")
        order = np.argsort(-values, axis=1, kind="stable")
        rows[:, :width] = np.take_along_axis(chosen, order, axis=1)
        best[:, :width] = np.take_along_axis(values, order, axis=1)
        rows[np.isneginf(best)] = -1
    return rows, best


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return ``(B, k)`` rows of the k largest, ascending by row; at the edge, earlier rows win."""
    n_items = scores.shape[1]
    chosen = np.sort(np.argpartition(scores, n_items - k, axis=1)[:, n_items - k :], axis=1)
    edge = np.take_along_axis(scores, chosen, axis=1).min(axis=1)
    # argpartition picks any of several products that tie at the edge: choose those lists again.
    for customer in np.flatnonzero((scores >= edge[:, None]).sum(axis=1) > k):
        above = np.flatnonzero(scores[customer] > edge[customer])
        level = np.flatnonzero(scores[customer] == edge[customer])
        chosen[customer] = np.sort(np.concatenate([above, level[: k - above.size]]))
    return chosen


def score_blocks(
    score: ScoreFunction, n_customers: int, n_items: int, max_bytes: int = _BLOCK_BYTES
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (customers, ``(B, n)`` scores) so that one block stays within ``max_bytes``.

    Sized for float32; never less than one customer, so a million products take 4 MB at least.
    """
    size = max(1, max_bytes // (4 * max(1, n_items)))
    for start in range(0, n_customers, size):
        block = slice(start, min(start + size, n_customers))
        yield block, score(block)


def top_lists(
    score: ScoreFunction,
    n_customers: int,
    n_items: int,
    k: int,
    *,
    exclude: sp.csr_matrix | None = None,
    allowed: tuple[np.ndarray | None, ...] = (None,),
) -> tuple[TopLists, ...]:
    """Score each customer once and return one set of lists for each filter in ``allowed``.

    ``allowed=(stock, stock & tail)``, for one, gives the lists that
    :func:`common.metrics.evaluate` wants. Memory: one block and the lists.
    """
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in allowed]
    for block, scores in score_blocks(score, n_customers, n_items):
        seen = None if exclude is None else exclude[block]
        for lists, mask in zip(found, allowed, strict=True):
            lists.append(top_k(scores, k, seen, mask))
    none = (np.empty((0, k), np.int64), np.empty((0, k), np.float32))
    return tuple(
        TopLists(*(np.concatenate(parts) for parts in zip(*(lists or [none]), strict=True)))
        for lists in found
    )


def re_rank(
    rows: np.ndarray, scores: np.ndarray, k: int, dial: float, exposure: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn candidates towards products that are rarely shown.

    Each candidate's place is decided by ``(1 - dial) * relevance + dial * novelty``, with
    ``relevance = (s - s_min) / (s_max - s_min)`` over the customer's candidates and
    ``novelty = 1 - log(1 + e_i) / log(1 + e_max)``, e being exposure: the linear trade-off of
    xQuAD (Abdollahpouri, Burke & Mobasher 2019, eq. 1) with a static novelty, so one pass is
    enough. At 0 the order is relevance alone, at 1 exposure alone; ties keep their order.

    Parameters
    ----------
    rows, scores
        ``(B, C)`` candidates of :func:`top_k`, C well above k.
    dial
        From 0 to 1.
    exposure
        ``(n,)`` how often each product is shown, or its customers in training; not negative.

    Returns
    -------
    rows, scores
        ``(B, min(k, C))``; scores are those that came in, so explanations still hold.

    Raises
    ------
    InputError
        If the dial is outside its range.
    """
    if not 0 <= dial <= 1:
        raise InputError(f"the tail dial goes from 0 to 1, not {dial}")
    real = rows >= 0
    low = np.where(real, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(real, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    span = np.where(high > low, high - low, 1)
    relevance = np.where(real, scores - low, 0) / span
    most = max(float(np.log1p(exposure.max(initial=0))), 1e-12)
    novelty = 1 - np.log1p(exposure[rows]) / most
    merit = np.where(real, (1 - dial) * relevance + dial * novelty, -np.inf)
    order = np.argsort(-merit, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
