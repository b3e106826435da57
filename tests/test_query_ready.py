"""What both interfaces say while there is no model yet, or none can be read."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from query_support import make_place
from server.query import grpc_service
from server.query.answering import Host, Metrics, RefusedError, Service, Status
from server.query.browsing import evaluations
from server.query.grpc_service import grpc_server
from server.query.registry_service import ServeSettings, make_service
from server.query.security import RateLimit

NAMES = ("", "fedtail.v1.Recommender")
AWAY, THERE = HealthCheckResponse.NOT_SERVING, HealthCheckResponse.SERVING


def test_grpc_s_health_waits_for_a_model_as_rest_s_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_service, "_LOOK_SECONDS", 0.02)

    async def served() -> None:
        state = SimpleNamespace(ready=False)
        host = cast(Host, state)
        service = Service(host, Metrics(host), RateLimit(1e6, 1e6))
        with ThreadPoolExecutor(1) as pool:
            server, port = await grpc_server(service, pool, credentials=None, address="127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                health: Any = HealthStub(channel)
                watched = [health.Watch(HealthCheckRequest(service=name)) for name in NAMES]
                before = [await each.read() for each in watched]
                for name in NAMES:  # One who leaves takes nobody else along.
                    left = health.Watch(HealthCheckRequest(service=name))
                    await left.read()
                    left.cancel()
                before += [await health.Check(HealthCheckRequest(service=name)) for name in NAMES]
                state.ready = True
                after = [await asyncio.wait_for(each.read(), 10) for each in watched]
                after += [await health.Check(HealthCheckRequest(service=name)) for name in NAMES]
            await server.stop(0)
        assert [each.status for each in before] == [AWAY] * 4
        assert [each.status for each in after] == [THERE] * 4

    asyncio.run(served())


def test_a_model_that_comes_while_a_watcher_is_told_of_none_is_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The host looks in a thread of its own: the watcher was left with "not serving" for good.
    monkeypatch.setattr(grpc_service, "_LOOK_SECONDS", 0.02)
    told: list[int] = []

    async def watched() -> None:
        state, leaving = SimpleNamespace(ready=False), asyncio.Event()
        host = cast(Host, state)
        service = Service(host, Metrics(host), RateLimit(1e6, 1e6))

        async def write(found: HealthCheckResponse) -> None:
            told.append(found.status)
            if state.ready:
                leaving.set()
            state.ready = True

        health = grpc_service.Health(service, leaving)
        context = cast(grpc.aio.ServicerContext, SimpleNamespace(write=write))
        await asyncio.wait_for(health.Watch(HealthCheckRequest(), context), 10)

    asyncio.run(watched())
    assert told == [AWAY, THERE, AWAY]


def test_a_registry_that_cannot_be_read_is_not_the_caller_s_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = make_place(tmp_path)
    where = place.root / "registry"
    service = make_service(ServeSettings(registry=str(where), catalogue=place.root / "catalogue"))
    where.rename(place.root / "elsewhere")
    where.touch()
    for ask in (service.models, lambda: service.privacy(0), lambda: evaluations(service)):
        with pytest.raises(RefusedError) as refused, caplog.at_level(logging.ERROR):
            service.run("rest", "models", ask)
        assert refused.value.status is Status.FAILED
        assert "its log tells more" in str(refused.value)
        assert str(tmp_path) not in str(refused.value)
    assert caplog.text.count(f"cannot read the registry {where}: Not a directory") == 3
