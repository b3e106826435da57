"""What bodies that have not arrived yet may take of the memory, and who is let in meanwhile."""

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from server.query.before_body import BodyLimit

SCOPE: Scope = {"type": "http", "headers": []}


class Caller:
    """Sends a body in one piece, and keeps the end of it back."""

    def __init__(self, size: int, *, ends: bool = False) -> None:
        self.body = b" " * size
        self.status = 0
        self.ended = asyncio.Event()
        if ends:
            self.ended.set()
        self._sent = False

    async def receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self.body, "more_body": True}
        await self.ended.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        self.status = int(message.get("status", self.status))


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    del scope
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_large_bodies_share_some_room_and_small_ones_need_none() -> None:
    # Without that, one machine's two thousand connections of 4 MB each take 8 GB, without a key.
    async def story() -> None:
        limit = BodyLimit(_answer, most=1000, room=2500, small=100)

        def ask(caller: Caller) -> asyncio.Task[Any]:
            return asyncio.create_task(limit(SCOPE, caller.receive, caller.send))

        waiting = [Caller(900), Caller(900)]
        tasks = [ask(caller) for caller in waiting]
        await asyncio.sleep(0)
        late = Caller(900)
        await asyncio.wait_for(ask(late), 5)
        assert late.status == 503
        small = Caller(100, ends=True)
        await asyncio.wait_for(ask(small), 5)
        assert small.status == 200
        assert [caller.status for caller in waiting] == [0, 0]
        for caller in waiting:
            caller.ended.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert [caller.status for caller in waiting] == [200, 200]
        # What was held and what was refused has given its room back.
        again = [Caller(900, ends=True) for _ in range(2)]
        await asyncio.wait_for(asyncio.gather(*map(ask, again)), 5)
        assert [caller.status for caller in again] == [200, 200]
        gone = ask(Caller(900))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert limit._left == 2500

    asyncio.run(story())
