"""Private runs side by side in one picture: what each gains over ``local``, and how far that is.

An SVG file of its own: it needs no library, and opens in a browser and in a page of documentation.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from common.errors import DataError
from simulations.report.draws import shown
from simulations.report.plots import COLOURS

_METRICS = ("ndcg@20", "tail_ndcg@20")
_ARM, _GOAL = "federated-dp", "centralized"
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 430, 360, 70, 50, 60


def picture(comparison: Mapping[str, Any]) -> str:
    """Return the SVG of a comparison of :func:`simulations.report.compare.compare`.

    A panel a metric; a dot a run, with the 95% interval of its gain: paired over customers, and
    over draws of the noise where the run has several. Lines are ``local``, half of the way to
    ``centralized``, and ``centralized``, as the first run has them.

    Raises
    ------
    DataError
        If a run lacks an arm that is drawn, or its gains.
    """
    runs = comparison["runs"]
    for run in runs:
        if missing := [a for a in (_ARM, _GOAL) if not _is_drawn(run["arms"].get(a))]:
            raise DataError(
                f"{run['name']} has no {', '.join(missing)} beside local: run the experiment with "
                "these arms, on customers to test, or leave it out of the picture"
            )
    width = _WIDTH * len(_METRICS)
    size = f'width="{width}" height="{_HEIGHT}"'
    view = f'viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="12"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>',
        f'<rect {size} fill="white"/>',
    ]
    for place, metric in enumerate(_METRICS):
        lines += [f'<g transform="translate({place * _WIDTH} 0)">', *_panel(runs, metric), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _is_drawn(arm: Mapping[str, Any] | None) -> bool:
    gains = (shown(arm)["vs_local"] if arm else None) or {}
    return all(gains.get(metric, {}).get("low") is not None for metric in _METRICS)


def _panel(runs: list[dict[str, Any]], metric: str) -> Iterator[str]:
    gains = [shown(run["arms"][_ARM])["vs_local"][metric] for run in runs]
    goal = runs[0]["arms"][_GOAL]["vs_local"][metric]["mean"]
    values = [0.0, goal, *(gain[key] for gain in gains for key in ("low", "high"))]
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or 1e-6
    low, high = low - room, high + room

    def up(value: float) -> float:
        share = float((high - value) / (high - low))
        return _TOP + share * (_HEIGHT - _TOP - _BOTTOM)

    yield _text(_LEFT, 24, f"{metric}: gain over local", size=14)
    right = _WIDTH - 20
    for value, name, colour in (
        (0.0, "local", COLOURS["local"]),
        (goal / 2, "half of the way", "#777777"),
        (goal, _GOAL, COLOURS[_GOAL]),
    ):
        y = up(value)
        yield f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{colour}" stroke-dasharray="5 4"/>'
        yield _text(_LEFT + 4, y - 4, name, colour)
        yield _text(_LEFT - 8, y + 4, f"{value:+.4f}", colour, anchor="end")
    for place, (run, gain) in enumerate(zip(runs, gains, strict=True)):
        x = _LEFT + (place + 0.5) * (right - _LEFT) / len(runs)
        privacy = run["arms"][_ARM]["privacy"]
        colour = COLOURS[_ARM] if privacy["trust"] == "federation" else "#4c6a92"
        ends = f"M{x:.1f} {up(gain['low']):.1f}V{up(gain['high']):.1f}"
        yield f'<path d="{ends}" stroke="{colour}" stroke-width="2"/>'
        yield f'<circle cx="{x:.1f}" cy="{up(gain["mean"]):.1f}" r="5" fill="{colour}"/>'
        yield _text(x, _HEIGHT - 34, f"ε = {privacy['epsilon']:.2g}", colour, anchor="middle")
        yield _text(x, _HEIGHT - 18, f"trust {privacy['trust']}", colour, anchor="middle")


def _text(
    x: float, y: float, words: str, colour: str = "#222222", anchor: str = "start", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" '
        f'font-size="{size}">{escape(words)}</text>'
    )
