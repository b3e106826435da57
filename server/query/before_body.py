"""What is looked at before a request's body is: whom it asks, with which key, and its size."""

import json
import math
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.query.answering import RefusedError, Service, Status

_ANSWERS = "/v1/"
#: Bytes of bodies at a time, of those that are larger than a small one.
_ROOM, _SMALL = 256 * 2**20, 64 * 2**10


def refusal(error: RefusedError) -> JSONResponse:
    """Return a refusal as all of them look."""
    headers = {}
    if error.status is Status.TOO_MANY:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status is Status.NO_KEY:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status.http, headers)


class HeadAsGet:
    """Answers HEAD as GET, whose body the server then leaves out: monitors ask like that."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class OwnName:
    """Refuses a request that calls the service by a name that is not its own."""

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request to one of the names, whatever the port."""
        if scope["type"] == "http" and _called(scope) not in self._names:
            words = {"error": "this service goes by another name: ask it by its address"}
            await JSONResponse(words, 400)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _called(scope: Scope) -> str:
    """Return the host that a request names, without its port; an IPv6 address without brackets."""
    name = Request(scope).headers.get("host", "")
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]


class KeyFirst:
    """Refuses who has no key of ours before their body is read: reading costs, too."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on who has a key; the request is counted against its rate later."""
        if (
            self._service.keys is None
            or scope["type"] != "http"
            or not scope["path"].startswith(_ANSWERS)
        ):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        address = request.client.host if request.client else "unknown"
        try:
            known = kind.lower() == "bearer" and self._service.name_of(key.strip()) is not None
            if not known:
                self._service.run("rest", "unknown", lambda: self._service.admit(None, address))
        except RefusedError as error:
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses a body that is larger than ``most`` bytes, as soon as that is known.

    Bodies are held until they are answered. Thousands of connections with nearly ``most`` on each
    would take all memory, so large ones share some room; small ones are let in all the same.
    """

    def __init__(self, app: ASGIApp, most: int, room: int = _ROOM, small: int = _SMALL) -> None:
        self._app, self._most, self._small = app, most, small
        self._left = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, counting what comes in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > self._most:
            await self._refuse(send)
            return
        taken = held = 0
        body: list[Message] = []
        try:
            # The body is read here, whole: one that turns out too large never reaches a method.
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return
                taken += len(message.get("body", b""))
                if taken > self._most:
                    await self._refuse(send)
                    return
                if taken > self._small:
                    self._left -= taken - held
                    held = taken
                    if self._left < 0:
                        words = "too many large bodies at a time: try again later"
                        await self._refuse(send, Status.NO_MODEL, words)
                        return
                body.append(message)
                if not message.get("more_body", False):
                    break
            waiting = iter(body)

            async def again() -> Message:
                return next(waiting, None) or await receive()

            await self._app(scope, again, send)
        finally:
            self._left += held

    async def _refuse(self, send: Send, status: Status = Status.TOO_LARGE, words: str = "") -> None:
        words = words or f"the body is larger than {self._most} bytes"
        text = json.dumps({"error": words}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": status.http, "headers": headers})
        await send({"type": "http.response.body", "body": text})
