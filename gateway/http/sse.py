"""Server-sent events: frames as they come, comments where none do, an end when nobody listens."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.http.call import call_of
from gateway.http.direct import DirectBody, direct_body

KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class SseResponse(Response):
    """Sends each of `frames` as it is: `data: ...` with its empty line, one or several at once.

    When the caller hangs up the iterator is cancelled where it waits and closed where it does not.
    `on_end` is called once in any case, also where the iterator was never started: give it what
    must not leak (`Stream.cancel`). `on_direct` may be told of a way around this response: there
    frames may go while the iterator is asked for the next one, and only then.
    """

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        on_end: Callable[[], None],
        on_direct: Callable[[DirectBody], None] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._on_end = on_end
        self._on_direct = on_direct
        self._sent_at = 0.0
        self._comments: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        silence_s = call_of(Request(scope)).limits.silence_s
        loop = asyncio.get_running_loop()
        timer = None

        def look() -> None:
            nonlocal timer
            if loop.time() - self._sent_at >= silence_s:
                self._sent_at = loop.time()
                task = loop.create_task(_send_frame(send, KEEP_ALIVE))
                self._comments.add(task)
                task.add_done_callback(self._comments.discard)
            timer = loop.call_at(self._sent_at + silence_s, look)

        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            self._sent_at = loop.time()
            timer = loop.call_at(self._sent_at + silence_s, look)
            async for frame in self._frames:
                await _send_frame(send, frame)
                self._sent_at = loop.time()
                self._go_direct(scope)
            timer.cancel()
            await self._settle()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if timer is not None:
                timer.cancel()
            self._on_end()
            if isinstance(self._frames, AsyncGenerator):
                await self._frames.aclose()
            await self._settle()

    def _go_direct(self, scope: Scope) -> None:
        on_direct, self._on_direct = self._on_direct, None
        body = None if on_direct is None else direct_body(scope)
        if on_direct is not None and body is not None:
            on_direct(_Noted(body, self))

    def note_sent(self) -> None:
        """Something was written: the caller has not been in silence."""
        self._sent_at = asyncio.get_running_loop().time()

    async def _settle(self) -> None:
        """No comment is under way any more."""
        for task in self._comments:
            task.cancel()
        if self._comments:
            await asyncio.gather(*self._comments, return_exceptions=True)


class _Noted:
    """A body whose response knows when something was written."""

    __slots__ = ("_body", "_response")

    def __init__(self, body: DirectBody, response: SseResponse) -> None:
        self._body = body
        self._response = response

    @property
    def is_ready(self) -> bool:
        return self._body.is_ready

    def write(self, part: bytes) -> None:
        self._body.write(part)
        self._response.note_sent()


async def _send_frame(send: Send, frame: bytes) -> None:
    message: Message = {"type": "http.response.body", "body": frame, "more_body": True}
    await send(message)
