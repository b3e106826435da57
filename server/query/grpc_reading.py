"""gRPC calls whose bytes are no message: refused in our words, with a line in the log."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from server.query.answering import RefusedError, Service, Status


class Reading(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers bytes that are no message of the contract like any other bad request.

    gRPC itself would call it an error of ours, and write a stack trace into the log.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Return the handler, reading with care."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        read = partial(_read, handler.request_deserializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                partial(self._unary, handler.unary_unary), read, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                partial(self._watch, handler.unary_stream), read, handler.response_serializer
            )
        return grpc.stream_stream_rpc_method_handler(
            partial(self._stream, handler.stream_stream), read, handler.response_serializer
        )

    async def _unary(
        self,
        behaviour: Callable[..., Awaitable[Message]],
        request: Message | None,
        context: grpc.aio.ServicerContext,
    ) -> Message:
        if isinstance(request, _Unreadable):
            await self._refuse(context)
        return await behaviour(request, context)

    async def _watch(
        self,
        behaviour: Callable[..., Any],
        request: Message | None,
        context: grpc.aio.ServicerContext,
    ) -> None:
        if isinstance(request, _Unreadable):
            await self._refuse(context)
        await behaviour(request, context)

    async def _stream(
        self,
        behaviour: Callable[..., AsyncIterator[Message]],
        requests: AsyncIterator[Message],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[Message]:
        async def readable() -> AsyncIterator[Message]:
            async for request in requests:
                if isinstance(request, _Unreadable):
                    await self._refuse(context)
                yield request

        async for reply in behaviour(readable(), context):
            yield reply

    async def _refuse(self, context: grpc.aio.ServicerContext) -> None:
        def work() -> None:
            raise RefusedError(Status.INVALID, "the bytes sent are no message of the contract")

        try:
            self._service.run("grpc", "unreadable", work)
        except RefusedError as error:
            await abort(context, error)


class _Unreadable:
    """Stands for a request that could not be read."""


def _read(parse: Callable[[bytes], Message], data: bytes) -> Message | _Unreadable:
    try:
        return parse(data)
    except DecodeError:
        return _Unreadable()


async def abort(context: grpc.aio.ServicerContext, error: RefusedError) -> None:
    """End a call with the status and words of a refusal."""
    trailing = (("retry-after", f"{error.retry_after:.1f}"),) if error.retry_after else ()
    await context.abort(grpc.StatusCode[error.status.grpc], str(error), trailing)
