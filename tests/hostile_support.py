"""A service under attack: planted words that may never be seen again, and what must hold after."""

import contextlib
import re
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx

from query_support import Running

#: In everything that is sent. Whatever is written down anywhere must be without it.
PLANTED = "planted-9c41"
HEALTHY = {"history": [{"item_id": "p0003"}, {"item_id": "p0100", "weight": 0.5}], "k": 7}


def raw(service: Running, *pieces: bytes, wait: float = 10.0, pause: float = 0.0) -> bytes:
    """Send bytes to the REST port as they are, and return the first answer, or all until it closes.

    Of a refusal the length is known; the service goes on reading for a moment after it. What is
    sent later than that makes it undeliverable: so who is refused sends no more.
    """
    host, port = service.rest.removeprefix("http://").rsplit(":", 1)
    received = b""
    with (
        socket.create_connection((host, int(port)), timeout=wait) as connection,
        contextlib.suppress(ConnectionError),
    ):
        for piece in pieces:
            connection.sendall(piece)
            if select.select([connection], [], [], pause)[0]:
                break
        while part := connection.recv(65536):
            received += part
            if b"connection: close" in received and _whole(received):
                break
    return received


def _whole(answer: bytes) -> bool:
    head, _, body = answer.rpartition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.rpartition(b"HTTP/1.1 ")[2])
    return length is not None and len(body) >= int(length.group(1))


def status_of(answer: bytes) -> int:
    """Return the status of a raw HTTP answer."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


def healthy(service: Running, key: str) -> dict[str, Any]:
    """Return a good request's answer."""
    headers = {"authorization": f"Bearer {key}"}
    found: dict[str, Any] = (
        httpx.post(f"{service.rest}/v1/recommend", json=HEALTHY, headers=headers, timeout=20)
        .raise_for_status()
        .json()
    )
    return found


@contextlib.contextmanager
def unharmed(service: Running, key: str = "none") -> Iterator[None]:
    """Hold the service to its promises around whatever is done to it.

    It lives, answers a good request as before, and has written neither a stack trace nor anything
    of what was sent.
    """
    before, written = healthy(service, key), len(service.log)
    yield
    assert healthy(service, key) == before
    assert service.process.poll() is None
    time.sleep(0.05)
    # The good request's own line shows that the log is really being read.
    log = "".join(service.log[written:])
    assert "method=recommend status=ok" in log
    for word in (PLANTED, "Traceback", "status=failed", "Exception"):
        assert word not in log, [line for line in log.splitlines() if word in line][:3]
    metrics = httpx.get(f"{service.rest}/metrics").text
    assert PLANTED not in metrics
