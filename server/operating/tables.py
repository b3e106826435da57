"""What the operator's commands say: documents, and what people see of them."""

import os
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from common.errors import RunError
from server.operating.authority import expiry
from server.operating.folder import Federation
from server.operating.listening import listeners
from server.operating.services import is_up
from server.variables import SUPERLINK_VARIABLE


def made(federation: Federation) -> dict[str, Any]:
    """Return what ``init`` made."""
    return {
        "folder": str(federation.folder),
        "name": federation.settings.name,
        "address": federation.settings.address,
        "authority": str(federation.authority.certificate),
        "certificates_until": expiry(federation.gateway.certificate).isoformat(),
    }


def made_table(document: dict[str, Any]) -> Group:
    """Return what ``init`` says, and what comes next."""
    return Group(
        f"Made {escape(document['folder'])} for {escape(document['name'])} "
        f"at {escape(document['address'])}; certificates until "
        f"{document['certificates_until'][:10]}.",
        f"Give every shop the address and {escape(document['authority'])}, and nothing else of it.",
        "Next, in that folder or with --federation:",
        "  python -m server catalogue publish PRODUCTS",
        "  python -m server enrol SHOP KEY.pub",
        "  python -m server up",
    )


def renewed(federation: Federation, paths: list[Path]) -> dict[str, Any]:
    """Return what ``renew`` replaced."""
    root = federation.authority.certificate
    return {
        "renewed": [str(path) for path in paths],
        "certificates_until": expiry(federation.gateway.certificate).isoformat(),
        "shops_need_new_authority": root in paths,
        "up": is_up(federation),
    }


def renewed_table(document: dict[str, Any]) -> Group:
    """Return what ``renew`` says."""
    lines = [f"renewed {escape(path)}" for path in document["renewed"]]
    lines.append(f"valid until {document['certificates_until'][:10]}")
    if document["shops_need_new_authority"]:
        lines.append("Give every shop the new ca.crt: the old one ends before these certificates.")
    if document["up"]:
        lines.append("Start `python -m server up` again: it reads certificates when it starts.")
    return Group(*lines)


def change_table(document: dict[str, Any]) -> str:
    """Return what ``enrol``, ``rename`` and ``remove`` say."""
    if document["superlink_told"]:
        told = "SuperLink knows"
    elif SUPERLINK_VARIABLE in os.environ:
        told = "SuperLink does not know: `shops --tell` tells it, once it is up"
    else:
        told = "SuperLink is told when it starts"
    names = [document[key] for key in ("before", "shop") if key in document]
    words = f"{document['done']} {escape(' to '.join(names))}"
    return f"{words} (key {document['key'][:16]}...); {told}"


def shops_table(document: dict[str, Any]) -> Table | str:
    """Return the list of shops."""
    if not document["shops"]:
        return "no shop is enrolled: python -m server enrol SHOP KEY.pub"
    table = Table("shop", "key (SHA-256)", "node", title=escape(document["federation"]))
    absent = "not admitted" if document["up"] else "SuperLink is not up"
    for shop in document["shops"]:
        table.add_row(escape(shop["shop"]), shop["key"][:16] + "...", shop["status"] or absent)
    return table


def listening(federation: Federation) -> dict[str, Any]:
    """Return what the running services listen at.

    Raises
    ------
    RunError
        If they are not up.
    """
    if not is_up(federation):
        raise RunError(f"{federation.folder} is not up: python -m server up")
    return {
        "federation": federation.settings.name,
        "listeners": [
            {
                "port": one.port,
                "address": one.address,
                "program": one.program,
                "pid": one.pid,
                "outside": one.outside,
                "serves": one.serves,
            }
            for one in listeners(federation)
        ],
    }


def ports_table(document: dict[str, Any]) -> Table:
    """Return the list of ports."""
    table = Table("port", "address", "program", "reachable", "serves")
    for one in document["listeners"]:
        row = (one["address"], one["program"], reachable(one), one["serves"])
        table.add_row(str(one["port"]), *map(escape, row))
    return table


def reachable(listener: dict[str, Any]) -> str:
    """Return in words who can reach a port."""
    return "from outside" if listener["outside"] else "this machine alone"
