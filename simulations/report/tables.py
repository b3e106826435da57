"""The terminal's tables, as rich renderables."""

import re
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group
from rich.markup import escape
from rich.text import Text

from common.cli import plain_table
from simulations.documents import Document
from simulations.report.answer import interval, measured_ways, number, percent, spent
from simulations.report.draws import shown

HEADINGS = (
    "ndcg@20",
    "gain",
    "tail_ndcg@20",
    "tail gain",
    "way",
    "tail way",
    "level",
    "ε",
)
_STYLES = {"yes": "bold green", "mixed": "bold yellow", "no": "bold red", "unknown": "bold"}


def result_table(document: Document) -> Group:
    """Return the one table of a run; its last line says whether these shops should federate."""
    counts = {arm["draws"]["count"] for arm in document["arms"].values() if arm.get("draws")}
    drawn = "".join(f"; private arms over {count} draws of the noise" for count in counts)
    table = plain_table(f"What federating brings: gains over local, with 95% intervals{drawn}")
    table.add_column("arm", no_wrap=True)
    for name in HEADINGS:
        table.add_column(re.sub("[_ ]", "\n", name), justify="right", overflow="fold")
    for name, cells in all_cells(document["arms"]).items():
        table.add_row(escape(name), *_narrow(cells))
    verdict = document["answer"]
    return Group(
        table,
        *warning_lines(document["warnings"]),
        *(Text(sentence) for sentence in verdict["details"]),
        Text(
            f"Should these shops federate? {verdict['headline']}", style=_STYLES[verdict["verdict"]]
        ),
    )


def warning_lines(warnings: Iterable[str]) -> list[Text]:
    """Return what a reader must know, a line each."""
    return [Text(f"! {warning}", style="yellow") for warning in warnings]


def comparison_table(comparison: Document) -> Group:
    """Return runs side by side: a row for each arm of each run."""
    table = plain_table("Runs side by side")
    # A run's name has a line of its own: beside the figures it would break them in the middle.
    table.add_column("arm", overflow="fold")
    for name in HEADINGS:
        table.add_column(re.sub("[_ ]", "\n", name), justify="right", no_wrap=True)
    for run in comparison["runs"]:
        table.add_row(Text(run["name"], style="bold"))
        for name, cells in all_cells(run["arms"]).items():
            table.add_row(escape(name), *_narrow(cells))
    lines = [
        Text(f"{key}: " + ", ".join(f"{name} = {value}" for name, value in values.items()))
        for key, values in comparison["changed"].items()
    ]
    answers = [
        Text(f"{run['name']}: {run['answer']['headline']}", style=_STYLES[run["answer"]["verdict"]])
        for run in comparison["runs"]
    ]
    of_runs: dict[str, list[str]] = {}
    for run in comparison["runs"]:
        for warning in run["warnings"]:
            of_runs.setdefault(warning, []).append(run["name"])
    said = (f"{', '.join(names)}: {warning}" for warning, names in of_runs.items())
    return Group(table, *lines, *warning_lines(said), *answers)


def all_cells(arms: Mapping[str, Document]) -> dict[str, tuple[str, ...]]:
    """Return arm -> its figures, as text."""
    every = {name: shown(arm) for name, arm in arms.items()}
    ways = measured_ways(every)
    return {name: _cells(arm, ways) for name, arm in every.items()}


def _cells(arm: Document, ways: Sequence[str]) -> tuple[str, ...]:
    versus, privacy = arm["vs_local"] or {}, arm["privacy"]
    way = {metric: arm["way"][metric] for metric in ways}
    return (
        number(arm["metrics"]["ndcg@20"]),
        interval(versus.get("ndcg@20")),
        number(arm["metrics"]["tail_ndcg@20"]),
        interval(versus.get("tail_ndcg@20")),
        percent(way.get("ndcg@20")),
        percent(way.get("tail_ndcg@20")),
        percent(arm["level_share"]),
        spent(privacy["epsilon"] if privacy else None),
    )


def _narrow(cells: Iterable[str]) -> list[str]:
    """Return the cells with each interval on a line of its own: terminals are narrow."""
    apart = [cell.replace(" (", "\n").rstrip(")").replace(" to ", "…") for cell in cells]
    return [re.sub(r"(?<![0-9])0\.(?=[0-9]{3})", ".", cell) for cell in apart]
