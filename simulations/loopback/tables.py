"""What a federation on loopback has to show, on a terminal."""

import time
from collections.abc import Callable

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from common.cli import plain_table
from common.statement import at_most
from simulations.documents import Document
from simulations.loopback.deployment import LocalDeployment

_UNIT = "customer"


def local_table(document: Document) -> Group:
    """Return recommendations, what they cost whom, and that nothing was left running."""
    here, there = document["at_a_shop"], document["from_the_registry"]
    basket = "; ".join(item["title"] for item in there["basket"])
    return Group(
        *_recommended(
            f"At {here['shop']}, to customer {here['user_id']}, who bought "
            f"{here['history']['products']} products there: the global model, adapted at home",
            here["recommendations"],
        ),
        Text(""),
        *_recommended(
            f"From the registry, version {there['version']}, the global model alone, to somebody "
            f"who bought {basket}",
            there["recommendations"],
        ),
        Text(""),
        *_cost(document),
        Text(_promise(there["privacy"])),
        Text(
            f"Done in {document['seconds']:.0f} s. Everything is taken down: no process of ours is "
            f"left, none of {len(document['listening'])} ports answers, and all files are in "
            f"{document['folder']}"
        ),
    )


def keep_up(here: LocalDeployment, tell: Callable[[str], object]) -> None:
    """Leave a federation running until Ctrl-C, and say how to look around."""
    shop = next(iter(here.shops.values()))
    for line in (
        "It runs until Ctrl-C. In another terminal:",
        f"  python -m server ports --federation {here.operator}",
        f"  python -m server train --federation {here.operator}",
        f"  python -m client ledger show {shop.settings}",
    ):
        tell(line)
    try:
        while True:
            here.programs.check()
            time.sleep(1.0)
    except KeyboardInterrupt:
        return


def _recommended(title: str, found: list[Document]) -> tuple[Text, Table]:
    table = plain_table()
    table.add_column("rank", justify="right")
    table.add_column("item_id")
    table.add_column("product")
    table.add_column("score", justify="right")
    for row in found:
        name = escape(str(row.get("title") or ""))
        table.add_row(str(row["rank"]), escape(row["item_id"]), name, f"{row['score']:.3f}")
    return Text(f"{title}:", style="bold"), table


def _cost(document: Document) -> tuple[Text, Table]:
    table = plain_table()
    for name in ("shop", "data", "customers", "entries", "ε", "of cap"):
        table.add_column(name, justify="left" if name in ("shop", "data") else "right")
    for name, shop in document["shops"].items():
        ledger = shop["ledger"]
        spent = ledger["units"].get(_UNIT, {"epsilon": 0.0})["epsilon"]
        table.add_row(
            escape(name), shop["data"], str(shop["customers"]), str(ledger["entries"]),
            at_most(spent), f"{ledger['cap_epsilon']:g}",
        )  # fmt: skip
    return Text(
        "What each shop's own ledger says it cost each customer there:", style="bold"
    ), table


def _promise(privacy: Document) -> str:
    return (
        f"The model's own statement: ε = {at_most(privacy['epsilon'])}, δ = {privacy['delta']:g} "
        f"for each {privacy['unit']}, whatever the server does with what it was sent."
    )
