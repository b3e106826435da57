"""The terminal's tables of a shop, as rich renderables."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from client.privacy.events import UNPROTECTED
from common.cli import plain_table
from common.statement import at_least, at_most
from common.wording import counted

Document = dict[str, Any]
_BOUND = "≤ ε by the looser RDP bound: more may have been counted than was spent"


def forecast_table(document: Document) -> Group:
    """Return what a plan costs, and what it leaves each shop."""
    cost, plan = document["cost"], document["plan"]
    price = plain_table("What the plan costs")
    for name in ("mechanism", "noise", "rate", "steps", "ε alone", "by"):
        price.add_column(name, justify="left" if name == "mechanism" else "right")
    for part in cost["mechanisms"]:
        price.add_row(
            part["mechanism"],
            f"{part['noise_multiplier']:.4g}",
            f"{part['sample_rate']:g}",
            str(part["steps"]),
            epsilon_words(part),
            part["method"].upper(),
        )
    total = (
        f"In all: ε {epsilon_words(cost)} at δ {cost['delta']:g} for each {cost['unit']}, "
        f"{counted(plan['rounds'], 'round')}, trust {plan['trust']} ({cost['method'].upper()})"
    )
    parts: list[Any] = [price, Text(total)]
    if plan["trust"] == "federation":
        parts.append(Text(shares_words(plan)))
    if document["shops"]:
        parts += [Text(""), _shops(document)]
    parts += [Text(_why(shop), style="yellow") for shop in document["shops"] if shop["reason"]]
    parts += [Text(_figures(shop)) for shop in document["shops"] if shop["with_figures"]]
    if _has_bound(document):
        parts.append(Text(_BOUND))
    return Group(*parts)


def shares_words(plan: Document) -> str:
    """Return what the trust of a plan of secure sums means for one shop."""
    return (
        f"Noise of secure sums: each shop adds 1/{plan['honest_shops']} of its variance, under "
        f"masks; {plan['honest_shops']} honest and up to {plan['colluding_shops']} colluding shops "
        "have to be in every sum"
    )


def ledger_table(document: Document) -> Group:
    """Return a ledger's events in groups, and what they cost together."""
    name = document["shop"] or document["ledger"]
    entries = counted(document["entries"], "entry", "entries")
    table = plain_table(f"The ledger of {escape(name)}: {entries}")
    counts, last, run = ("events", "steps"), "last (UTC)", None
    for name in ("mechanism", "unit", "noise", "rate", "rounds", *counts, last):
        side: Any = "right" if name in counts else "left"
        table.add_column(name, justify=side, no_wrap=name != "mechanism", overflow="fold")
    for group in document["groups"]:
        # A column of its own would leave a run's name two letters a line beside secure sums.
        if group["run_id"] != run:
            run = group["run_id"]
            table.add_row(f"[bold]{_plain(run)}[/bold]")
        table.add_row(
            _plain(group["mechanism"]),
            _plain(group["unit"]),
            f"{group['noise_multiplier']:.4g} {group['noise']}",
            f"{group['sample_rate']:g}",
            f"{group['first_round']}-{group['last_round']}",
            str(group["events"]),
            str(group["steps"]),
            group["until"][:16].replace("T", " "),
        )
    lines = [_spent(unit, cost, document) for unit, cost in document["units"].items()]
    lines = lines or ["Nothing is spent."]
    if without := sum(group["mechanism"] == UNPROTECTED for group in document["groups"]):
        lines.append(
            f"Without any privacy, and in no ε: all that left in {counted(without, 'run')}."
        )
    if any(cost["upper_bound"] for cost in document["units"].values()):
        lines.append(_BOUND)
    return Group(table, *(Text(line) for line in lines), Text(f"head {document['head']}"))


def epsilon_words(cost: Document) -> str:
    """Return an ε for a table; ≤ marks a bound that is known not to be tight."""
    return f"{'≤ ' if cost['upper_bound'] else ''}{at_most(cost['epsilon'])}"


def _plain(text: str) -> str:
    """Return a server's text without markup, and without escapes that could hide other lines."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _spent(unit: str, cost: Document, document: Document) -> str:
    text = f"Spent: ε {epsilon_words(cost)} at δ {document['delta']:g} for each {unit}"
    text += f" ({cost['method'].upper()})"
    if document["cap_epsilon"] is None:
        return text
    return f"{text}; cap {document['cap_epsilon']:g}, left {at_least(cost['left'])}"


def _shops(document: Document) -> Table:
    table = plain_table("What it would leave")
    names = ("shop", "spent", "after", "cap", "left after", "joins", "whole runs", "rounds")
    for name in names:
        table.add_column(name, justify="left" if name == "shop" else "right")
    for shop in document["shops"]:
        table.add_row(
            escape(shop["shop"]),
            epsilon_words(shop["spent"]),
            epsilon_words(shop["after"]),
            f"{shop['cap_epsilon']:g}",
            at_least(shop["left_after"]),
            "yes" if shop["joins"] else "no",
            str(shop["whole_runs"]),
            str(shop["rounds"]),
        )
    return table


def _why(shop: Document) -> str:
    return f"{shop['shop']} would not join: {shop['reason']}"


def _figures(shop: Document) -> str:
    found = shop["with_figures"]
    return (
        f"{shop['shop']} releases figures by its [evaluation], where a run asks for them: ε "
        f"{epsilon_words(found)} after such a run, {counted(found['whole_runs'], 'whole run')}"
    )


def _has_bound(document: Document) -> bool:
    names = ("spent", "after", "with_figures")
    shops = [shop[name] for shop in document["shops"] for name in names if shop[name]]
    return any(cost["upper_bound"] for cost in [document["cost"], *shops])
