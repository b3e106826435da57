"""What a sweep found: its points in order, and from where on federating pays.

The rule, for points that differ in one thing alone (ε, or customers a shop), in ascending order:

- federating *pays* at a point if the 95% interval of its gain over the better of ``local`` and
  ``home-only``, which is what a shop can have without sending anything, lies above 0, and ten
  customers or more have a target (for the tail one of the tail): of fewer it means nothing;
- it pays *from* the smallest measured value at which it pays, there and at all larger ones;
- it goes *half the way* from the smallest value at which it pays and ``way`` is at least one half,
  there and at all larger ones: half of a way that may be none is nothing, so it takes a gain of
  ``centralized`` that is certain, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from simulations.documents import Document
from simulations.report.answer import ENOUGH_CUSTOMERS, all_shops, measured_ways, pays
from simulations.sweep.plan import Sweep

METRICS = ("ndcg@20", "tail_ndcg@20")
FORMAT_VERSION = 1
PRIVATE = "federated-dp"
HALF = 0.5
#: Setting -> the metrics in which an arm's share of the way can be told.
Ways = Mapping[int, Sequence[str]]
RULE = (
    "Federating pays at a point if the 95% interval of its gain over the better of local and "
    "home-only (what a shop can have without sending anything) lies above 0, and "
    f"{ENOUGH_CUSTOMERS} customers or more have a target (for the tail one of the tail). It pays "
    "from the smallest measured value at which it does so there and at all larger ones. The same "
    "holds for half the way from local to centralized, which it goes only where it pays and what "
    "centralized gains is certain. Only measured points count: nothing is interpolated. "
    "Each point is one draw of the noise, and intervals cover the draw of customers alone."
)
_KEPT = ("vs_local", "vs_better", "level_share", "way", "home_weights", "seconds", "peak_mb")


def arm_figures(arm: Document) -> Document:
    """Return what a sweep keeps of an arm of a report."""
    privacy = arm["privacy"]
    return {
        "metrics": {metric: arm["metrics"][metric] for metric in METRICS},
        **{key: arm[key] for key in _KEPT},
        "spent": privacy["epsilon"] if privacy else None,
        "took_part": sum(shop["took_part"] for shop in all_shops(arm).values()),
        "shops": len(all_shops(arm)),
        "customers_with_targets": arm["customers_with_targets"],
        "customers_with_tail_targets": arm["customers_with_tail_targets"],
    }


def sweep_document(
    sweep: Sweep, settings: Sequence[Document | None], points: Sequence[Document | None]
) -> Document:
    """Return the document of a sweep, finished or not.

    Parameters
    ----------
    settings, points
        What was measured, in the sweep's order; None where nothing was yet.
    """
    known = {n: s for n, s in enumerate(settings) if s is not None}
    apart = _apart(sweep, known)
    shown = []
    for document in points:
        if document is not None:
            data = document["data"]
            shown.append(
                {
                    "setting": document["setting"],
                    "curve": document["curve"],
                    "label": document["label"],
                    "apart": apart[document["setting"]],
                    "unit": document["unit"],
                    "epsilon": document["epsilon"],
                    "customers_a_shop": _customers_a_shop(data),
                    **document["arms"][PRIVATE],
                    "seconds": document["seconds"],
                }
            )
    knees = _knees(shown, ways_of(known))
    return {
        "format_version": FORMAT_VERSION,
        "title": sweep.title,
        "finished": len(shown),
        "planned": len(sweep.points),
        "rule": RULE,
        "answer": _sentences(knees),
        "knees": knees,
        "warnings": list(
            dict.fromkeys(
                warning
                for document in (*settings, *points)
                if document is not None
                for warning in document["warnings"]
            )
        ),
        "points": shown,
        "settings": [
            {
                **document,
                "setting": number,
                "apart": apart[number],
                "customers_a_shop": _customers_a_shop(document["data"]),
            }
            for number, document in known.items()
        ],
        "experiments": [setting.experiment.facts() for setting in sweep.settings],
    }


def _apart(sweep: Sweep, known: Mapping[int, Document]) -> dict[int, str]:
    """Return what tells each setting from those of its curve with as many customers a shop.

    Their changes that not all of them share; "" for a setting that is alone there.
    """
    alike: dict[tuple[str, float], list[int]] = {}
    for number, document in known.items():
        place = document["curve"], _customers_a_shop(document["data"])
        alike.setdefault(place, []).append(number)
    found = {}
    for numbers in alike.values():
        changes = {number: sweep.settings[number].changes for number in numbers}
        shared = set.intersection(*map(set, changes.values()))
        for number, own in changes.items():
            found[number] = ", ".join(change for change in own if change not in shared)
    return found


def ways_of(settings: Mapping[int, Document]) -> Ways:
    """Return the ways of settings, by their number."""
    return {number: measured_ways(found["arms"]) for number, found in settings.items()}


def goes_half(point: Document, metric: str, ways: Ways) -> bool:
    """Whether federating pays, and goes at least half of a way that can be told."""
    way = point["way"].get(metric) if metric in ways[point["setting"]] else None
    return way is not None and bool(way >= HALF) and pays(point, metric)


def first_of(
    points: Iterable[Document], axis: str, good: Callable[[Document], bool]
) -> float | None:
    """Return the smallest value of an axis from which on all points are good, if there is one."""
    found = None
    for point in sorted(points, key=lambda p: -float(p[axis])):
        if not good(point):
            break
        found = float(point[axis])
    return found


def lines(points: Sequence[Document], axis: str) -> dict[tuple[Any, ...], list[Document]]:
    """Return the points that differ in one axis alone, ascending; at least two of them.

    ``epsilon``: by (setting, unit). ``customers_a_shop``: by (curve, what tells settings of as many
    customers apart, unit, epsilon).
    """
    same = ("setting", "unit") if axis == "epsilon" else ("curve", "apart", "unit", "epsilon")
    found: dict[tuple[Any, ...], list[Document]] = {}
    for point in points:
        found.setdefault(tuple(point[key] for key in same), []).append(point)
    return {
        key: sorted(line, key=lambda p: float(p[axis]))
        for key, line in found.items()
        if len({point[axis] for point in line}) > 1
    }


def _knees(points: Sequence[Document], ways: Ways) -> list[Document]:
    return [
        _knee(line, axis, metric, ways)
        for axis in ("epsilon", "customers_a_shop")
        for line in lines(points, axis).values()
        for metric in METRICS
    ]


def _knee(line: Sequence[Document], axis: str, metric: str, ways: Ways) -> Document:
    first, other = line[0], "customers_a_shop" if axis == "epsilon" else "epsilon"
    return {
        "axis": axis,
        "curve": first["curve"],
        "apart": first["apart"],
        "unit": first["unit"],
        other: first[other],
        "metric": metric,
        "measured": [point[axis] for point in line],
        "pays_from": first_of(line, axis, lambda point: pays(point, metric)),
        "half_from": first_of(line, axis, lambda point: goes_half(point, metric, ways)),
    }


def _sentences(knees: Sequence[Document]) -> list[str]:
    """Return a sentence for each line of points: its knees stand side by side."""
    pairs = zip(*[iter(knees)] * len(METRICS), strict=True)
    return [_sentence(pair) for pair in pairs]


def _sentence(knees: Sequence[Document]) -> str:
    knee = knees[0]
    axis = knee["axis"]
    if axis == "epsilon":
        measured = ", ".join(on_axis(axis, value) for value in knee["measured"])
        where = f"ε = {measured}, with {customers_a_shop(knee['customers_a_shop'])}"
    else:
        where = f"ε = {knee['epsilon']:g}, with {customers_a_shop(*knee['measured'])}"

    def begin(value: float | None) -> str:
        if value is None:
            return "nowhere"
        return f"from ε = {value:.4g}" if axis == "epsilon" else f"from {customers_a_shop(value)}"

    start = f"{knee['curve']}, " if knee["curve"] else ""
    start += f"{knee['apart']}, " if knee["apart"] else ""
    return f"{start}each {knee['unit']} at {where}: " + "; ".join(
        f"{k['metric']} pays {begin(k['pays_from'])}, goes half the way {begin(k['half_from'])}"
        for k in knees
    )


def on_axis(axis: str, value: float) -> str:
    """Return a value of an axis as it is written: ε to four digits, customers to the last one."""
    return f"{value:.4g}" if axis == "epsilon" else f"{value:.0f}"


def customers_a_shop(*values: float) -> str:
    """Return so many in words, to the last one."""
    counts = ", ".join(on_axis("customers_a_shop", value) for value in values)
    return f"{counts} customer{'' if counts == '1' else 's'} a shop"


def _customers_a_shop(data: Mapping[str, Any]) -> float:
    return round(float(data["customers"]) / max(int(data["shops"]), 1), 1)
