"""gRPC: the same methods, the same checks; deadlines, health and reflection."""

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import BaseModel

from server.query.answering import RefusedError, Service, Status
from server.query.grpc_reading import Reading, abort
from server.query.messages import fields_of, fill
from server.query.requests import (
    BatchRequest,
    ExplainRequest,
    RecommendRequest,
    SimilarRequest,
)
from server.query.rest import MAX_BODY
from server.query.wire import fedtail_pb2 as wire
from server.query.wire import fedtail_pb2_grpc as wire_grpc

Reply = TypeVar("Reply", bound=Message)
#: Calls under way at a time, those that wait for their request included.
_MAX_CALLS = 1000
#: Of them on one connection: a caller without a key could take all, with calls that say nothing.
_MAX_OF_CONNECTION = 100
#: A connection ends after so long, and its silent calls with it; who asks makes another unawares.
_MAX_AGE_SECONDS, _GRACE_SECONDS = 300.0, 60.0
_NAME = wire.DESCRIPTOR.services_by_name["Recommender"].full_name
_SAYS = health_pb2.HealthCheckResponse
#: Between two looks whether there is a model yet, while somebody watches for it.
_LOOK_SECONDS = 0.5


class Recommender(wire_grpc.RecommenderServicer):
    """The service's methods on the wire's messages."""

    def __init__(self, service: Service, pool: ThreadPoolExecutor) -> None:
        self._service, self._pool = service, pool

    async def Recommend(  # noqa: N802 - the name in the contract
        self, request: wire.RecommendRequest, context: grpc.aio.ServicerContext
    ) -> wire.RecommendResponse:
        """Return the best products for one customer."""
        return await self._answer(
            "recommend",
            context,
            partial(self._recommend, request),
            wire.RecommendResponse(),
        )

    async def RecommendBatch(  # noqa: N802
        self, request: wire.BatchRequest, context: grpc.aio.ServicerContext
    ) -> wire.BatchResponse:
        """Return a list for each of several customers."""
        return await self._answer(
            "batch",
            context,
            lambda reply: self._batch(request, reply, lambda: _is_late(context)),
            wire.BatchResponse(),
            cost=max(1.0, float(len(request.requests))),
        )

    async def Similar(  # noqa: N802
        self, request: wire.SimilarRequest, context: grpc.aio.ServicerContext
    ) -> wire.RecommendResponse:
        """Return what goes with one product."""
        return await self._answer(
            "similar",
            context,
            partial(self._similar, request),
            wire.RecommendResponse(),
        )

    async def Explain(  # noqa: N802
        self, request: wire.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> wire.Explained:
        """Return what one score is the sum of."""
        return await self._answer(
            "explain",
            context,
            lambda reply: _parse(
                self._service.explain(ExplainRequest(**fields_of(request))), reply
            ),
            wire.Explained(),
        )

    async def ListModels(  # noqa: N802
        self, request: wire.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> wire.ModelList:
        """Return all versions, the newest first."""
        del request  # It has no fields.
        return await self._answer(
            "models",
            context,
            lambda reply: _parse(self._service.models(), reply),
            wire.ModelList(),
        )

    async def Privacy(  # noqa: N802
        self, request: wire.PrivacyRequest, context: grpc.aio.ServicerContext
    ) -> wire.PrivacyResponse:
        """Return the privacy statement of a version."""

        def fill_in(reply: wire.PrivacyResponse) -> None:
            found = self._service.privacy(request.version)
            reply.version, reply.statement = found["version"], found["words"]
            reply.statement_json = json.dumps(found["statement"])

        return await self._answer("privacy", context, fill_in, wire.PrivacyResponse())

    def _recommend(self, request: wire.RecommendRequest, reply: wire.RecommendResponse) -> None:
        asked, model = RecommendRequest(**fields_of(request)), self._service.model()
        fill(reply, model, model.recommend(asked.query()))

    def _similar(self, request: wire.SimilarRequest, reply: wire.RecommendResponse) -> None:
        asked, model = SimilarRequest(**fields_of(request)), self._service.model()
        fill(reply, model, model.similar(asked.item_id, asked.k, asked.filters.filters()))

    def _batch(
        self, request: wire.BatchRequest, reply: wire.BatchResponse, is_late: Callable[[], bool]
    ) -> None:
        asked, model = BatchRequest(**fields_of(request)), self._service.model()
        reply.version = model.version
        for one in asked.requests:
            if is_late():
                raise RefusedError(Status.TOO_LATE, "the deadline has passed")
            fill(reply.responses.add(), model, model.recommend(one.query()))

    async def _answer(
        self,
        method: str,
        context: grpc.aio.ServicerContext,
        fill_in: Callable[[Reply], None],
        reply: Reply,
        cost: float = 1.0,
    ) -> Reply:
        def work() -> Reply:
            self._service.admit(_key(context), _address(context), cost)
            # One that waited in the queue until its caller gave up is not worth computing.
            if _is_late(context):
                raise RefusedError(Status.TOO_LATE, "the deadline has passed")
            fill_in(reply)
            return reply

        run: Callable[[], Reply] = partial(self._service.run, "grpc", method, work)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run)
        except RefusedError as error:
            await abort(context, error)
            raise AssertionError("abort returns") from error


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """gRPC's own health protocol: serving while there is a model to answer from, as /healthz says.

    A balancer that asks here would else send callers where nobody can be answered. The package's
    own watchers are forgotten with the first of them that leaves, and hold up the service's end.
    """

    def __init__(self, service: Service, leaving: asyncio.Event) -> None:
        self._service, self._leaving = service, leaving

    async def Check(  # noqa: N802 - the name in the contract
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Return how it is now."""
        if (found := self._status(request.service)) == _SAYS.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return _SAYS(status=found)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Say how it is, and when that changes, until the service ends."""
        told = None
        while True:
            # Both are asked before the word is sent: they may change while it is.
            last = self._leaving.is_set()
            if (found := self._status(request.service)) != told:
                await context.write(_SAYS(status=found))
                told = found
            if last:
                return
            # Once there is a model there is one for good.
            patience = _LOOK_SECONDS if told == _SAYS.NOT_SERVING else None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), patience)

    def _status(self, name: str) -> int:
        if name not in (health.OVERALL_HEALTH, _NAME):
            return int(_SAYS.SERVICE_UNKNOWN)
        there = self._service.host.ready and not self._leaving.is_set()
        return int(_SAYS.SERVING if there else _SAYS.NOT_SERVING)


async def grpc_server(
    service: Service,
    pool: ThreadPoolExecutor,
    *,
    credentials: grpc.ServerCredentials | None,
    address: str,
    leaving: asyncio.Event | None = None,
) -> tuple[grpc.aio.Server, int]:
    """Return a server that listens on ``address``, not started yet, and its port.

    It is one for the running event loop: there a call that has sent only its head, or a stream that
    says nothing, costs no thread. The answers are computed in the threads of ``pool``. ``leaving``
    is set before the end: who watches the service's health is told, and let go.

    Raises
    ------
    RuntimeError
        If the port is taken.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_departure)
    options = [
        ("grpc.max_receive_message_length", MAX_BODY),
        # Two servers on one port would each get half of the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", _MAX_OF_CONNECTION),
        ("grpc.max_connection_age_ms", int(1000 * _MAX_AGE_SECONDS)),
        ("grpc.max_connection_age_grace_ms", int(1000 * _GRACE_SECONDS)),
    ]
    server = grpc.aio.server(
        interceptors=[Reading(service)], options=options, maximum_concurrent_rpcs=_MAX_CALLS
    )
    wire_grpc.add_RecommenderServicer_to_server(  # type: ignore[no-untyped-call]
        Recommender(service, pool), server
    )
    status = Health(service, leaving or asyncio.Event())
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection(
        (_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    return server, port


def _is_no_departure(record: logging.LogRecord) -> bool:
    """Return False for gRPC's stack trace about an answer that its caller no longer waited for.

    A call may end, by its deadline or its caller's leaving, in the moment in which its answer or
    refusal is sent. That is nobody's fault, and the log has the call's own line already.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError)


def _parse(found: BaseModel, reply: Message) -> None:
    """Write an answer of few fields into a message of the same names."""
    ParseDict(found.model_dump(mode="json", exclude_none=True), reply)


def _is_late(context: grpc.aio.ServicerContext) -> bool:
    left = context.time_remaining()
    return left is not None and left <= 0


def _key(context: grpc.aio.ServicerContext) -> str | None:
    for name, value in context.invocation_metadata():
        if name == "authorization" and isinstance(value, str):
            kind, _, key = value.partition(" ")
            # The scheme's case says nothing (RFC 9110, 11.1); REST reads it so, too.
            if kind.lower() == "bearer":
                return key.strip()
    return None


def _address(context: grpc.aio.ServicerContext) -> str:
    """Return the caller's address without its port: ``ipv4:127.0.0.1:5000``."""
    return str(context.peer()).rsplit(":", 1)[0]
