"""How much of a shop's products and sales the federation's catalogue knows, and what to do."""

from typing import Any

import numpy as np
import pandas as pd

from client.data.assortment import home_names
from client.data.mapping import ItemMapping
from common.features import Catalogue

SHOWN = 5
#: Of the shop's sales: a catalogue that knows more leaves little to do.
GOOD_SHARE = 0.95

_UNKNOWN = (
    "have a code or number in the mapping that the catalogue does not hold: correct it, or ask the "
    "operator for the newest catalogue"
)
_AMBIGUOUS = (
    "have a code that several products of the catalogue have, so they are left out: tell the "
    "operator, or map them with a table"
)
_LOOK_ALIKE = (
    "have numbers that the catalogue uses too, but the mapping does not name them, so they are "
    "left out: name them in it if they are the same"
)


def catalogue_rows(
    item_ids: np.ndarray, catalogue: Catalogue, mapping: ItemMapping | None
) -> np.ndarray:
    """Return (k,) catalogue rows of the shop's own product numbers, -1 outside it."""
    return catalogue.rows(item_ids if mapping is None else mapping.target(item_ids))


def coverage(
    own: pd.DataFrame,
    catalogue: Catalogue,
    mapping: ItemMapping | None,
    described: np.ndarray | None,
    problems: list[str],
    advice: list[str],
) -> dict[str, Any]:
    """Return which share of the shop's products, records and sales the catalogue knows.

    Parameters
    ----------
    own
        The shop's interactions, with its own product numbers.
    described
        What the products that the shop knows at home beside the catalogue are called there; None
        without such.
    problems, advice
        Sentences are added: what stops training, and what would make it better.

    Returns
    -------
    dict
        ``products, fingerprint, share_of_products, share_of_interactions, share_of_sales, missing,
        retired`` (products of the shop's that the catalogue retired), ``most_missed`` (the
        best-selling that it does not know: ``item_id, sales, interactions``), ``at_home`` (null
        where the shop has no products table or uses none, else ``products`` that it describes and
        the catalogue does not hold, ``sold`` of them, ``sales, share_of_sales, interactions``) and
        ``mapping``: null without one, else what :func:`_mapping` returns.
    """
    names = own["item_id"].cat.categories.to_numpy(dtype=object)
    codes = own["item_id"].cat.codes.to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    sold = np.bincount(codes[(own["behavior"] == "purchase").to_numpy()], minlength=len(names))
    rows = catalogue_rows(names, catalogue, mapping)
    known = rows >= 0
    missing = np.flatnonzero(~known & (counts > 0))
    # The most missed first; ties by name, so that the list is the same every time. Here and below
    # names are objects: an array of text has room in each place for the longest, and one record
    # with an id without end would take all memory.
    by_name = pd.factorize(names[missing], sort=True)[0]
    order = np.lexsort((by_name, -counts[missing], -sold[missing]))
    missing = missing[order]
    if len(own) and not counts[known].any():
        problems.append(_nothing(names[missing], catalogue, mapping))
    elif mapping is None and (zeros := _by_zeros(names[missing], catalogue)):
        problems.append(
            f"{zeros:,} {_products(zeros, 'differs', 'differ')} from the catalogue's by leading "
            "zeros only: keep item_id as text where the data come from"
        )
    share = _share(sold[known].sum(), sold.sum())
    if len(missing) and share is not None and share < GOOD_SHARE and counts[known].any():
        best = ", ".join(repr(str(name)) for name in names[missing[:3]])
        how = (
            "add [catalogue_mapping] if the shop has numbers of its own"
            if mapping is None
            else "add the best-selling ones to the mapping"
        )
        advice.append(
            f"{1 - share:.1%} of the sales are of products outside the catalogue and teach the "
            f"federation nothing: {how}, or ask the operator to add them ({best})"
        )
    at_home = None
    if described is not None:
        inside = pd.Index(home_names(names, mapping)).isin(described)
        at_home = {
            "products": len(described),
            "sold": int(np.count_nonzero(counts[inside])),
            "sales": int(sold[inside].sum()),
            "share_of_sales": _share(sold[inside].sum(), sold.sum()),
            "interactions": int(counts[inside].sum()),
        }
    return {
        "products": catalogue.size,
        "fingerprint": catalogue.fingerprint,
        "share_of_products": _share(np.count_nonzero(counts[known]), np.count_nonzero(counts)),
        "share_of_interactions": _share(counts[known].sum(), counts.sum()),
        "share_of_sales": share,
        "missing": len(missing),
        "retired": int(np.count_nonzero(~catalogue.offered[rows[known & (counts > 0)]])),
        "most_missed": [
            {"item_id": str(names[k]), "sales": int(sold[k]), "interactions": int(counts[k])}
            for k in missing[:SHOWN]
        ],
        "at_home": at_home,
        "mapping": None if mapping is None else _mapping(mapping, names[missing], advice),
    }


def _mapping(mapping: ItemMapping, missing: np.ndarray, advice: list[str]) -> dict[str, Any]:
    """Return what a mapping maps, and which of the shop's products it leaves out and why.

    Returns
    -------
    dict
        ``label, mapped`` (the shop's products), ``onto`` (the catalogue's), ``merged`` (the first
        of the catalogue's products that are several of the shop's: ``item_id, own``), and
        ``without_code, unknown, ambiguous, look_alike``: each ``products`` and ``examples``.
    """
    theirs, counts = np.unique(mapping.theirs.astype(str), return_counts=True)
    looks = missing[pd.Index(missing).isin(mapping.catalogue_ids)]
    said = (mapping.unknown, _UNKNOWN), (mapping.ambiguous, _AMBIGUOUS), (looks, _LOOK_ALIKE)
    for items, sentence in said:
        if len(items):
            advice.append(
                f"{len(items):,} of the shop's products (such as {_some(items)}) {sentence}"
            )
    most = [str(item) for item in theirs[np.argsort(-counts, kind="stable")[:SHOWN]]]
    return {
        "label": mapping.label,
        "mapped": len(mapping.own),
        "onto": len(theirs),
        "merged": [
            {"item_id": item, "own": list(own[:SHOWN])}
            for item, own in zip(most, mapping.own_of(most), strict=True)
            if len(own) > 1
        ],
        "without_code": _examples(mapping.without),
        "unknown": _examples(mapping.unknown),
        "ambiguous": _examples(mapping.ambiguous),
        "look_alike": _examples(looks),
    }


def _nothing(missing: np.ndarray, catalogue: Catalogue, mapping: ItemMapping | None) -> str:
    if mapping is not None:
        return (
            f"the mapping ({mapping.label}) covers none of the products that the shop has records "
            f"of, such as {_some(missing)}: does its item_id hold the shop's own numbers?"
        )
    return (
        "the catalogue knows none of the shop's products: does item_id hold the catalogue's "
        f"numbers? The shop has {_some(missing)}, the catalogue {_some(catalogue.item_ids)}. If "
        "the shop has numbers of its own, add [catalogue_mapping]"
    )


def _by_zeros(missing: np.ndarray, catalogue: Catalogue) -> int:
    """Return how many ids would be the catalogue's but for leading zeros."""
    stripped = {str(name).lstrip("0") for name in catalogue.item_ids}
    return sum(str(name).lstrip("0") in stripped for name in missing)


def _examples(items: np.ndarray) -> dict[str, Any]:
    return {"products": len(items), "examples": [str(item) for item in items[:SHOWN]]}


def _share(part: int | np.integer[Any], whole: int | np.integer[Any]) -> float | None:
    return float(part / whole) if whole else None


def _some(names: np.ndarray) -> str:
    return ", ".join(repr(str(name)) for name in names[:3]) or "none"


def _products(count: int, one: str, many: str) -> str:
    return f"product {one}" if count == 1 else f"products {many}"
