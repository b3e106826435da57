"""Starts both interfaces over one registry, and ends them without dropping a request."""

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import uvicorn

from common.errors import ConfigError, RunError
from common.features import Catalogue, read_catalogue
from server.catalogues import Catalogues
from server.query.answering import Metrics, Service
from server.query.grpc_service import grpc_server
from server.query.host import FindCatalogue, ModelHost
from server.query.index import ExactIndex, Index, Int8Index
from server.query.rest import rest_app
from server.query.security import Keys, RateLimit
from server.registry import Registry

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class ServeSettings:
    """Where to serve what, and to whom.

    Attributes
    ----------
    catalogue
        A published catalogue, or a folder of its versions.
    stock
        JSON: merchant_id -> item_ids that the shop stocks; optional.
    keys
        File of API keys; None serves everybody.
    rate, burst
        Requests a second for each caller, and at once.
    precision
        ``float32`` exact, or ``int8``.
    """

    registry: str
    catalogue: Path
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 50051
    stock: Path | None = None
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    rate: float = 200.0
    burst: float = 400.0
    workers: int = 4
    precision: str = "float32"
    look_every_seconds: float = 2.0


def serve(settings: ServeSettings, service: Service, started: Callable[[int, int], object]) -> None:
    """Serve until SIGTERM or Ctrl-C; ``started`` is told the ports of REST and gRPC.

    Raises
    ------
    ConfigError
        If settings do not fit together, or a port is taken.
    """
    credentials = _credentials(settings)
    try:
        grpc_, grpc_port = grpc_server(
            service,
            workers=settings.workers,
            credentials=credentials,
            address=f"{settings.host}:{settings.grpc_port}",
        )
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.grpc_port} for gRPC: is it taken? "
            "Choose another with --grpc-port"
        ) from error
    service.host.watch(settings.look_every_seconds)
    grpc_.start()
    try:
        asyncio.run(_rest(settings, service, lambda port: started(port, grpc_port)))
    finally:
        grpc_.stop(_GRACE_SECONDS).wait()
        service.host.close()


def make_service(settings: ServeSettings) -> Service:
    """Return the service over the registry, with its model loaded if there is one."""
    makers: dict[str, Callable[[np.ndarray], Index]] = {
        "float32": ExactIndex,
        "int8": Int8Index.of,
    }
    if settings.precision not in makers:
        raise ConfigError(f"precision {settings.precision!r}: choose float32 or int8")
    host = ModelHost(
        Registry(settings.registry),
        find_catalogue(settings.catalogue, settings.stock),
        makers[settings.precision],
    )
    host.refresh()
    return Service(
        host=host,
        metrics=Metrics(host),
        rate=RateLimit(settings.rate, settings.burst),
        keys=None if settings.keys is None else Keys(settings.keys),
    )


def find_catalogue(folder: Path, stock: Path | None) -> FindCatalogue:
    """Return what finds a catalogue by fingerprint: the one in ``folder``, or a version in it."""

    def find(fingerprint: str) -> tuple[Catalogue, dict[str, np.ndarray]]:
        if (folder / "catalogue.json").exists():
            catalogue = read_catalogue(folder)
        else:
            catalogue = Catalogues(folder).read(fingerprint)
        return catalogue, {} if stock is None else _stock(stock, catalogue)

    return find


def _stock(path: Path, catalogue: Catalogue) -> dict[str, np.ndarray]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        found = {
            str(m): catalogue.rows([str(item) for item in items]) for m, items in listed.items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is not JSON of merchant_id -> item_ids: {error}") from error
    return {merchant: rows[rows >= 0].astype(np.int64) for merchant, rows in found.items()}


def _credentials(settings: ServeSettings) -> grpc.ServerCredentials | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together: give both or none")
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    return grpc.ssl_server_credentials((pair,))


async def _rest(
    settings: ServeSettings, service: Service, started: Callable[[int], object]
) -> None:
    config = uvicorn.Config(
        rest_app(service),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(_GRACE_SECONDS),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    running = loop.create_task(_until_ended(server, settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    while not server.started and not running.done():
        await asyncio.sleep(0.02)
    if not running.done():
        started(server.servers[0].sockets[0].getsockname()[1])
    await running


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn would raise them again after the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _until_ended(server: uvicorn.Server, settings: ServeSettings) -> None:
    try:
        await server.serve()
    except SystemExit as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: is it taken? Choose another with "
            "--port"
        ) from error
    if not server.started:
        raise RunError("the web server did not start: see the log above")
