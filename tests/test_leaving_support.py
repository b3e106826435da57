"""The search finds what is hidden in bytes, and the record of a connection has no gaps."""

import base64
import gzip
import zlib
from collections.abc import Callable

import pyarrow as pa
import pytest

from leaving_support import Request, occurrences, requests

SECRET = b"CUSTOMER-q7zx"
NOISE = bytes(range(256)) * 4


def _base64(shift: int) -> Callable[[bytes], bytes]:
    return lambda text: base64.b64encode(b"x" * shift + text + b"y" * 5)


def _zstd(text: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(text, asbytes=True))


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: text,
        lambda text: text.decode().encode("utf-16-le"),
        lambda text: text.hex().encode(),
        lambda text: text.hex().upper().encode(),
        _base64(0),
        _base64(1),
        _base64(2),
        lambda text: base64.urlsafe_b64encode(b"\xff\xfe" + text),
        lambda text: gzip.compress(NOISE + text),
        lambda text: zlib.compress(text, 1),
        lambda text: zlib.compress(text.hex().encode(), 9),
        lambda text: gzip.compress(_base64(1)(text)),
        lambda text: _zstd(NOISE + text),
    ],
)
def test_a_text_is_found_however_it_is_written(hide: Callable[[bytes], bytes]) -> None:
    data = NOISE + hide(SECRET) + NOISE
    assert occurrences(data, [b"CUSTOMER-other", SECRET]) == [SECRET]
    assert occurrences(NOISE + hide(b"CUSTOMER-other") + NOISE, [SECRET]) == []


def test_a_short_word_is_not_found_where_it_is_not() -> None:
    assert occurrences(NOISE, [b"Errno", b"apps"]) == []
    assert occurrences(NOISE + b"[Errno 28]", [b"Errno", b"apps"]) == [b"Errno"]


def test_every_byte_of_a_connection_belongs_to_a_request() -> None:
    one = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    found = requests(one + one)
    assert found == [
        Request("POST /v1/fleet/get-run HTTP/1.1", (("host", "a"), ("content-length", "3")), b"abc")
    ] * 2  # fmt: skip
    assert found[0].path == "/v1/fleet/get-run"
    for sent in (one + b"u1", one[:-1]):
        with pytest.raises(AssertionError):
            requests(sent)
