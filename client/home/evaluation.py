"""``client evaluate``: what the global model brings this shop, by the shop's own figures.

The last part of the shop's time span is held back from the mixture and from what the shop can do
alone. The global model is as it came: where its training saw that part, the document says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from client.data.assortment import home_catalogue
from client.data.periods import ShopPeriod
from client.home.adapting import drawn, fit_home, fitting, has_seen, last_part
from client.home.models import current_model
from client.home.shop import (
    CameHome,
    HomeRecords,
    Progress,
    Tail,
    load_home_model,
    read_records,
    untrained,
)
from client.home_settings import TRAINED_PARTS
from client.settings import ShopSettings
from common.errors import DataError
from common.metrics import CUTOFF, MetricSums, evaluate, paired_bootstrap
from common.scoring import TopLists, top_lists
from common.splitting import iso

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
    held = _HeldBack.of(settings, home, records, customers)
    found = {"global": held.measured("global", home.model.scores, progress)}
    weights: dict[str, Mapping[str, float]] = {}
    for name, model, how in (
        ("own", untrained(catalogue), settings.home.own.without(*TRAINED_PARTS)),
        ("mixed", home.model, fitting(home, settings.home.mixed)),
    ):
        fitted, _ = fit_home(
            model,
            home.plan.half_life_days,
            records,
            how,
            settings.home.validation_customers,
            held.begin,
            held.end,
            partial(_told, progress, name),
        )
        weights[name] = fitted.mixing_weights
        found[name] = held.measured(name, fitted.scores, progress)
    seen = has_seen(home, held.end)
    return {
        "shop": settings.merchant_id,
        "model": home.manifest.version,
        "validation_from": iso(held.begin),
        "train_until": iso(held.end),
        "until": iso(records.span[1]),
        "customers": held.history.shape[0],
        "asked": held.asked,
        "figures": {name: sums.summary() for name, sums in found.items()},
        "vs_own": {name: _against(found[name], found["own"]) for name in ("global", "mixed")},
        "weights": {name: dict(chosen) for name, chosen in weights.items()},
        "seen": seen,
        "notes": _notes(home, held.end, held.asked, seen=seen),
    }


@dataclass(frozen=True)
class _HeldBack:
    """What customers of a shop are ranked for: what they bought since ``end``, by all before it.

    Attributes
    ----------
    begin, end
        Epoch seconds: from ``begin`` to ``end`` weights are chosen, and from ``end`` on asked for.
    history, targets
        (U, n) of the same customers, all with a history; not all have a target.
    tail, stock
        (n,) bool; without ``stock`` everything may be listed.
    """

    begin: int
    end: int
    history: sparse.csr_matrix
    targets: sparse.csr_matrix
    tail: np.ndarray
    stock: np.ndarray | None

    @classmethod
    def of(
        cls, settings: ShopSettings, home: CameHome, records: HomeRecords, customers: int
    ) -> "_HeldBack":
        """Split a shop's records; of so many customers at most, 0: all.

        Raises
        ------
        DataError
            If nobody with a history bought anything new.
        """
        first, last = records.span
        end = last_part(first, last + 1, settings.home.test_share)
        begin = last_part(first, end, settings.home.validation_share)
        before, n = records.events.before(end), home.model.catalogue.size
        half_life = home.plan.half_life_days
        period = ShopPeriod.of(before, records.events.since(end), n, half_life, end)
        if not period.targets.nnz:
            raise DataError(
                f"no customer with records before {iso(end)} bought anything new since: there is "
                "nothing to ask for. Measure when there are more records, or set home.test_share"
            )
        known = np.flatnonzero(np.diff(period.history.indptr))
        if customers:
            known = drawn(known, customers, settings.merchant_id)
        tail = Tail(home.model, before).mask
        return cls(begin, end, period.history[known], period.targets[known], tail, records.stock)

    @property
    def asked(self) -> int:
        """How many customers have something to find."""
        return int(np.count_nonzero(np.diff(self.targets.indptr)))

    def measured(self, name: str, score: Score, progress: Progress) -> MetricSums:
        """Return what the lists by these scores are worth."""
        progress(f"ranking for {self.history.shape[0]} customers: {name}")
        return measure_lists(score, self.history, self.targets, self.tail, self.stock)[0]


def measure_lists(
    score: Score,
    history: sparse.csr_matrix,
    targets: sparse.csr_matrix,
    tail: np.ndarray,
    stock: np.ndarray | None,
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


def _against(sums: MetricSums, own: MetricSums) -> dict[str, dict[str, float]]:
    """Return metric -> ``mean, low, high, p`` of the gain over what the shop can do alone."""
    return {
        metric: paired_bootstrap(sums.per_customer(metric), own.per_customer(metric), seed=0)
        for metric in COMPARED
    }


def _told(progress: Progress, name: str, text: str) -> None:
    progress(f"{name}: {text}")


def _notes(home: CameHome, end: int, asked: int, *, seen: bool) -> list[str]:
    notes = []
    if seen:
        how = "with differential privacy" if home.plan.private else "without privacy"
        notes.append(
            f"the global model may have been trained, {how}, on records since {iso(end)}, which "
            "are asked for here: global and mixed may look better than they are. Measure again "
            "when later records have come, or an older model with --model"
        )
    if asked < _FEW:
        notes.append(f"only {asked} customers could be asked: chance alone moves these figures far")
    return notes
