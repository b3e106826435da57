"""What may arrive over HTTP, and how slowly: limits that the web server leaves open.

The parser keeps headers of any size, and waits for the rest of a request for ever. A caller who
sends a byte a minute would then hold a connection as long as it likes.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of a request's first line and headers.
MAX_HEAD = 64 * 1024
#: Connections at a time; idle ones end after seconds, so more than these are no customers.
MAX_CONNECTIONS = 2000
_LINGER_SECONDS = 1.0

_WORDS = {
    400: ("400 Bad Request", "this is no HTTP/1.1 request"),
    408: ("408 Request Timeout", "the request took too long to arrive"),
    431: (
        "431 Request Header Fields Too Large",
        f"the headers are larger than {MAX_HEAD} bytes",
    ),
    503: ("503 Service Unavailable", "too many connections: try again later"),
}


class _Protocol(HttpToolsProtocol):
    """One connection."""

    patience_seconds = 60.0

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **named)
        self._head = 0  # Bytes of a head that has no end yet.
        self._kept = 0  # Bytes of its headers that were understood.
        self._in_head = True
        self._ended = False
        self._refused = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or say that there are too many."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection."""
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on; what has no end yet must not grow beyond the limit."""
        if self._refused or self.transport.is_closing():
            return
        self._wait()
        self._ended = False
        super().data_received(data)
        # Where a request ended in these bytes, most of them were its own.
        if self._in_head and not self._ended:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._kept, self._in_head = 0, True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, if that is not too much."""
        self._kept += len(name) + len(value)
        if self._kept > MAX_HEAD:
            raise ValueError("too large")  # The parser makes a refusal of it.
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head: the body has a limit of its own."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock: the whole request is here."""
        self._arrived()
        self._head, self._in_head, self._ended = 0, True, True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request in the form of all other refusals."""
        del msg
        self._refuse(431 if self._kept > MAX_HEAD else 400)

    def shutdown(self) -> None:
        """Say with the answer under way that it is the last on this connection.

        Else whoever gets it sends the next request there, and finds the connection reset.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            scope = self.cycle.scope
            scope["headers"] = [*scope["headers"], CLOSE_HEADER]
        super().shutdown()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.patience_seconds, self._refuse, 408)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: int) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._arrived()
        self._refused = True
        line, words = _WORDS[status]
        body = json.dumps({"error": words}).encode()
        head = (
            f"HTTP/1.1 {line}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Closed at once, what is still coming in would make the answer undeliverable.
        self._late = self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def protocol(patience_seconds: float) -> type[HttpToolsProtocol]:
    """Return the protocol of connections on which a request may take so long to arrive."""
    return type("Arriving", (_Protocol,), {"patience_seconds": patience_seconds})
