"""Customers of a served model: at a steady rate over gRPC, whatever the server does."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc

_DEADLINE_SECONDS = 30.0


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
    address: str, asked: Sequence[Mapping[str, float]], rate: float, seconds: float, seed: int
) -> Latencies:
    """Ask at random moments, ``rate`` times a second, and wait for nobody.

    A client that waits for an answer before it asks again asks least when the server is slowest,
    and its percentiles are too good. Here a slow answer delays no other request, and each counts
    from when it was due.

    Parameters
    ----------
    asked
        Histories, in turns.
    """
    draw = np.random.default_rng(seed)
    gaps = draw.exponential(1.0 / rate, int(rate * seconds))
    requests = [
        wire.RecommendRequest(
            history=[wire.HistoryProduct(item_id=item, weight=w) for item, w in history.items()]
        )
        for history in asked
    ]
    return asyncio.run(_ask(address, requests, np.cumsum(gaps)))


async def _ask(
    address: str, requests: Sequence[wire.RecommendRequest], due: np.ndarray
) -> Latencies:
    found = Latencies()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = wire_grpc.RecommenderStub(channel)  # type: ignore[no-untyped-call]
        await stub.Recommend(requests[0], timeout=_DEADLINE_SECONDS)
        started = time.perf_counter()

        async def ask(number: int, moment: float) -> None:
            found.late.append(time.perf_counter() - started - moment)
            try:
                await stub.Recommend(requests[number % len(requests)], timeout=_DEADLINE_SECONDS)
            except grpc.aio.AioRpcError:
                found.failed += 1
            else:
                found.seconds.append(time.perf_counter() - started - moment)

        async with asyncio.TaskGroup() as tasks:
            for number, moment in enumerate(due):
                wait = moment - (time.perf_counter() - started)
                if wait > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(ask(number, float(moment)))
    return found
