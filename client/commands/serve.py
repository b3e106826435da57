"""``python -m client serve``: the shop's own service. Wiring only.

The interface itself, REST and gRPC, is the federation's (:mod:`server.query`): this command is the
one place of a shop that knows it.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from common.options import GrpcPort, RestPort

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    shop: Annotated[
        Path, typer.Argument(help="The shop's folder, or its settings (shop.toml).")
    ] = Path(),
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --keys.")
    ] = "127.0.0.1",
    port: RestPort = 8080,
    grpc_port: GrpcPort = 50051,
    keys: Annotated[
        Path | None,
        typer.Option(help="Answer holders of these API keys only: python -m server keys add."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second a caller.")] = 200.0,
    burst: Annotated[float, typer.Option(min=1, help="Requests at once a caller.")] = 400.0,
) -> None:
    """Answer inside the shop over gRPC and REST, from its own model and data, until Ctrl-C.

    A request may name a customer by user_id: what they did is read from the shop's data then, and
    is neither kept nor sent anywhere.
    """
    from client.home.host import HomeHost
    from client.settings import read_settings
    from client.shop_folder import settings_file
    from common.cli import log_for_weeks, stages
    from common.errors import ConfigError
    from server.query.browsing import About
    from server.query.serving import ListenSettings, in_address, service_of
    from server.query.serving import serve as serve_all

    path = settings_file(shop)
    merchant_id = read_settings(path).merchant_id
    if host not in _LOOPBACK and keys is None:
        raise ConfigError(
            f"whoever reaches {host} could ask what the shop's customers bought: give --keys FILE "
            "too (python -m server keys add NAME --keys FILE makes one), and a certificate"
        )
    listen = ListenSettings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        keys=keys,
        tls_cert=tls_cert,
        tls_key=tls_key,
        rate=rate,
        burst=burst,
        host_names=_LOOPBACK if host in _LOOPBACK else (),
    )
    log_for_weeks("server", "client.home.host", "uvicorn.error")
    home = HomeHost(path)
    with stages() as stage:
        stage("reading the shop's model")
        home.refresh()
    scheme, name = "https" if tls_cert else "http", in_address(host)

    def started(rest_port: int, grpc_at: int) -> None:
        sys.stderr.write(
            f"serving {scheme}://{name}:{rest_port}  gRPC {name}:{grpc_at}  (Ctrl-C ends it)\n"
        )

    about = About(where="shop", merchant_id=merchant_id)
    serve_all(listen, service_of(home, listen), started, about)
