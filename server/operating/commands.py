"""``python -m server init, up, enrol ...``: parses and calls. The operator's own commands."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from common.cli import print_document
from common.options import Json
from server.arguments import HERE, Federation

operator_app = typer.Typer()


@operator_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    name: Annotated[str, typer.Option(help="What the federation is called.")] = "fedtail",
    address: Annotated[
        str, typer.Option(help="Where shops will reach the gateway, host:port.")
    ] = "localhost:8443",
    host: Annotated[
        list[str] | None, typer.Option(help="More names or addresses for its certificate.")
    ] = None,
    superlink_port: Annotated[
        int, typer.Option(min=1, max=65535, help="SuperLink's port, on loopback.")
    ] = 9092,
    as_json: Json = False,
) -> None:
    """Make an operator's folder: authority, certificates, secrets, settings; over nothing."""
    from server.operating.folder import make_federation
    from server.operating.tables import made, made_table

    made_now = make_federation(
        folder, name, address, superlink_port=superlink_port, hosts=host or []
    )
    print_document(made(made_now), made_table, as_json=as_json)


@operator_app.command()
def renew(federation: Federation = HERE, as_json: Json = False) -> None:
    """Issue new server certificates for the same hosts; `up` reads them when it starts."""
    from server.operating import folder as folders
    from server.operating.tables import renewed, renewed_table

    opened = folders.open_federation(federation)
    print_document(renewed(opened, folders.renew(opened)), renewed_table, as_json=as_json)


@operator_app.command()
def enrol(
    shop: Annotated[str, typer.Argument(help="Its name: the merchant_id of its data.")],
    key: Annotated[Path, typer.Argument(help="Its public key, EC P-384 as OpenSSH writes it.")],
    federation: Federation = HERE,
    as_json: Json = False,
) -> None:
    """Let a shop take part; a running SuperLink is told at once."""
    from server.operating.enrolling import enrol as enrol_shop
    from server.operating.folder import open_federation
    from server.operating.tables import change_table

    document = enrol_shop(open_federation(federation), shop, key)
    print_document(document, change_table, as_json=as_json)


@operator_app.command()
def rename(
    shop: Annotated[str, typer.Argument(help="The name that it was enrolled under.")],
    to: Annotated[str, typer.Argument(help="The right one: the merchant_id of its data.")],
    federation: Federation = HERE,
    as_json: Json = False,
) -> None:
    """Correct a mistyped name, as long as SuperLink was not told of it."""
    from server.operating.enrolling import rename as rename_shop
    from server.operating.folder import open_federation
    from server.operating.tables import change_table

    document = rename_shop(open_federation(federation), shop, to)
    print_document(document, change_table, as_json=as_json)


@operator_app.command()
def remove(
    shop: Annotated[str, typer.Argument(help="Its name.")],
    federation: Federation = HERE,
    as_json: Json = False,
) -> None:
    """Let a shop take part no more; a running SuperLink is told at once."""
    from server.operating.enrolling import remove as remove_shop
    from server.operating.folder import open_federation
    from server.operating.tables import change_table

    document = remove_shop(open_federation(federation), shop)
    print_document(document, change_table, as_json=as_json)


@operator_app.command()
def shops(
    federation: Federation = HERE,
    tell: Annotated[
        bool, typer.Option("--tell", help="Tell SuperLink first what it missed; `up` does so.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the enrolled shops, and how SuperLink sees each while it is up."""
    from server.operating.enrolling import listed
    from server.operating.folder import open_federation
    from server.operating.tables import shops_table

    print_document(listed(open_federation(federation), tell=tell), shops_table, as_json=as_json)


@operator_app.command()
def roster(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where a copy goes, to be sent.")
    ] = None,
    federation: Federation = HERE,
    as_json: Json = False,
) -> None:
    """Write the roster of the enrolled shops, which every shop of secure sums has to accept."""
    from server.operating.folder import open_federation
    from server.operating.sum_roster import roster_table, write_roster

    document = write_roster(open_federation(federation), out)
    print_document(document, roster_table, as_json=as_json)


@operator_app.command()
def up(federation: Federation = HERE) -> None:
    """Run SuperLink, SuperExec and the gateway until Ctrl-C; restart what dies."""
    from server.operating.folder import open_federation
    from server.operating.services import up as run_services

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    for room in ("common", "server"):
        logging.getLogger(room).setLevel(logging.INFO)
    try:
        run_services(open_federation(federation))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@operator_app.command()
def ports(federation: Federation = HERE, as_json: Json = False) -> None:
    """List what the running services listen at, and who can reach it."""
    from server.operating.folder import open_federation
    from server.operating.tables import listening, ports_table

    print_document(listening(open_federation(federation)), ports_table, as_json=as_json)
