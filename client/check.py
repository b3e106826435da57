"""What a shop's engineer wants to know of the shop's data before any training; all of it local."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client.data.assortment import own_products
from client.data.coverage import catalogue_rows, coverage
from client.data.doubts import doubt_of_ids, doubt_of_people, doubt_of_stock
from client.data.mapping import ItemMapping
from client.data.source import open_own_source, shop_mapping, unknown_merchant
from client.data.stocking import published_stock
from client.forecast import PlanFlags, forecast
from client.settings import ShopSettings
from common.errors import ArtifactError, ConfigError, DataError, InputError, PrivacyError
from common.features import Catalogue, read_catalogue
from common.protocol import TrainingPlan
from common.schema import Tables, doubt_of_ratings, record_weights
from common.splitting import doubt_of_times
from common.statement import at_least
from common.tables.contract import BEHAVIOR_WEIGHTS, BEHAVIORS
from common.tables.folders import Progress

#: Customers with fewer records say little of their taste.
LITTLE_HISTORY = 5
SHOWN = 5
#: The plan to price where none is given: ten rounds at half of the shop's cap. For interactions
#: there are none: popularity alone is released.
DEFAULT_ROUNDS = 10
DEFAULT_SHARE = 0.5
TOLD_SECONDS = 2.0


def check_shop(
    path: Path,
    settings: ShopSettings,
    plan: TrainingPlan | None = None,
    stage: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Return what the shop's data hold, what of them can train, and what a plan would cost.

    Nothing is written, and nothing leaves the machine.

    Parameters
    ----------
    path
        Of the settings.
    plan
        What to price; default: ten rounds at half of the shop's cap.
    stage
        Told what is being done, in words.

    Returns
    -------
    dict
        ``shop, source, customers, products, interactions, other_merchants, behaviors, span,
        baskets, bad_rows, catalogue, history, price``, ``stock`` (see
        :func:`client.data.stocking.published_stock`), ``sums`` (``shops`` and ``digest`` of the
        accepted roster, null without one; null where the shop takes part in none), ``problems``:
        sentences on what stops training, none where the shop could train, and ``advice``: what
        would make it better.

    Raises
    ------
    InputError
        If the data can't be read at all, or the plan promises no privacy.
    """
    problems: list[str] = []
    advice: list[str] = []
    stage("reading the shop's records")
    progress = _told(stage)
    tables = open_own_source(settings, "set-aside", progress).tables()
    bad = _bad_rows(settings, tables, problems, progress)
    frame = tables.interactions
    own = frame[(frame["merchant_id"] == settings.merchant_id).to_numpy()]
    others = [name for name in tables.merchant_ids if name != settings.merchant_id]
    if words := unknown_merchant(tables, settings.merchant_id):
        problems.append(f"{words}. Until then it would train on nothing but noise")
    elif own.empty:
        problems.append("the shop has no interactions yet: it would train on nothing but noise")
    if settings.unit == "basket" and "session_id" not in own:
        problems.append(
            'unit = "basket" needs interactions with a session_id column: without it no run can '
            "train here"
        )
    users = np.asarray(own["user_id"].unique(), dtype=object)
    weights = settings.behavior_weights or BEHAVIOR_WEIGHTS
    advice += filter(
        None,
        (
            doubt_of_times(own["timestamp"].to_numpy()),
            doubt_of_ids(users),
            doubt_of_people(tables, settings.merchant_id, users),
            doubt_of_ratings(own, weights, settings.rating_scale),
        ),
    )
    stage("comparing with the catalogue")
    catalogue, mapping = _catalogue(settings, problems)
    found = None
    if catalogue is not None:
        described = _described(settings, catalogue, mapping, advice)
        found = coverage(own, catalogue, mapping, described, problems, advice)
        shelves = tables.stock_of(settings.merchant_id)
        if words := doubt_of_stock(shelves, catalogue, mapping, described):
            advice.append(words)
    weighed = record_weights(own, weights, settings.rating_scale) > 0
    history = None if catalogue is None else _history(own, catalogue, mapping, weighed)
    if found and history and found["share_of_interactions"] and not history["customers"]:
        problems.append(
            "no record of a product of the catalogue weighs anything by behavior_weights and its "
            "rating: it would train on nothing but noise"
        )
    if unnamed := [name for name in _behaviors(own) if name not in weights]:
        advice.append(
            f"behavior_weights does not name {' and '.join(unnamed)}, so such records of the "
            "shop's teach nothing: give each a weight, 0 if that is meant"
        )
    stock = None
    if catalogue is not None:
        stock = published_stock(settings, catalogue, mapping, own, problems, advice)
    sums = _sums(settings, problems if plan and plan.trust == "federation" else advice)
    stage("pricing a plan")
    customers = int(own["user_id"].nunique())
    if settings.cap_delta * customers >= 1:
        advice.append(
            f"cap_delta = {settings.cap_delta:g} promises little to {customers:,} customers: what "
            "publishes some of them whole, each with that chance, would keep it. Take a cap_delta "
            f"far below 1/{customers:,}"
        )
    return {
        "shop": settings.merchant_id,
        "source": _source(settings),
        "customers": customers,
        "products": int(own["item_id"].nunique()),
        "interactions": len(own),
        "other_merchants": len(others),
        "behaviors": _behaviors(own),
        "span": _span(own),
        "baskets": int(_baskets(own)) if "session_id" in own else None,
        "bad_rows": bad,
        "catalogue": found,
        "history": history,
        "stock": stock,
        "sums": sums,
        "price": _price(path, settings, plan, problems, advice),
        "problems": problems,
        "advice": advice,
    }


def _told(stage: Callable[[str], object]) -> Progress:
    """Return what tells, every two seconds at most, how far the reading is."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() >= last + TOLD_SECONDS:
            last = time.monotonic()
            far = f"{done / total:.0%}" if total else f"{done:,} rows"
            stage(f"reading the shop's records: {far}")

    return progress


def _source(settings: ShopSettings) -> dict[str, str]:
    if settings.database is not None:
        return {"kind": "database", "where": settings.database.url}
    return {"kind": "folder", "where": str(settings.data)}


def _bad_rows(
    settings: ShopSettings, tables: Tables, problems: list[str], progress: Progress
) -> dict[str, Any]:
    """Return how many rows are bad and why, with the first of them in words."""
    first = ""
    if tables.set_aside:
        try:
            open_own_source(settings, "refuse", progress).tables()
        except DataError as error:
            first = str(error)
        if settings.bad_rows == "refuse":
            problems.append(
                "bad rows stop all training: mend them, or leave them out with "
                'bad_rows = "set-aside"'
            )
    return {
        "rows": sum(tables.set_aside.values()),
        "reasons": dict(tables.set_aside),
        "first": first,
        "then": settings.bad_rows,
    }


def _behaviors(own: pd.DataFrame) -> dict[str, dict[str, int]]:
    found = {}
    for name in BEHAVIORS:
        rows = own[(own["behavior"] == name).to_numpy()]
        if len(rows):
            users = int(rows["user_id"].nunique())
            found[name] = {"interactions": len(rows), "customers": users}
    return found


def _span(own: pd.DataFrame) -> dict[str, Any] | None:
    if own.empty:
        return None
    first, last = int(own["timestamp"].min()), int(own["timestamp"].max())
    return {
        "first": datetime.fromtimestamp(first, UTC).isoformat(),
        "last": datetime.fromtimestamp(last, UTC).isoformat(),
        "days": (last - first) // 86_400 + 1,
    }


def _baskets(own: pd.DataFrame) -> int:
    return len(own[["user_id", "session_id"]].drop_duplicates())


def _catalogue(
    settings: ShopSettings, problems: list[str]
) -> tuple[Catalogue | None, ItemMapping | None]:
    """Return the catalogue, where there is one that the shop's products can be found in."""
    try:
        catalogue = read_catalogue(settings.catalogue)
    except ArtifactError as error:
        problems.append(f"{error}. What to do: get the catalogue from the federation's operator")
        return None, None
    try:
        return catalogue, shop_mapping(settings)
    except InputError as error:
        problems.append(str(error))
        return None, None


def _described(
    settings: ShopSettings, catalogue: Catalogue, mapping: ItemMapping | None, advice: list[str]
) -> np.ndarray | None:
    """Return what the products that the shop knows beside the catalogue are called at home."""
    if not settings.home.own_products:
        return None
    try:
        products = own_products(settings, catalogue, mapping)
    except DataError as error:
        advice.append(f"the shop's own products can't be read, and adapting would stop: {error}")
        return None
    return None if products is None else products["item_id"].to_numpy(dtype=object)


def _history(
    own: pd.DataFrame,
    catalogue: Catalogue,
    mapping: ItemMapping | None,
    weighed: np.ndarray,
) -> dict[str, Any]:
    """Return how many records the customers have that training would use.

    Parameters
    ----------
    weighed
        (N,) bool: whether a record has a weight.
    """
    names = own["item_id"].cat.categories.to_numpy(dtype=object)
    rows = catalogue_rows(names, catalogue, mapping)
    codes = own["item_id"].cat.codes.to_numpy()
    used = own[(rows[codes] >= 0) & weighed] if len(own) else own
    users = used["user_id"].cat.codes.to_numpy()
    counts = np.bincount(users)[np.unique(users)] if len(users) else np.zeros(0, dtype=np.int64)
    return {
        "customers": len(counts),
        "without": int(own["user_id"].nunique()) - len(counts),
        "with_one": int(np.count_nonzero(counts == 1)),
        "with_little": int(np.count_nonzero(counts < LITTLE_HISTORY)),
        "median": float(np.median(counts)) if len(counts) else 0.0,
        "most": int(counts.max()) if len(counts) else 0,
    }


def _sums(settings: ShopSettings, told: list[str]) -> dict[str, Any] | None:
    """Return the roster of the sums that the shop takes part in, and tell what keeps it out."""
    if settings.secure_sum is None:
        return None
    from client.joining.roster import own_roster  # Few shops need it.

    try:
        found = own_roster(settings.merchant_id, settings.secure_sum)
    except ConfigError as error:
        told.append(f"no secure sums yet: {error}")
        return {"shops": None, "digest": None}
    return {"shops": len(found.keys), "digest": found.digest}


def _price(
    path: Path,
    settings: ShopSettings,
    plan: TrainingPlan | None,
    problems: list[str],
    advice: list[str],
) -> dict[str, Any]:
    """Return what a plan would cost this shop; see :func:`client.forecast.forecast`."""
    flags = PlanFlags(
        rounds=0 if settings.unit == "interaction" else DEFAULT_ROUNDS,
        unit=settings.unit,
        delta=settings.cap_delta,
        target_epsilon=settings.cap_epsilon * DEFAULT_SHARE,
    )
    document = forecast(plan or flags.plan(), [(path, settings)])
    shop = document["shops"][0]
    if plan is not None and shop["reason"]:
        problems.append(f"the shop would not join this plan: {shop['reason']}")
    elif shop["reason"] and not shop["left"]:
        problems.append("nothing is left under the shop's cap_epsilon: no run fits any more")
    elif shop["reason"]:
        # The example is ours, and no reason to stop: what the operator plans may take less.
        advice.append(
            f"ε {at_least(shop['left'])} is left under the shop's cap_epsilon, too little for such "
            "a plan: ask the operator what the next run takes; `client plan --target-epsilon` "
            "prices it"
        )
    if settings.evaluation is not None:
        from client.privacy.evaluation import check_unit  # Few shops need it.

        try:
            check_unit(settings.unit)
        except PrivacyError as error:
            advice.append(str(error))
    if (place := _not_writable(settings.ledger)) is not None:
        problems.append(
            f"{place} cannot be written: nothing trains that is not written to the ledger first. "
            "Look whose it is, and whether its disk is mounted read-only"
        )
    return {"given": plan is not None, **document}


def _not_writable(ledger: Path) -> Path | None:
    """Return what of a ledger and its folder keeps a charge from being written; nothing is tried.

    SQLite keeps a journal in the folder while it writes.
    """
    folder = next(place for place in ledger.absolute().parents if place.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return folder
    return ledger if ledger.exists() and not os.access(ledger, os.W_OK) else None
