"""Cold start to look at: sentences, the terminal's tables, and a page that opens offline."""

import json

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from common.metrics import CUTOFF
from common.wording import counted
from simulations.documents import Document
from simulations.report.answer import ENOUGH_CUSTOMERS, interval, number
from simulations.report.page import facts, render
from simulations.report.tables import warning_lines

MAIN = f"ndcg@{CUTOFF}"
METRICS = (MAIN, f"recall@{CUTOFF}", f"tail_ndcg@{CUTOFF}")


def verdict(arm: Document, against: str) -> str:
    """Return ``better``, ``worse`` or ``level``: by the interval of ndcg@20's difference."""
    difference = arm["vs"].get(against, {}).get(MAIN, {})
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None:
        return "unknown"
    return "better" if low > 0 else "worse" if high < 0 else "level"


def sentences(document: Document) -> list[str]:
    """Return what was found: of every way to answer, against each kind of popularity."""
    found = []
    for case in document["cases"]:
        if not case["customers"]:
            found.append(f"{case['case']}: nobody to ask, so nothing can be said.")
            continue
        if case["customers"] < ENOUGH_CUSTOMERS:
            found.append(
                f"{case['case']}: {counted(case['customers'], 'customer')} to ask: too few to say "
                f"anything of, it takes {ENOUGH_CUSTOMERS}."
            )
            continue
        for against in case["references"]:
            by_verdict: dict[str, list[str]] = {}
            for name, arm in case["arms"].items():
                if against in arm["vs"]:
                    by_verdict.setdefault(verdict(arm, against), []).append(name)
            parts = [
                f"{kind}: {', '.join(by_verdict[kind])}"
                for kind in ("better", "level", "worse")
                if kind in by_verdict
            ]
            level = number(case["arms"].get(against, {}).get("metrics", {}).get(MAIN))
            found.append(f"{case['case']}, against {against} ({MAIN} {level}): {'; '.join(parts)}.")
    return found


def cells(case: Document, name: str) -> list[str]:
    """Return an arm's metrics, then its gain over each reference with its interval."""
    arm = case["arms"][name]
    own = [number(arm["metrics"][metric]) for metric in METRICS]
    return own + [interval(arm["vs"].get(against, {}).get(MAIN)) for against in case["references"]]


def headings(case: Document) -> list[str]:
    """Return the headings of :func:`cells`."""
    return [*METRICS, *(f"over {name}" for name in case["references"])]


def cold_start_tables(document: Document) -> Group:
    """Return the terminal's view: a table a case."""
    tables: list[RenderableType] = []
    for case in document["cases"]:
        title = f"{case['question']}  ({counted(case['customers'], 'customer')})"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for heading in headings(case):
            table.add_column(heading, justify="right", overflow="fold")
        for name in case["arms"]:
            table.add_row(escape(name), *cells(case, name))
        tables += [table, *warning_lines(case["notes"])]
    return Group(*tables, *warning_lines(document["warnings"]))


def render_cold_start(document: Document) -> str:
    """Return the page."""
    return render(
        "cold_start.html.j2",
        document=document,
        sentences=sentences(document),
        cases=[
            (case, headings(case), {name: cells(case, name) for name in case["arms"]})
            for case in document["cases"]
        ],
        data=facts(document["data"]),
        machine=facts(document["machine"]),
        experiment=json.dumps(document["experiment"], indent=2, ensure_ascii=False),
    )
