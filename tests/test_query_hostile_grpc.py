"""What comes over gRPC: a clear status, no crash, no stack trace, nothing of it written down."""

import asyncio
import logging
import queue
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from hostile_support import PLANTED, unharmed
from query_support import Running, make_place, running
from server.query import grpc_service
from server.query.answering import Host, Metrics, Service
from server.query.grpc_service import grpc_server
from server.query.requests import MAX_BATCH_HISTORY
from server.query.security import RateLimit
from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc

pytestmark = pytest.mark.e2e
SERVICE = "/fedtail.v1.Recommender/"
METHODS = ("Recommend", "RecommendBatch", "Similar", "Explain", "ListModels", "Privacy")
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = make_place(tmp_path_factory.mktemp("hostile"))
    with running(place, "--rate", "1e6", "--burst", "1e6") as found:
        yield found


@pytest.fixture(autouse=True)
def _unharmed(service: Running) -> Iterator[None]:
    with unharmed(service):
        yield


@pytest.fixture
def channel(service: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.grpc) as found:
        yield found


def code_of(channel: grpc.Channel, method: str, message: bytes, **more: Any) -> grpc.StatusCode:
    """Send bytes as they are; return the code, after a look at the words."""
    path = method if method.startswith("/") else SERVICE + method
    call = channel.unary_unary(path).future(message, timeout=20, **more)
    assert PLANTED not in (call.details() or "")
    found: grpc.StatusCode = call.code()
    return found


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\xff",
        PLANTED.encode() * 3,
        b"\x0a\x05abc",
        b"\x0a\x04\x0a\x02\xff\xfe",
        b"\x0a\x02" * 200_000,
        b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x18" + b"\xff" * 11,
        b"\x0b" * 100_000,
    ],
    ids=range(8),
)
@pytest.mark.parametrize(
    "method", ["Recommend", "RecommendBatch", "Similar", "/grpc.health.v1.Health/Check"]
)
def test_bytes_that_are_no_message_are_refused(
    channel: grpc.Channel, method: str, message: bytes
) -> None:
    # To the health check, the fifth is the name of a service that there is not.
    assert code_of(channel, method, message) in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


def test_streams_of_what_is_no_message_are_refused(channel: grpc.Channel) -> None:
    sent = PLANTED.encode()
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    for call in (
        channel.unary_stream("/grpc.health.v1.Health/Watch")(sent, timeout=10),
        channel.stream_stream(reflection)(iter([sent]), timeout=10),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            list(call)
        assert failure.value.code() == Code.INVALID_ARGUMENT


def test_no_change_to_a_message_s_bytes_fails_the_service(channel: grpc.Channel) -> None:
    draw = random.Random(7)
    request = wire.RecommendRequest(
        history=[wire.HistoryProduct(item_id="p0003", weight=0.5)],
        attributes={"age": PLANTED},
        k=5,
        tail_dial=0.25,
        filters=wire.Filters(category="tea", price_from=1.0, exclude=["p0004"]),
        reasons=True,
    ).SerializeToString()
    batch = wire.BatchRequest(requests=[wire.RecommendRequest(k=2)] * 3).SerializeToString()
    seen = set()
    for number in range(400):
        whole = bytearray((request, batch)[number % 2])
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(whole))
            match draw.randrange(3):
                case 0:
                    whole[at] ^= 1 << draw.randrange(8)
                case 1:
                    del whole[at : at + draw.randint(1, 5)]
                case _:
                    whole[at:at] = draw.randbytes(draw.randint(1, 5))
            whole = whole or bytearray(b"\x00")
        method = METHODS[draw.randrange(4)]
        seen.add(code_of(channel, method, bytes(whole)))
    assert seen == {Code.OK, Code.INVALID_ARGUMENT}


def _products(count: int, item: str = "") -> list[wire.HistoryProduct]:
    return [wire.HistoryProduct(item_id=item)] * count


REFUSED: dict[str, tuple[str, Any, grpc.StatusCode]] = {
    "negative k": ("Recommend", wire.RecommendRequest(k=-1), Code.INVALID_ARGUMENT),
    "large k": (
        "Similar",
        wire.SimilarRequest(item_id="p0003", k=2**31 - 1),
        Code.INVALID_ARGUMENT,
    ),
    "nan": ("Recommend", wire.RecommendRequest(tail_dial=float("nan")), Code.INVALID_ARGUMENT),
    "infinite weight": (
        "Explain",
        wire.ExplainRequest(
            item_id="p0003",
            history=[wire.HistoryProduct(item_id="p0004", weight=float("inf"))],
        ),
        Code.INVALID_ARGUMENT,
    ),
    "nan in a filter": (
        "Recommend",
        wire.RecommendRequest(filters=wire.Filters(minimum_score=float("nan"))),
        Code.INVALID_ARGUMENT,
    ),
    "an empty name": ("Similar", wire.SimilarRequest(), Code.INVALID_ARGUMENT),
    "no requests": ("RecommendBatch", wire.BatchRequest(), Code.INVALID_ARGUMENT),
    "a batch in all": (
        "RecommendBatch",
        wire.BatchRequest(
            requests=[wire.RecommendRequest(history=_products(9_000, "p1"))]
            * (MAX_BATCH_HISTORY // 9_000 + 1)
        ),
        Code.INVALID_ARGUMENT,
    ),
    "a hundred thousand reasons": (
        "RecommendBatch",
        wire.BatchRequest(requests=[wire.RecommendRequest(k=1000, reasons=True)] * 100),
        Code.INVALID_ARGUMENT,
    ),
    "reasons of a long history": (
        "Recommend",
        wire.RecommendRequest(history=_products(10_000, "p1"), k=1000, reasons=True),
        Code.INVALID_ARGUMENT,
    ),
    "an unknown version": ("Privacy", wire.PrivacyRequest(version=-1), Code.NOT_FOUND),
    "a large string": (
        "Similar",
        wire.SimilarRequest(item_id=PLANTED + "x" * (10 * 2**20)),
        Code.RESOURCE_EXHAUSTED,
    ),
    "a long string": (
        "Similar",
        wire.SimilarRequest(item_id=PLANTED + "x" * (3 * 2**20)),
        Code.INVALID_ARGUMENT,
    ),
    "a million products": (
        "Recommend",
        wire.RecommendRequest(history=_products(1_000_000, "p0003")),
        Code.RESOURCE_EXHAUSTED,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_request_is_refused(channel: grpc.Channel, kind: str) -> None:
    method, message, code = REFUSED[kind]
    assert code_of(channel, method, message.SerializeToString()) == code


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("Recommend", b"\x0a\x00" * 2_000_000),
        ("Explain", b"\x12\x00" * 2_000_000),
        ("RecommendBatch", b"\x0a\x00" * 2_000_000),
        ("RecommendBatch", b"\x0a\xc0\x84\x3d" + b"\x0a\x00" * 500_000),
        ("Recommend", b"\x2a\xc0\x84\x3d" + b"\x32\x00" * 500_000),
    ],
    ids=["products", "explain", "requests", "within a batch", "excluded"],
)
def test_millions_of_empty_parts_are_counted_not_read(
    channel: grpc.Channel, method: str, message: bytes
) -> None:
    started = time.monotonic()
    assert code_of(channel, method, message) == Code.INVALID_ARGUMENT
    assert time.monotonic() - started < 5


def test_products_that_nobody_knows_are_told_back_or_refused(channel: grpc.Channel) -> None:
    stub = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
    found = stub.Recommend(wire.RecommendRequest(history=_products(10_000, PLANTED), k=3))
    assert list(found.unknown_items) == [PLANTED]
    assert len(found.items) == 3
    for method, request in (
        (stub.Similar, wire.SimilarRequest(item_id=PLANTED)),
        (stub.Explain, wire.ExplainRequest(item_id=PLANTED)),
        (stub.Recommend, wire.RecommendRequest(filters=wire.Filters(category=PLANTED))),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            method(request)
        assert failure.value.code() == Code.INVALID_ARGUMENT


def test_a_message_that_swells_when_unpacked_is_refused(service: Running) -> None:
    swollen = wire.SimilarRequest(item_id="x" * (200 * 2**20)).SerializeToString()
    with grpc.insecure_channel(service.grpc, compression=grpc.Compression.Gzip) as channel:
        assert code_of(channel, "Similar", swollen) == Code.RESOURCE_EXHAUSTED


def test_large_headers_and_methods_that_there_are_not(channel: grpc.Channel) -> None:
    large = (("x", PLANTED * 9000),)
    assert code_of(channel, "Recommend", b"", metadata=large) == Code.RESOURCE_EXHAUSTED
    assert code_of(channel, PLANTED, b"") == Code.UNIMPLEMENTED
    assert code_of(channel, f"/{PLANTED}/{PLANTED}", b"") == Code.UNIMPLEMENTED


def test_calls_that_never_send_their_request_keep_nobody_waiting(service: Running) -> None:
    for path, kind in (
        (SERVICE + "Recommend", "stream_unary"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream"),
    ):
        end: queue.Queue[None] = queue.Queue()

        def silent(end: queue.Queue[None] = end) -> Iterator[bytes]:
            end.get()
            yield from ()

        channels = [
            grpc.insecure_channel(service.grpc, options=[("fedtail.number", number)])
            for number in range(12)
        ]
        try:
            for one in channels:
                call = getattr(one, kind)(path)
                (call.future if kind == "stream_unary" else call)(silent())
            time.sleep(0.5)
            with grpc.insecure_channel(service.grpc) as channel:
                # Four of them held all of the threads that answered.
                assert code_of(channel, "Recommend", b"") == Code.OK
        finally:
            for one in channels:
                end.put(None)
                one.close()


def test_one_caller_s_silent_calls_leave_room_for_others(service: Running) -> None:
    # Without a bound for a connection, a thousand of them were all that the service takes.
    with (
        grpc.insecure_channel(service.grpc, options=[("fedtail.number", -1)]) as hostile,
        grpc.insecure_channel(service.grpc) as channel,
    ):
        watch = hostile.unary_stream("/grpc.health.v1.Health/Watch")
        # Of calls that are made before a connection stands, any may be among those let in.
        calls = [watch(b"")]
        next(calls[0])
        calls += [watch(b"") for _ in range(1100)]
        time.sleep(2.0)
        assert code_of(channel, "Recommend", b"") == Code.OK
        for call in calls:
            call.cancel()


def test_a_connection_ends_in_time_and_only_silent_calls_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_service, "_MAX_AGE_SECONDS", 0.2)
    monkeypatch.setattr(grpc_service, "_GRACE_SECONDS", 0.5)

    def silent(channel: grpc.Channel) -> grpc.StatusCode:
        end: queue.Queue[bytes] = queue.Queue()
        call = channel.stream_unary(SERVICE + "Recommend").future(iter(end.get, b""), timeout=30)
        code: grpc.StatusCode = call.code()
        end.put(b"")
        return code

    def asking(channel: grpc.Channel) -> set[grpc.StatusCode]:
        call, until = channel.unary_unary(SERVICE + "ListModels"), time.monotonic() + 3.0
        codes = set()
        while time.monotonic() < until:
            codes.add(call.future(b"", timeout=20).code())
        return codes

    async def served() -> None:
        host = cast(Host, SimpleNamespace(ready=False, records=list, pinned=lambda: None))
        service = Service(host, Metrics(host), RateLimit(1e6, 1e6))
        with ThreadPoolExecutor(1) as pool:
            server, port = await grpc_server(service, pool, credentials=None, address="127.0.0.1:0")
            await server.start()
            with (
                grpc.insecure_channel(f"127.0.0.1:{port}") as one,
                grpc.insecure_channel(f"127.0.0.1:{port}", options=[("fedtail.number", 1)]) as two,
            ):
                code, codes = await asyncio.gather(
                    asyncio.to_thread(silent, one), asyncio.to_thread(asking, two)
                )
            await server.stop(0)
        assert code == Code.UNAVAILABLE
        assert codes == {Code.OK}

    asyncio.run(served())


def test_bytes_that_are_no_grpc_are_turned_away(service: Running) -> None:
    host, port = service.grpc.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for sent in (
        PLANTED.encode() * 100,
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        preface + b"\x00" * 64,
        preface + b"\xff\xff\xff\x01\x25\x00\x00\x00\x01" + b"\xff" * 2000,
    ):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)


def test_a_deadline_that_passes_is_told(channel: grpc.Channel) -> None:
    stub = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
    # Seconds of work each, which ends soon after its caller has gone: the service is free again.
    batch = wire.BatchRequest(requests=[wire.RecommendRequest(k=10, reasons=True)] * 100)
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as failure:
            stub.RecommendBatch(batch, timeout=0.02)
        assert failure.value.code() == Code.DEADLINE_EXCEEDED


def test_only_the_trace_of_a_call_that_is_over_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # gRPC writes it when a call ends in the very moment in which its answer or refusal is sent.
    async def served() -> None:
        service = cast(Service, object())
        with ThreadPoolExecutor(1) as pool:
            await grpc_server(service, pool, credentials=None, address="127.0.0.1:0")

    asyncio.run(served())
    log = logging.getLogger("grpc._cython.cygrpc")
    for error in (grpc.aio.InternalError("a batch failed"), ValueError("a mistake of ours")):
        try:
            raise error
        except Exception:
            log.exception("raised by servicer method")
    log.error("said without an error")
    assert "a batch failed" not in caplog.text
    assert "a mistake of ours" in caplog.text
    assert "said without an error" in caplog.text
