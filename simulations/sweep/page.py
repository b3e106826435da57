"""A sweep to look at: the terminal's table, and ``sweep.html``, one file that opens offline."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from rich.console import Group
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.text import Text

from common.cli import plain_table
from simulations.documents import Document
from simulations.report.answer import interval, number, pays, percent, spent
from simulations.report.page import facts, render
from simulations.report.plots import COLOURS, escape, html
from simulations.report.tables import warning_lines
from simulations.sweep.figures import (
    METRICS,
    Ways,
    customers_a_shop,
    goes_half,
    lines,
    on_axis,
    ways_of,
)

HEADINGS = ("ndcg@20", "gain", "tail_ndcg@20", "tail gain", "way", "tail way", "level", "ε spent")
_LINES = ("#d1572b", "#4c6a92", "#1a8f5a", "#8a5ab5", "#c98a00", "#2b9fb3", "#b03a6f", "#666666")
_AXES = {"epsilon": "ε", "customers_a_shop": "customers a shop (mean)"}
_REFERENCES = ("local", "centralized", "federated")


def render_sweep(document: Document) -> str:
    """Return the page of a sweep's document."""
    settings, ways = document["settings"], _ways(document)
    machine = facts(settings[0]["machine"]) if settings else []
    return render(
        "sweep.html.j2",
        document=document,
        figures=_figures(document),
        headings=HEADINGS,
        rows=[_row(point, ways) for point in document["points"]],
        baselines=[
            (_where(setting), name, _cells(arm, ways[setting["setting"]]))
            for setting in settings
            for name, arm in setting["arms"].items()
        ],
        data=[(_where(setting), facts(setting["data"])) for setting in settings],
        machine=machine,
    )


def sweep_table(document: Document) -> Group:
    """Return a sweep's points, and from where on federating pays."""
    tables: dict[str, Table] = {}
    ways = _ways(document)
    for point in document["points"]:
        # What tells points of as many customers apart has no room in a row.
        parts = (document["title"], point["curve"], point["apart"])
        title = escape_markup(", ".join(part for part in parts if part))
        if title not in tables:
            tables[title] = _terminal_table(title)
        cells = _cells(point, ways[point["setting"]])
        tables[title].add_row(
            f"{point['customers_a_shop']:.0f}",
            point["unit"],
            f"{point['epsilon']:g}",
            # Terminals are narrow: each interval on a line of its own, and ε once.
            *(cell.replace(" (", "\n").rstrip(")") for cell in cells[:-1]),
        )
    return Group(
        *tables.values(),
        *warning_lines(document["warnings"]),
        *(Text(sentence) for sentence in document["answer"]),
    )


def _terminal_table(title: str) -> Table:
    table = plain_table(title)
    for name in ("customers\na shop", "unit", "ε", "ndcg@20", "gain", "tail\nndcg@20", "gain"):
        table.add_column(name, justify="right")
    for name in ("way", "tail\nway", "level"):
        table.add_column(name, justify="right")
    return table


def _row(point: Document, ways: Ways) -> tuple[str, str, str, list[str], str]:
    words = []
    for metric, name in zip(METRICS, ("overall", "in the tail"), strict=True):
        if pays(point, metric):
            half = ", half the way" if goes_half(point, metric, ways) else ""
            words.append(f"pays {name}{half}")
    return (
        _where(point),
        point["unit"],
        f"{point['epsilon']:g}",
        _cells(point, ways[point["setting"]]),
        "; ".join(words) or "no",
    )


def _ways(document: Document) -> Ways:
    return ways_of({found["setting"]: found for found in document["settings"]})


def _cells(arm: Document, ways: Sequence[str]) -> list[str]:
    versus = arm["vs_local"] or {}
    way = {metric: arm["way"][metric] for metric in ways}
    return [
        number(arm["metrics"]["ndcg@20"]),
        interval(versus.get("ndcg@20")),
        number(arm["metrics"]["tail_ndcg@20"]),
        interval(versus.get("tail_ndcg@20")),
        percent(way.get("ndcg@20")),
        percent(way.get("tail_ndcg@20")),
        percent(arm["level_share"]),
        spent(arm["spent"]),
    ]


def _where(place: Document) -> str:
    customers = customers_a_shop(place["customers_a_shop"])
    return ", ".join(part for part in (place["curve"], customers, place["apart"]) if part)


def _figures(document: Document) -> list[tuple[str, str, str]]:
    """Return (title, what it shows, HTML) of every plot that there are points for."""
    found: list[tuple[str, str, str]] = []
    ways = _ways(document)
    for axis in _AXES:
        by_line = lines(document["points"], axis)
        # One plot for what shares a scale: a setting over ε, a curve over customers.
        groups: dict[str, list[list[Document]]] = {}
        for line in by_line.values():
            first = line[0]
            place = _where(first) if axis == "epsilon" else first["curve"] or "all points"
            groups.setdefault(place, []).append(line)
        for place, group in groups.items():
            found.extend(
                (
                    f"{metric} over {_AXES[axis]}: {place}",
                    "Bars are the 95% interval of the gain over local, paired by customer.",
                    _quality(group, axis, metric, document["settings"]),
                )
                for metric in METRICS
            )
            found.append(
                (
                    f"Way from local to centralized over {_AXES[axis]}: {place}",
                    "ndcg@20 solid, tail_ndcg@20 dotted, where centralized's gain is certain.",
                    _shares(group, axis, ways),
                )
            )
            found.append(
                (
                    f"Shops that are level or better over {_AXES[axis]}: {place}",
                    "ndcg@20 at most .001 below what the shop has alone.",
                    _shares(group, axis),
                )
            )
    return [(title, words, plot) for title, words, plot in found if plot]


def _quality(
    group: Sequence[Sequence[Document]],
    axis: str,
    metric: str,
    settings: Sequence[Document],
) -> str:
    figure = go.Figure()
    for line, colour in zip(group, _colours(len(group)), strict=True):
        gains = [(point["vs_local"] or {}).get(metric) for point in line]
        figure.add_scatter(
            x=[point[axis] for point in line],
            y=[point["metrics"][metric] for point in line],
            error_y={
                "type": "data",
                "array": [_side(gain, "high") for gain in gains],
                "arrayminus": [_side(gain, "low") for gain in gains],
                "thickness": 1,
                "width": 3,
            },
            name=escape(_line_name(line[0], axis)),
            mode="lines+markers",
            line_color=colour,
        )
    for name in _REFERENCES:
        places = _reference(settings, group, axis, name, metric)
        figure.add_scatter(
            x=[x for x, _ in places],
            y=[y for _, y in places],
            name=name,
            mode="lines",
            line={"color": COLOURS[name], "dash": "dash", "width": 1},
        )
    _measured_ticks(figure, group, axis)
    return html(figure, x=_AXES[axis], y=metric)


def _reference(
    settings: Sequence[Document],
    group: Sequence[Sequence[Document]],
    axis: str,
    name: str,
    metric: str,
) -> list[tuple[float, float]]:
    """Return where an arm without privacy lies: level over ε, one value a setting else."""
    used = {point["setting"] for line in group for point in line}
    own = [setting for setting in settings if setting["setting"] in used]
    if axis == "epsilon":
        values = sorted({float(point[axis]) for line in group for point in line})
        return [(value, own[0]["arms"][name]["metrics"][metric]) for value in values]
    return sorted((float(s["customers_a_shop"]), s["arms"][name]["metrics"][metric]) for s in own)


def _shares(
    group: Sequence[Sequence[Document]],
    axis: str,
    ways: Ways | None = None,
) -> str:
    """Return the plot of shares of the way, or else of the shops that are level."""
    figure = go.Figure()
    for line, colour in zip(group, _colours(len(group)), strict=True):
        values = [[point["level_share"] for point in line]]
        if ways is not None:
            values = [
                [p["way"][metric] if metric in ways[p["setting"]] else None for p in line]
                for metric in METRICS
            ]
        for own, dash in zip(values, ("solid", "dot"), strict=False):
            figure.add_scatter(
                x=[point[axis] for point in line],
                y=own,
                name=escape(_line_name(line[0], axis)),
                showlegend=dash == "solid",
                mode="lines+markers",
                line={"color": colour, "dash": dash},
            )
    if ways is not None:
        figure.add_hline(y=0.5, line_width=1, line_color="#444")
    else:
        figure.update_yaxes(range=[0.0, 1.05])  # no share of shops is above 100%
    _measured_ticks(figure, group, axis)
    figure.update_yaxes(tickformat=".0%")
    return html(figure, x=_AXES[axis], y="share")


def _measured_ticks(figure: go.Figure, group: Sequence[Sequence[Document]], axis: str) -> None:
    """Name on a logarithmic axis what was measured, and nothing between."""
    values = sorted({float(point[axis]) for line in group for point in line})
    figure.update_xaxes(type="log", tickvals=values, ticktext=[on_axis(axis, v) for v in values])


def _line_name(point: Document, axis: str) -> str:
    if axis == "epsilon":
        return str(point["unit"])
    parts = (point["apart"], point["unit"], f"ε = {point['epsilon']:g}")
    return ", ".join(part for part in parts if part)


def _side(gain: Mapping[str, float | None] | None, end: str) -> float:
    if not gain or gain["mean"] is None or gain[end] is None:
        return 0.0
    return abs(float(gain[end] or 0.0) - float(gain["mean"]))


def _colours(count: int) -> list[str]:
    return [_LINES[place % len(_LINES)] for place in range(count)]
