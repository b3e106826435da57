"""``client evaluate``: what the global model brings this shop, by the shop's own figures.

The last part of the shop's time span is held back from the mixture and from what the shop can do
alone. The global model is as it came: where its training saw that part, the document says so.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from client.data.assortment import home_catalogue
from client.data.periods import ShopPeriod
from client.home.adapting import drawn, fit_home, fitting, has_seen, last_part, when
from client.home.models import current_model
from client.home.shop import CameHome, Progress, Tail, load_home_model, read_records, untrained
from client.home_settings import TRAINED_PARTS, HomeSettings
from client.settings import ShopSettings
from common.errors import DataError
from common.metrics import CUTOFF, MetricSums, evaluate, paired_bootstrap
from common.scoring import TopLists, top_lists

#: Compared with what the shop can do alone, customer by customer.
COMPARED = ("ndcg@20", "recall@20", "tail_ndcg@20")
_FEW = 30
# The widest row that scoring a customer makes besides the scores themselves: of the content.
_CONTENT_WIDTH = 2**15

Score = Callable[[sparse.csr_matrix], np.ndarray]


def evaluate_shop(
    settings: ShopSettings,
    model_folder: Path | None = None,
    customers: int = 0,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure the global model, what the shop can do alone, and the mixture of both.

    Parameters
    ----------
    model_folder
        The global model; default: the one that came home last.
    customers
        Measure at most so many, drawn by chance; 0: all.

    Returns
    -------
    dict
        ``shop, model, train_until, validation_from, until, customers, asked, figures`` (``global,
        own, mixed``: metric -> value), ``vs_own`` (``global, mixed``: metric -> ``mean, low, high,
        p``), ``weights`` (``own, mixed``), ``seen`` (whether the global model may have seen what
        is asked for) and ``notes``.

    Raises
    ------
    InputError
        If there is no model, the data can't be read, or they hold nothing to ask for.
    """
    progress("reading the catalogue and the model")
    catalogue = home_catalogue(settings)
    chosen = current_model(settings.models) if model_folder is None else model_folder.resolve()
    home = load_home_model(chosen, catalogue)
    progress("reading the shop's records")
    records = read_records(settings, catalogue)
    if not len(records.events):
        raise DataError("the shop has no records of products in the catalogue: nothing to measure")
    first, last = records.span
    end = last_part(first, last + 1, settings.home.test_share)
    begin = last_part(first, end, settings.home.validation_share)
    half_life = home.plan.half_life_days
    before = records.events.before(end)
    period = ShopPeriod.of(before, records.events.since(end), catalogue.size, half_life, end)
    asked = np.flatnonzero(np.diff(period.targets.indptr))
    if not len(asked):
        raise DataError(
            f"no customer with records before {when(end)} bought anything new since: there is "
            "nothing to ask for. Measure when there are more records, or set home.test_share"
        )
    known = np.flatnonzero(np.diff(period.history.indptr))
    if customers:
        known = drawn(known, customers, settings.merchant_id)
    history, targets = period.history[known], period.targets[known]
    tail = Tail(home.model, before).mask
    found: dict[str, MetricSums] = {}
    weights: dict[str, Mapping[str, float]] = {}

    def measured(name: str, score: Score) -> None:
        progress(f"ranking for {len(known)} customers: {name}")
        found[name] = measure_lists(score, history, targets, tail, records.stock)[0]

    def mixture(name: str, around: CameHome | None, how: HomeSettings) -> None:
        model = untrained(catalogue) if around is None else around.model
        fitted, _ = fit_home(
            model,
            half_life,
            records,
            how,
            settings.home.validation_customers,
            begin,
            end,
            lambda text: progress(f"{name}: {text}"),
        )
        weights[name] = fitted.mixing_weights
        measured(name, fitted.scores)

    measured("global", home.model.scores)
    mixture("own", None, settings.home.own.without(*TRAINED_PARTS))
    mixture("mixed", home, fitting(home, settings.home.mixed))
    count = int(np.count_nonzero(np.diff(targets.indptr)))
    seen = has_seen(home, end)
    return {
        "shop": settings.merchant_id,
        "model": home.manifest.version,
        "validation_from": when(begin),
        "train_until": when(end),
        "until": when(last),
        "customers": len(known),
        "asked": count,
        "figures": {name: sums.summary() for name, sums in found.items()},
        "vs_own": {
            name: {
                metric: paired_bootstrap(
                    found[name].per_customer(metric), found["own"].per_customer(metric), seed=0
                )
                for metric in COMPARED
            }
            for name in ("global", "mixed")
        },
        "weights": {name: dict(chosen) for name, chosen in weights.items()},
        "seen": seen,
        "notes": _notes(home, end, count, seen=seen),
    }


def measure_lists(
    score: Score,
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
    stock: np.ndarray | None = None,
    quintiles: np.ndarray | None = None,
) -> tuple[MetricSums, TopLists, TopLists]:
    """Rank for every customer with a history and hold the lists against what came next.

    Parameters
    ----------
    score
        Returns the (B, n) scores of (B, n) histories.
    history, targets
        (U, n) of the same customers.
    tail, stock
        (n,) bool; without ``stock`` everything may be listed.

    Returns
    -------
    tuple
        The sums, and the lists of all products and of tail products; those of a customer without a
        history are empty.
    """
    allowed = (stock, tail if stock is None else tail & stock)
    lists = top_lists(
        lambda rows: score(history[rows]),
        history.shape[0],
        max(history.shape[1], _CONTENT_WIDTH),
        CUTOFF,
        exclude=history,
        allowed=allowed,
    )
    known = np.diff(history.indptr) > 0
    everything, tails = (
        TopLists(np.where(known[:, None], found.rows, -1), found.scores) for found in lists
    )
    sums = evaluate(everything.rows, tails.rows, targets, tail, quintiles)
    return sums, everything, tails


def _notes(home: CameHome, end: int, asked: int, *, seen: bool) -> list[str]:
    notes = []
    if seen:
        how = "with differential privacy" if home.plan.private else "without privacy"
        notes.append(
            f"the global model may have been trained, {how}, on records since {when(end)}, which "
            "are asked for here: global and mixed may look better than they are. Measure again "
            "when later records have come, or an older model with --model"
        )
    if asked < _FEW:
        notes.append(f"only {asked} customers could be asked: chance alone moves these figures far")
    return notes
