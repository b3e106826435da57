"""The page's plots, as HTML fragments that share one inline copy of plotly.js."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape as escape_all

import plotly.graph_objects as go

from simulations.documents import Document
from simulations.report.draws import shown

FIFTHS = ("rarest", "2nd", "3rd", "4th", "short head")
#: Above this many merchants their names are left off the axis.
_NAMED = 100
#: Longer names of merchants are cut on the axis, where they would take the plot's room.
_LONGEST = 28
#: Arm -> its colour in every plot.
COLOURS = {
    "popularity": "#9a9a9a",
    "local": "#4c6a92",
    "home-only": "#8fb3d9",
    "centralized": "#222222",
    "federated": "#1a8f5a",
    "federated-global": "#8ccfae",
    "federated-dp": "#d1572b",
    "federated-dp-global": "#eeb29a",
}
_GAIN_ARMS = ("federated-dp", "federated", "home-only", "centralized")


def report_figures(document: Document) -> list[tuple[str, str, str]]:
    """Return (title, what it shows, HTML) of every plot that the report has data for."""
    arms = {name: shown(arm) for name, arm in document["arms"].items()}
    by_rounds = document["rounds"]
    found = [
        (
            "The gain of each draw of the noise",
            (
                "A dot is what one training gained over local, the same but for its noise; a "
                "diamond is their mean, with the 95% interval of what one more training would gain."
            ),
            _by_draw(arms),
        ),
        (
            "Each merchant's gain over local, all products",
            (
                "ndcg@20 minus that of local; bars are 95% intervals over its customers, "
                "and over draws of the noise where there are several."
            ),
            _gains(arms, "ndcg@20"),
        ),
        (
            "Each merchant's gain over local, tail products",
            "tail_ndcg@20 minus that of local; bars are 95% intervals.",
            _gains(arms, "tail_ndcg@20"),
        ),
        (
            "Quality by popularity of the product bought",
            (
                "ndcg@20 by fifths of the products, from those with fewest customers in training "
                "to the short head; hits keep their rank in the full list. The axis is logarithmic "
                "and has no 0: a fifth of which nothing was found has no dot."
            ),
            _quintiles(arms),
        ),
        (
            "Quality over rounds",
            "ndcg@20 (solid) and tail_ndcg@20 (dotted) of the global model after each round.",
            _over_rounds(by_rounds, ("ndcg@20", "tail_ndcg@20"), "quality"),
        ),
        (
            "ε spent by round",
            "The largest over the shops, all releases up to that round included.",
            _over_rounds(by_rounds, ("epsilon",), "ε"),
        ),
        (
            "Catalogue coverage",
            "Share of the catalogue that is in anyone's top 20.",
            _coverage(arms),
        ),
        (
            "What shops mix at home",
            "Mean weight of each ingredient after home adaptation.",
            _home_weights(arms),
        ),
    ]
    return [(title, words, html) for title, words, html in found if html]


def escape(name: str) -> str:
    """Return a name for a plot: plotly reads markup in it, and knows no escapes of quotes."""
    return escape_all(name, quote=False)


def comparison_figures(comparison: Document) -> list[tuple[str, str, str]]:
    """Return the plots of runs side by side; runs keep the order in which they were named."""
    runs = comparison["runs"]
    names = list(dict.fromkeys(name for run in runs for name in run["arms"]))
    found = []
    for metric in ("ndcg@20", "tail_ndcg@20"):
        figure = go.Figure()
        for name in names:
            arms = [shown(run["arms"].get(name, {"metrics": {}})) for run in runs]
            values = [arm["metrics"].get(metric) for arm in arms]
            labels = [escape(run["name"]) for run in runs]
            figure.add_scatter(
                x=labels,
                y=values,
                name=escape(name),
                mode="lines+markers",
                line_color=COLOURS.get(name),
            )
        figure.update_xaxes(type="category")
        found.append((metric, "By run.", html(figure, x="run", y=metric)))
    return found


def _gains(arms: Mapping[str, Document], metric: str) -> str:
    figure = go.Figure()
    names = [name for name in _GAIN_ARMS if name in arms and arms[name]["vs_local"]]
    points = {
        name: {
            k: s["vs_local"][metric]
            for k, s in arms[name]["per_shop"].items()
            if s["vs_local"] and s["vs_local"][metric]["mean"] is not None
        }
        for name in names
    }
    merchants = _by_gain(points)
    if not merchants:
        return ""
    labels = [escape(label) for label in _short(merchants)]
    # At first only what was trained together is seen, where anything was.
    seen = [name for name in names if name.startswith("federated")] or names
    for name in names:
        gains = [points[name].get(key) for key in merchants]
        figure.add_scatter(
            x=[gain and gain["mean"] for gain in gains],
            y=labels,
            error_x={
                "type": "data",
                "array": [
                    (g["high"] - g["mean"]) if g and g["high"] is not None else 0 for g in gains
                ],
                "thickness": 1,
                "width": 0,
            },
            name=escape(name),
            mode="markers",
            marker={"color": COLOURS.get(name), "size": 8},
            visible=True if name in seen else "legendonly",
        )
    figure.add_vline(x=0, line_width=1, line_color="#444")
    figure.update_yaxes(type="category", automargin=True, showticklabels=len(merchants) <= _NAMED)
    height = 160 + min(len(merchants), 2 * _NAMED) * 20
    return html(figure, x="gain over local", y="", height=height)


def _short(names: Sequence[str]) -> list[str]:
    """Return labels that leave the plot its room: long names lose their middle, none two alike."""
    ends = _LONGEST // 2
    cut = [n if len(n) <= _LONGEST else f"{n[: ends - 1]}…{n[-ends:]}" for n in names]
    many = Counter(cut)
    return [
        label if many[label] == 1 else f"{label} ({place})" for place, label in enumerate(cut, 1)
    ]


def _by_draw(arms: Mapping[str, Document]) -> str:
    figure = go.Figure()
    drawn = {n: arm for n, arm in arms.items() if arm.get("draws") and arm["vs_local"]}
    for name, arm in drawn.items():
        gains = {m: g for m, g in arm["vs_local"].items() if g["low"] is not None}
        metrics, look = list(gains), {"color": COLOURS.get(name)}
        # An arm far below the others would press all their dots into one.
        seen = "legendonly" if name.endswith("-global") and len(drawn) > 1 else True
        figure.add_scatter(
            x=[value for gain in gains.values() for value in gain["values"]],
            y=[metric for metric, gain in gains.items() for _ in gain["values"]],
            name=escape(f"{name}, each draw"),
            mode="markers",
            marker={**look, "size": 9, "opacity": 0.5},
            visible=seen,
        )
        figure.add_scatter(
            x=[gain["mean"] for gain in gains.values()],
            y=metrics,
            error_x={
                "type": "data",
                "array": [gain["high"] - gain["mean"] for gain in gains.values()],
                "thickness": 1,
                "width": 4,
            },
            name=escape(f"{name}, mean"),
            mode="markers",
            marker={**look, "size": 11, "symbol": "diamond"},
            visible=seen,
        )
    figure.add_vline(x=0, line_width=1, line_color="#444")
    figure.update_yaxes(type="category", automargin=True, autorange="reversed")
    return html(figure, x="gain over local", y="")


def _by_gain(points: Mapping[str, Mapping[str, Document]]) -> list[str]:
    """Return merchants sorted by the gain of the first arm that has them, ascending."""
    first: dict[str, float] = {}
    for gains in points.values():
        for key, gain in gains.items():
            first.setdefault(key, gain["mean"])
    return sorted(first, key=lambda key: (first[key], key))


def _quintiles(arms: Mapping[str, Document]) -> str:
    figure = go.Figure()
    for name, arm in arms.items():
        values = arm["quintiles"]["ndcg@20"]
        if any(value is not None for value in values):
            figure.add_scatter(
                x=list(FIFTHS),
                # plotly would draw a line down to the axis, as if there were some value.
                y=[value or None for value in values],
                name=escape(name),
                mode="lines+markers",
                line_color=COLOURS.get(name),
            )
    # The short head's quality is a hundred times the rarest fifth's: only a log axis shows both.
    figure.update_yaxes(type="log", dtick=1)
    return html(figure, x="products by customers in training", y="ndcg@20 (log)")


def _over_rounds(rounds: Mapping[str, list[Document]], metrics: Iterable[str], y: str) -> str:
    figure = go.Figure()
    for name, points in rounds.items():
        for metric, dash in zip(metrics, ("solid", "dot"), strict=False):
            values = [point.get(metric) for point in points]
            if any(value is not None for value in values):
                figure.add_scatter(
                    x=[point["round"] for point in points],
                    y=values,
                    name=escape(f"{name} {metric}" if metric != "epsilon" else name),
                    mode="lines+markers",
                    connectgaps=True,  # not every round is measured
                    line={"color": COLOURS.get(name), "dash": dash},
                )
    return html(figure, x="round", y=y)


def _coverage(arms: Mapping[str, Document]) -> str:
    values = {name: arm["metrics"]["coverage@20"] for name, arm in arms.items()}
    figure = go.Figure()
    if any(value is not None for value in values.values()):
        figure.add_bar(
            x=list(values.values()),
            y=[escape(name) for name in values],
            orientation="h",
            marker_color=[COLOURS.get(name, "#777") for name in values],
        )
        figure.update_xaxes(tickformat=".1%")
        figure.update_yaxes(automargin=True, autorange="reversed", type="category")
    return html(figure, x="coverage@20", y="")


def _home_weights(arms: Mapping[str, Document]) -> str:
    mixed = {name: arm["home_weights"] for name, arm in arms.items() if arm["home_weights"]}
    figure = go.Figure()
    for part in dict.fromkeys(part for weights in mixed.values() for part in weights):
        figure.add_bar(
            x=[weights.get(part) for weights in mixed.values()],
            y=[escape(name) for name in mixed],
            name=escape(part),
            orientation="h",
        )
    figure.update_layout(barmode="stack")
    figure.update_yaxes(automargin=True, autorange="reversed", type="category")
    return html(figure, x="mean weight", y="")


def html(figure: go.Figure, *, x: str, y: str, height: int = 380) -> str:
    """Return the figure as a fragment of a page that holds plotly.js; "" without data."""
    if not figure.data:
        return ""
    figure.update_layout(
        template="plotly_white",
        height=height + 12 * len(figure.data),  # the legend takes its share on narrow pages
        autosize=True,
        margin={"l": 50, "r": 10, "t": 10, "b": 45},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        font={"family": "system-ui, sans-serif", "size": 12},
        showlegend=len(figure.data) > 1,
    )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    fragment: str = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return fragment
