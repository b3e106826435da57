"""What a shop's engineer wants to know of the shop's data before any training; all of it local."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from client.forecast import PlanFlags, forecast
from client.settings import ShopSettings
from client.source import open_source
from common.errors import ArtifactError, DataError
from common.features import Catalogue, read_catalogue
from common.protocol import TrainingPlan
from common.schema import BEHAVIOR_WEIGHTS, BEHAVIORS, Tables

#: Customers with fewer records say little of their taste.
LITTLE_HISTORY = 5
SHOWN = 5
#: The plan to price where none is given: ten rounds at half of the shop's cap.
DEFAULT_ROUNDS = 10
DEFAULT_SHARE = 0.5


def check_shop(
    path: Path, settings: ShopSettings, plan: TrainingPlan | None = None
) -> dict[str, Any]:
    """Return what the shop's data hold, what of them can train, and what a plan would cost.

    Nothing is written, and nothing leaves the machine.

    Parameters
    ----------
    path
        Of the settings.
    plan
        What to price; default: ten rounds at half of the shop's cap.

    Returns
    -------
    dict
        ``shop, source, customers, products, interactions, other_merchants, behaviors, span,
        baskets, bad_rows, catalogue, history, price`` and ``problems``: a list of sentences, empty
        where the shop could train.

    Raises
    ------
    InputError
        If the data can't be read at all, or the plan promises no privacy.
    """
    tables = open_source(settings, "set-aside").tables()
    problems: list[str] = []
    bad = _bad_rows(settings, tables, problems)
    frame = tables.interactions
    own = frame[(frame["merchant_id"] == settings.merchant_id).to_numpy()]
    others = [name for name in tables.merchant_ids if name != settings.merchant_id]
    if others and settings.merchant_id not in tables.merchant_ids:
        problems.append(
            f"the data know no merchant {settings.merchant_id!r}, only "
            f"{', '.join(map(repr, others[:SHOWN]))}: correct merchant_id"
        )
    elif own.empty:
        problems.append("the shop has no interactions yet: it would train on nothing but noise")
    catalogue = _catalogue(settings, problems)
    weights = settings.behavior_weights or BEHAVIOR_WEIGHTS
    return {
        "shop": settings.merchant_id,
        "source": _source(settings),
        "customers": int(own["user_id"].nunique()),
        "products": int(own["item_id"].nunique()),
        "interactions": len(own),
        "other_merchants": len(others),
        "behaviors": _behaviors(own),
        "span": _span(own),
        "baskets": int(_baskets(own)) if "session_id" in own else None,
        "bad_rows": bad,
        "catalogue": None if catalogue is None else _coverage(own, catalogue, problems),
        "history": None if catalogue is None else _history(own, catalogue, weights),
        "price": _price(path, settings, plan, problems),
        "problems": problems,
    }


def _source(settings: ShopSettings) -> dict[str, str]:
    if settings.database is not None:
        return {"kind": "database", "where": settings.database.url}
    return {"kind": "folder", "where": str(settings.data)}


def _bad_rows(settings: ShopSettings, tables: Tables, problems: list[str]) -> dict[str, Any]:
    """Return how many rows are bad and why, with the first of them in words."""
    first = ""
    if tables.set_aside:
        try:
            open_source(settings, "refuse").tables()
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


def _catalogue(settings: ShopSettings, problems: list[str]) -> Catalogue | None:
    try:
        return read_catalogue(settings.catalogue)
    except ArtifactError as error:
        problems.append(f"{error}. What to do: get the catalogue from the federation's operator")
        return None


def _coverage(
    own: pd.DataFrame,
    catalogue: Catalogue,
    problems: list[str],
) -> dict[str, Any]:
    """Return which share of the shop's products, records and sales the catalogue knows."""
    names = own["item_id"].cat.categories.to_numpy(dtype=object)
    codes = own["item_id"].cat.codes.to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    sold = np.bincount(codes[(own["behavior"] == "purchase").to_numpy()], minlength=len(names))
    known = catalogue.rows(names) >= 0
    missing = np.flatnonzero(~known & (counts > 0))
    # The most missed first; ties by name, so that the list is the same every time.
    missing = missing[np.lexsort((names[missing].astype(str), -counts[missing]))]
    if len(own) and not counts[known].any():
        problems.append(
            "the catalogue knows none of the shop's products: does item_id hold the catalogue's "
            f"numbers? The shop has {_some(names[missing])}, the catalogue "
            f"{_some(catalogue.item_ids)}"
        )
    stripped = {str(name).lstrip("0") for name in catalogue.item_ids}
    zeros = sum(str(names[k]).lstrip("0") in stripped for k in missing)
    if zeros:
        problems.append(
            f"{zeros} products differ from the catalogue's by leading zeros only: keep item_id as "
            "text where the data come from"
        )
    return {
        "products": catalogue.size,
        "fingerprint": catalogue.fingerprint,
        "share_of_products": _share(np.count_nonzero(counts[known]), np.count_nonzero(counts)),
        "share_of_interactions": _share(counts[known].sum(), counts.sum()),
        "share_of_sales": _share(sold[known].sum(), sold.sum()),
        "missing": len(missing),
        "most_missed": [
            {"item_id": str(names[k]), "interactions": int(counts[k])} for k in missing[:SHOWN]
        ],
    }


def _history(
    own: pd.DataFrame, catalogue: Catalogue, weights: Mapping[str, float]
) -> dict[str, Any]:
    """Return how many records the customers have that training would use."""
    rows = catalogue.rows(own["item_id"].cat.categories.to_numpy(dtype=object))
    codes = own["item_id"].cat.codes.to_numpy()
    weighed = own["behavior"].map(lambda name: weights.get(name, 0.0) > 0).to_numpy(dtype=bool)
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


def _price(
    path: Path, settings: ShopSettings, plan: TrainingPlan | None, problems: list[str]
) -> dict[str, Any]:
    """Return what a plan would cost this shop; see :func:`client.forecast.forecast`."""
    flags = PlanFlags(
        rounds=DEFAULT_ROUNDS,
        unit=settings.unit,
        delta=settings.cap_delta,
        target_epsilon=settings.cap_epsilon * DEFAULT_SHARE,
    )
    document = forecast(plan or flags.plan(), [(path, settings)])
    if (reason := document["shops"][0]["reason"]) != "":
        problems.append(f"the shop would not join this plan: {reason}")
    return {"given": plan is not None, **document}


def _share(part: int | np.integer[Any], whole: int | np.integer[Any]) -> float | None:
    return float(part / whole) if whole else None


def _some(names: np.ndarray) -> str:
    return ", ".join(repr(str(name)) for name in names[:3]) or "none"
