"""What an attack's document looks like: its words, the terminal's table, and a page."""

import json
from html import escape

import plotly.graph_objects as go
from rich.table import Table

from common.wording import counted
from simulations.documents import Document
from simulations.report.answer import DASH, number
from simulations.report.page import facts, render
from simulations.report.plots import html

HEADINGS = ("defence", "attack", "bad shops", "ER@20", "allowed", "ndcg@20", "tail_ndcg@20", "held")
_USES = {"global": "the global model alone", "home": "with home adaptation"}
_COLOURS = {
    "none": "#c23b3b",
    "median": "#9a9a9a",
    "trimmed-mean": "#8fb3d9",
    "krum": "#d9a441",
    "multi-krum": "#c98a00",
    "norm-bound": "#4c6a92",
    "tail-aware": "#1a8f5a",
}

#: What the figures leave out.
LIMITS = (
    "Targets are drawn from one band of popularity; colder and warmer products fare otherwise.",
    "The attackers are those named; they know the defence, but another may do better.",
    "Figures are of customers of shops that are never bad, the same ones in every row.",
    "Each row is one seed: one choice of bad shops, and one run for each target.",
    "Intervals (95%) are over customers: of shops, targets and seeds they know nothing.",
)


def attack_words(document: Document) -> list[str]:
    """Return in plain words what each defence was found to do at the full shares."""
    words = []
    settings = document["experiment"]["attack"]
    for federation, clean in document["clean"].items():
        for use, said in _uses(document):
            for defence in dict.fromkeys(("none", settings["chosen"])):
                for share in settings["full_shares"]:
                    rows = [
                        r
                        for r in document["attacks"]
                        if (r["federation"], r["use"], r["defence"]) == (federation, use, defence)
                        and r["share"] == share
                    ]
                    if rows and defence in clean:
                        words.append(_sentence(federation, said, defence, rows))
    return words


def _uses(document: Document) -> list[tuple[str, str]]:
    return [(use, _USES[use]) for use in document["experiment"]["attack"]["uses"]]


def _sentence(federation: str, said: str, defence: str, rows: list[Document]) -> str:
    shown = [r for r in rows if r["er@20"] is not None]
    worst = max(shown, key=lambda r: r["er@20"], default=None)
    lost = min(r["change"]["ndcg@20"] for r in rows)
    tail = min(r["change"]["tail_ndcg@20"] for r in rows)
    pushed = (
        f"the pushed product reaches {worst['er@20']:.2%} of customers at most "
        f"({worst['er@20_without']:.2%} without an attack, {worst['er@20_limit']:.2%} allowed), "
        if worst
        else ""
    )
    held = sum(r["held"] for r in rows)
    return (
        f"{federation}, {said}, defence {defence}, "
        f"{counted(rows[0]['bad_shops'], 'bad shop')}: {pushed}"
        f"the worst attack changes ndcg@20 by {lost:+.1%} and tail_ndcg@20 by {tail:+.1%}; "
        f"{held} of {counted(len(rows), 'attack')} held."
    )


def attack_rows(document: Document, federation: str, use: str) -> list[list[str]]:
    """Return the cells under :data:`HEADINGS`, clean runs first."""
    rows = [
        _cells(defence, "none", 0, uses[use])
        for defence, uses in document["clean"][federation].items()
    ]
    return rows + [
        _cells(found["defence"], found["attack"], found["bad_shops"], found)
        for found in document["attacks"]
        if (found["federation"], found["use"]) == (federation, use)
    ]


def _cells(defence: str, attack: str, bad: int, found: Document) -> list[str]:
    shown, allowed = found["er@20"], found.get("er@20_limit")
    return [
        defence,
        attack,
        str(bad),
        DASH if shown is None else f"{shown:.2%}{_span(found.get('er@20_interval'), '.2f')}",
        DASH if allowed is None else f"{allowed:.2%}",
        *(
            f"{number(found[metric])} {found['change'][metric]:+.1%}"
            + _span(found["change_interval"][metric], "+.1f")
            for metric in ("ndcg@20", "tail_ndcg@20")
        ),
        {True: "yes", False: "no"}.get(found.get("held"), DASH),  # type: ignore[arg-type]
    ]


def _span(ends: list[float] | list[None] | None, digits: str) -> str:
    """Return an interval of shares in percent, in brackets; "" where there is none."""
    known = [end for end in ends or [] if end is not None]
    return f" [{', '.join(f'{end * 100:{digits}}' for end in known)}]" if known else ""


def attack_table(document: Document) -> list[Table]:
    """Return the terminal's view: a table for each federation and use."""
    tables = []
    for federation in document["clean"]:
        for use, said in _uses(document):
            table = Table(title=f"{federation}, {said}", title_justify="left", box=None)
            for heading in HEADINGS:
                # An interval goes into a second line where the terminal is narrow.
                table.add_column(heading, no_wrap="@" not in heading)
            for row in attack_rows(document, federation, use):
                table.add_row(*row)
            tables.append(table)
    return tables


def render_attack(document: Document) -> str:
    """Return the page."""
    views = [(f, use, said) for f in document["clean"] for use, said in _uses(document)]
    return render(
        "attack.html.j2",
        document=document,
        sentences=attack_words(document),
        limits=LIMITS,
        headings=HEADINGS,
        views=[
            (
                f"{federation}, {said}",
                _figure(document, federation, use),
                attack_rows(document, federation, use),
            )
            for federation, use, said in views
        ],
        data=facts(document["data"]),
        machine=facts(document["machine"]),
        experiment=json.dumps(document["experiment"], indent=2, ensure_ascii=False),
    )


def _figure(document: Document, federation: str, use: str) -> str:
    """Return the pushed product's reach under each defence, at the first of the full shares."""
    share = document["experiment"]["attack"]["full_shares"][0]
    rows = [
        r
        for r in document["attacks"]
        if (r["federation"], r["use"], r["share"]) == (federation, use, share)
        and r["er@20"] is not None
    ]
    if not rows:
        return ""
    figure = go.Figure()
    for defence in dict.fromkeys(r["defence"] for r in rows):
        own = [r for r in rows if r["defence"] == defence]
        figure.add_bar(
            x=[r["attack"] for r in own],
            # A log axis has no 0: one in ten thousand stands for none.
            y=[max(r["er@20"], 1e-4) for r in own],
            name=escape(defence),
            marker_color=_COLOURS.get(defence, "#777"),
        )
    limit = max(r["er@20_limit"] for r in rows)
    figure.add_hline(y=limit, line={"dash": "dot", "color": "#444"})
    figure.update_yaxes(type="log", range=[-4, 0.05], dtick=1, tickformat=".2~%")
    return html(figure, x="attack", y="customers shown the product (ER@20)", height=420)
