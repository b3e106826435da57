"""Starts both interfaces over one service, and ends them without dropping a request."""

import asyncio
import gc
import logging
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import uvicorn

from common.errors import ConfigError, RunError
from server.query.answering import Host, Metrics, Service
from server.query.arriving import protocol
from server.query.before_body import OwnName
from server.query.browsing import About
from server.query.grpc_service import grpc_server
from server.query.rest import rest_app
from server.query.security import Keys, RateLimit

logger = logging.getLogger(__name__)

#: How long a request may still take when the service ends, over REST and gRPC alike.
GRACE_SECONDS = 10.0
#: How long a thread may keep others waiting: Python's own 5 ms is half of what an answer may take.
_TURN_SECONDS = 0.001


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """Where to serve, and whom.

    Attributes
    ----------
    keys
        File of API keys; None serves everybody.
    rate, burst
        Requests a second for each caller, and at once.
    workers
        Threads that compute the answers of gRPC.
    look_every_seconds
        How often to look for another model.
    patience_seconds
        How long a request over HTTP may take to arrive.
    host_names
        Names of the service that an HTTP request may call it by; empty: any. A page from elsewhere
        that has its own name point to this machine is then not answered.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int = 50051
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    rate: float = 200.0
    burst: float = 400.0
    workers: int = 4
    look_every_seconds: float = 2.0
    patience_seconds: float = 60.0
    host_names: tuple[str, ...] = ()


def serve(
    settings: ListenSettings,
    service: Service,
    started: Callable[[int, int], object],
    about: About | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; ``started`` is told the ports of REST and gRPC.

    Raises
    ------
    ConfigError
        If settings do not fit together, or an address can't be listened at.
    """
    sys.setswitchinterval(_TURN_SECONDS)
    # A search for garbage among modules and the model takes 100 ms, and nothing goes on meanwhile.
    gc.collect()
    gc.freeze()
    asyncio.run(_serve(settings, service, about or About(), started))


async def _serve(
    settings: ListenSettings,
    service: Service,
    about: About,
    started: Callable[[int, int], object],
) -> None:
    leaving = asyncio.Event()
    with ThreadPoolExecutor(settings.workers, "grpc") as pool:
        try:
            grpc_, grpc_port = await grpc_server(
                service,
                pool,
                credentials=_credentials(settings),
                address=f"{in_address(settings.host)}:{settings.grpc_port}",
                leaving=leaving,
            )
        except RuntimeError as error:
            raise ConfigError(
                f"cannot listen on {in_address(settings.host)}:{settings.grpc_port} for gRPC: is "
                "it taken, or no address of this machine? Choose another with --grpc-port or --host"
            ) from error
        service.host.watch(settings.look_every_seconds)
        await grpc_.start()

        async def end_grpc() -> None:
            await leaving.wait()
            await grpc_.stop(GRACE_SECONDS)

        ending = asyncio.create_task(end_grpc())
        try:
            await _rest(settings, service, about, lambda port: started(port, grpc_port), leaving)
        finally:
            leaving.set()
            await ending
            service.host.close()


def in_address(host: str) -> str:
    """Return a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def service_of(host: Host, settings: ListenSettings) -> Service:
    """Return the service over whatever holds the model."""
    keys = None if settings.keys is None else Keys(settings.keys)
    if keys is not None and not keys.list():
        logger.warning(
            "keys=%s holds no key yet: until `python -m server keys add` puts one there, nobody is "
            "answered",
            keys.path,
        )
    return Service(
        host=host,
        metrics=Metrics(host),
        rate=RateLimit(settings.rate, settings.burst),
        keys=keys,
    )


def _credentials(settings: ListenSettings) -> grpc.ServerCredentials | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together: give both or none")
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
        # gRPC would only say that it can't listen.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"{settings.tls_cert} and {settings.tls_key} are no certificate with its own "
            "private key, in PEM and without a password: give --tls-cert and --tls-key such files"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
    return grpc.ssl_server_credentials((pair,))


async def _rest(
    settings: ListenSettings,
    service: Service,
    about: About,
    started: Callable[[int], object],
    leaving: asyncio.Event,
) -> None:
    app = rest_app(service, about)
    if settings.host_names:
        app.add_middleware(OwnName, names=settings.host_names)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol(settings.patience_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(GRACE_SECONDS),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    running = loop.create_task(_until_ended(server, settings))

    def leave() -> None:
        server.should_exit = True
        leaving.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
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


async def _until_ended(server: uvicorn.Server, settings: ListenSettings) -> None:
    try:
        await server.serve()
    except SystemExit as error:
        raise ConfigError(
            f"cannot listen on {in_address(settings.host)}:{settings.port}: is it taken, or no "
            "address of this machine? Choose another with --port or --host"
        ) from error
    if not server.started:
        raise RunError("the web server did not start: see the log above")
