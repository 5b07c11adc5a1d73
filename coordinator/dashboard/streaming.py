"""The snapshot of each second as server-sent events, to few callers that keep up."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from coordinator.dashboard.errors import ApiError
from coordinator.dashboard.listening import ABORT

MAX_STREAMS = 32
SLOW_S = 10.0  # a caller that takes no byte for so long is cut
NUM_FIRST_EVENTS = 100
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
# JSON of the snapshot with the events after this number, or the last so many; and their last number
Render = Callable[[int | None], tuple[bytes, int]]


class Streams:
    """Open streams. `tick` tells them that there is another snapshot."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._next = asyncio.Event()
        self.num_open = 0
        self.is_closed = False

    def tick(self) -> None:
        """A second has passed."""
        ticked, self._next = self._next, asyncio.Event()
        ticked.set()

    def close(self) -> None:
        """All streams end."""
        self.is_closed = True
        self._next.set()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One stream. Raises ApiError where there are too many."""
        if self.num_open >= MAX_STREAMS:
            raise ApiError(
                503,
                f"{MAX_STREAMS} callers watch already: close a page, or ask for /api/snapshot",
                code="too_many_streams",
            )
        self.num_open += 1
        watcher = asyncio.ensure_future(_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._send_all(send, watcher)
            if not watcher.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            scope[ABORT]()
        finally:
            self.num_open -= 1
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _send_all(self, send: Send, watcher: "asyncio.Future[None]") -> None:
        last: int | None = None
        while not self.is_closed:
            body, last = self._render(last)
            frame = b"event: snapshot\ndata: " + body + b"\n\n"
            async with asyncio.timeout(SLOW_S):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            ticked = asyncio.ensure_future(self._next.wait())
            either: list[asyncio.Future[Any]] = [ticked, watcher]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ticked.cancel()
            if watcher.done():
                return


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
