"""Customers of a served model over gRPC: one after the other, or at a steady rate."""

import asyncio
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from pydantic import BaseModel

from server.query.answers import (
    BatchResponse,
    Explained,
    RecommendResponse,
)
from server.query.requests import (
    ExplainRequest,
    RecommendRequest,
    SimilarRequest,
)
from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc

_DEADLINE = 30.0
#: The event loop wakes up to a millisecond late: so long before a request is due it stays awake.
_AWAKE_SECONDS = 0.002
Arrivals = Literal["steady", "random"]
ARRIVALS: tuple[Arrivals, ...] = ("steady", "random")
Filled = TypeVar("Filled", bound=Message)


@dataclass
class Latencies:
    """What a client saw.

    Attributes
    ----------
    seconds
        From the moment a request was due to its answer.
    late
        Seconds that requests were sent after they were due: the client's own fault, and counted.
    """

    seconds: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    failed: int = 0


def open_loop(
    address: str,
    asked: Sequence[Mapping[str, float]],
    rate: float,
    seconds: float,
    seed: int,
    arrivals: Arrivals = "random",
) -> Latencies:
    """Ask ``rate`` times a second, and wait for nobody.

    A client that waits for an answer before it asks again asks least when the server is slowest,
    and its percentiles are too good. Here a slow answer delays no other request, and each counts
    from when it was due.

    Parameters
    ----------
    asked
        Histories, in turns.
    arrivals
        ``steady``: one request each 1/rate seconds; ``random``: a Poisson process, whose requests
        crowd by chance, so that some wait for each other at any server.
    """
    gaps = np.full(int(rate * seconds), 1.0 / rate)
    if arrivals == "random":
        gaps *= np.random.default_rng(seed).exponential(1.0, gaps.size)
    requests = [
        wire.RecommendRequest(
            history=[wire.HistoryProduct(item_id=item, weight=w) for item, w in history.items()]
        )
        for history in asked
    ]
    # A search for garbage here would look like a stall of the server's.
    gc.collect()
    gc.disable()
    try:
        return asyncio.run(_ask(address, requests, np.cumsum(gaps)))
    finally:
        gc.enable()


async def _ask(
    address: str, requests: Sequence[wire.RecommendRequest], due: np.ndarray
) -> Latencies:
    found = Latencies()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        await stub.Recommend(requests[0], timeout=_DEADLINE)
        started = time.perf_counter()

        async def ask(number: int, moment: float) -> None:
            found.late.append(time.perf_counter() - started - moment)
            try:
                await stub.Recommend(requests[number % len(requests)], timeout=_DEADLINE)
            except grpc.aio.AioRpcError:
                found.failed += 1
            else:
                found.seconds.append(time.perf_counter() - started - moment)

        async with asyncio.TaskGroup() as tasks:
            for number, moment in enumerate(due):
                wait = moment - (time.perf_counter() - started)
                if wait > _AWAKE_SECONDS:
                    await asyncio.sleep(wait - _AWAKE_SECONDS)
                while time.perf_counter() - started < moment:
                    await asyncio.sleep(0)
                tasks.create_task(ask(number, float(moment)))
    return found


class GrpcClient:
    """Asks over gRPC, with the requests and answers of the client library.

    Use it as a context manager.
    """

    Error = grpc.RpcError

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = wire_grpc.RecommenderStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._channel.close()

    def recommend(self, body: RecommendRequest) -> RecommendResponse:
        """Return one list."""
        answer = self._stub.Recommend(_message(body, wire.RecommendRequest()), timeout=_DEADLINE)
        return RecommendResponse.model_validate(_fields(answer))

    def batch(self, bodies: Sequence[RecommendRequest]) -> BatchResponse:
        """Return a list for each."""
        request = wire.BatchRequest(
            requests=[_message(body, wire.RecommendRequest()) for body in bodies]
        )
        answer = self._stub.RecommendBatch(request, timeout=_DEADLINE)
        return BatchResponse.model_validate(_fields(answer))

    def similar(self, body: SimilarRequest) -> RecommendResponse:
        """Return what goes with a product."""
        answer = self._stub.Similar(_message(body, wire.SimilarRequest()), timeout=_DEADLINE)
        return RecommendResponse.model_validate(_fields(answer))

    def explain(self, body: ExplainRequest) -> Explained:
        """Return what a score is the sum of."""
        answer = self._stub.Explain(_message(body, wire.ExplainRequest()), timeout=_DEADLINE)
        return Explained.model_validate(_fields(answer))


def _message(body: BaseModel, message: Filled) -> Filled:
    filled: Filled = ParseDict(body.model_dump(mode="json", exclude_none=True), message)
    return filled


def _fields(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
