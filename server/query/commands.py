"""``python -m server serve`` and ``keys``: parse and call."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from common.cli import print_json
from common.options import GrpcPort, Json, RestPort

keys_app = typer.Typer(help="API keys of the query service.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Option("--keys", help="The file of keys.")]


def serve(
    registry: Annotated[str, typer.Argument(help="The registry: a folder, or an fsspec URL.")],
    catalogue: Annotated[
        Path, typer.Option(help="The published catalogue, or the folder of its versions.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: RestPort = 8080,
    grpc_port: GrpcPort = 50051,
    stock: Annotated[
        Path | None, typer.Option(help="JSON: merchant_id -> item_ids that it stocks.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Serve holders of these API keys only: see keys add.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second a caller.")] = 200.0,
    burst: Annotated[float, typer.Option(min=1, help="Requests at once a caller.")] = 400.0,
    precision: Annotated[
        str,
        typer.Option(
            help="How vectors are read, with the same answers: float32; int8, sooner where "
            "products are many; auto: whichever is sooner."
        ),
    ] = "auto",
    look_every: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the registry.")
    ] = 2.0,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a request may take to arrive.")
    ] = 60.0,
    report: Annotated[
        Path | None, typer.Option(help="A simulation's report.json, which the page shows.")
    ] = None,
) -> None:
    """Answer from the served version of a registry over gRPC, REST and a page, until Ctrl-C."""
    from common.cli import log_for_weeks, stages
    from server.query.browsing import about_from
    from server.query.registry_service import ServeSettings, make_service
    from server.query.serving import in_address
    from server.query.serving import serve as serve_all

    settings = ServeSettings(
        registry=registry,
        catalogue=catalogue,
        host=host,
        port=port,
        grpc_port=grpc_port,
        stock=stock,
        keys=keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        rate=rate,
        burst=burst,
        precision=precision,
        look_every_seconds=look_every,
        patience_seconds=patience,
    )
    log_for_weeks("server", "uvicorn.error")
    scheme, name = "https" if tls_cert else "http", in_address(host)

    def started(rest_port: int, grpc_at: int) -> None:
        sys.stderr.write(
            f"serving {scheme}://{name}:{rest_port}  gRPC {name}:{grpc_at}  (Ctrl-C ends it)\n"
        )

    about = about_from(report)
    with stages() as stage:
        stage("reading the registry and its served model")
        service = make_service(settings)
    serve_all(settings, service, started, about)


@keys_app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    keys: KeyFile,
    as_json: Json = False,
) -> None:
    """Make a key and show it: only its hash is kept, so it can't be shown again."""
    from server.query.security import Keys

    key = Keys(keys).add(name)
    if as_json:
        print_json({"name": name, "key": key})
    else:
        sys.stdout.write(f"{key}\n")


@keys_app.command("list")
def list_keys(
    keys: KeyFile,
    as_json: Json = False,
) -> None:
    """List whose keys there are."""
    from server.query.security import Keys

    found = [{"name": key.name, "created_at": key.created_at} for key in Keys(keys).list()]
    if as_json:
        print_json({"keys": found})
        return
    for key in found:
        sys.stdout.write(f"{key['created_at']}  {key['name']}\n")


@keys_app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Whose key stops to work, at once.")], keys: KeyFile
) -> None:
    """Remove a key."""
    from server.query.security import Keys

    Keys(keys).remove(name)
