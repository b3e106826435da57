"""Shops whose every byte is recorded on its way to the federation.

Between a shop's node and the gateway stands a forwarder with a certificate of the federation's own
authority: the shop takes it for the gateway, and what it sends is written down in clear.
"""

import asyncio
import base64
import gzip
import ssl
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil
import pyarrow as pa

from deployment_support import Deployed
from server.operating.authority import Pair, issue
from simulations.loopback.deployment import LocalShop, change

T = TypeVar("T")
_LOOPBACK = "127.0.0.1"
_LEAST = 8
_END_OF_HEAD = b"\r\n\r\n"


@dataclass
class Connection:
    """All bytes of one connection, in clear."""

    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Request:
    """One HTTP request: all that there is of it."""

    line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def path(self) -> str:
        """Where it went."""
        return self.line.split(" ")[1]


class Recorder:
    """Forwards TLS connections to the gateway, and keeps what passes.

    Parameters
    ----------
    operator
        The operator's folder: its authority signs the recorder's certificate.
    folder
        For the certificate.
    gateway
        The gateway's port on loopback.
    """

    def __init__(self, operator: Path, folder: Path, gateway: int) -> None:
        authority = Pair(operator / "ca" / "ca.key", operator / "ca" / "ca.crt")
        key, certificate = issue(authority, [_LOOPBACK])
        folder.mkdir(parents=True)
        (folder / "key.pem").write_bytes(key)
        (folder / "certificate.pem").write_bytes(certificate)
        self._shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._shown.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        self._trusted = ssl.create_default_context(cafile=str(authority.certificate))
        self._gateway = gateway
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: list[Connection] = []
        self.port = 0

    def __enter__(self) -> Self:
        """Listen at a free port."""
        self._thread.start()
        self._server = self._on_loop(self._listen())
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def sent(self) -> bytes:
        """All that the shop has sent, connection by connection."""
        return b"".join(bytes(c.sent) for c in self.connections)

    @property
    def received(self) -> bytes:
        """All that the shop was sent."""
        return b"".join(bytes(c.received) for c in self.connections)

    def requests(self) -> list[Request]:
        """Return all requests; an AssertionError tells of bytes that are part of none."""
        return [r for c in self.connections for r in requests(bytes(c.sent))]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, _LOOPBACK, 0, ssl=self._shown)

    async def _close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = Connection()
        self.connections.append(kept)
        with suppress(OSError):
            there = await asyncio.open_connection(_LOOPBACK, self._gateway, ssl=self._trusted)
            try:
                pumps = [
                    asyncio.ensure_future(_pump(reader, there[1], kept.sent)),
                    asyncio.ensure_future(_pump(there[0], writer, kept.received)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                there[1].close()
        writer.close()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
) -> None:
    while data := await reader.read(65536):
        kept += data
        writer.write(data)
        await writer.drain()


def requests(sent: bytes) -> list[Request]:
    """Return the requests of a connection, of which every byte belongs to one."""
    found = []
    while sent:
        head, end, rest = sent.partition(_END_OF_HEAD)
        assert end, f"bytes that are no request: {sent[:200]!r}"
        line, *lines = head.decode("ascii").split("\r\n")
        headers = tuple((n.lower(), v) for n, _, v in (one.partition(": ") for one in lines))
        length = int(dict(headers)["content-length"])
        assert len(rest) >= length, "a request that was cut off"
        found.append(Request(line, headers, rest[:length]))
        sent = rest[length:]
    return found


def forms(text: bytes) -> Iterator[bytes]:
    """Yield the ways in which a text might be written in bytes that are not compressed."""
    wide = text.decode()
    for plain in (text, wide.encode("utf-16-le"), wide.encode("utf-16-be")):
        yield plain
        yield plain.hex().encode()
        yield plain.hex().upper().encode()
        for shift in range(3):
            # Whatever stands before and after changes the first and the last characters.
            coded = base64.b64encode(b"\0" * shift + plain)
            inner = coded[4 if shift else 0 : len(coded) - 4]
            # Fewer characters turn up by chance.
            if len(inner) >= _LEAST:
                yield inner
                yield inner.replace(b"+", b"-").replace(b"/", b"_")


def occurrences(data: bytes, texts: Sequence[bytes]) -> list[bytes]:
    """Return which texts occur in bytes: plain, hex, base64, or any of these compressed."""
    places = [data, *_unpacked(data)]
    return [t for t in texts if any(form in place for form in forms(t) for place in places)]


def _unpacked(data: bytes) -> Iterator[bytes]:
    """Yield what unpacks from any place at which something compressed may begin."""
    starts: list[tuple[bytes, Callable[[bytes], bytes]]] = [
        (b"\x1f\x8b\x08", lambda d: zlib.decompressobj(31).decompress(d)),
        (b"\x28\xb5\x2f\xfd", _zstd),
        *((bytes([0x78, level]), lambda d: zlib.decompressobj().decompress(d))
          for level in (0x01, 0x5E, 0x9C, 0xDA)),
    ]  # fmt: skip
    for magic, unpack in starts:
        at = data.find(magic)
        while at >= 0:
            with suppress(zlib.error, OSError, EOFError, gzip.BadGzipFile):
                yield unpack(data[at:])
            at = data.find(magic, at + 1)


def _zstd(data: bytes) -> bytes:
    found = b""
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream, suppress(OSError):
        while block := stream.read(1):
            found += block
    return found


class Watch:
    """Notes all that the processes of some shops are connected to, as long as the block lasts."""

    def __init__(self, federation: Deployed, shops: Sequence[LocalShop]) -> None:
        self._federation, self._shops = federation, shops
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        #: (shop, program, remote address, remote port); listening sockets have no remote.
        self.seen: set[tuple[str, str, str, int]] = set()
        self.listening: set[tuple[str, str, str]] = set()
        self.looks = 0

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(1.0):
            for shop in self._shops:
                for process in self._federation.processes(shop):
                    with suppress(psutil.Error):
                        self._note(shop, process)
            self.looks += 1

    def _note(self, shop: LocalShop, process: psutil.Process) -> None:
        words = " ".join(process.cmdline())
        names = ("client.node", "flower-superexec", "flwr-clientapp", "client run")
        name = next((n for n in names if n in words), words)
        for one in process.net_connections("inet"):
            if one.raddr:
                self.seen.add((shop.name, name, one.raddr.ip, one.raddr.port))
            elif one.status == psutil.CONN_LISTEN:
                self.listening.add((shop.name, name, one.laddr.ip))


@contextmanager
def recorded(federation: Deployed, shops: Sequence[LocalShop]) -> Iterator[dict[str, Recorder]]:
    """Yield a recorder for each shop; their settings name it as the federation's address."""
    with ExitStack() as stack:
        found = {}
        for shop in shops:
            place = federation.folder / "recorders" / shop.name
            recorder = Recorder(federation.operator, place, federation.gateway_port)
            found[shop.name] = stack.enter_context(recorder)
            change(shop.settings, {"address": f"{_LOOPBACK}:{recorder.port}"})
        yield found
