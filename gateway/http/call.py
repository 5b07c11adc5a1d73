"""What the door knows of one HTTP call, for its handler."""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request
from starlette.types import Receive

from gateway.http.errors import ApiError

SCOPE_KEY = "tandem.call"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """What one call may cost. `silence_s`: how long a stream may be silent before a comment."""

    max_body_bytes: int = 16 << 20
    body_grace_s: float = 10.0
    min_body_bytes_per_s: float = 16384.0
    silence_s: float = 10.0


@dataclass(slots=True)
class BodyRoom:
    """Bytes of the bodies of all calls that are being served, of which there may be so many."""

    max_bytes: int
    num_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class Call:
    """`key` is `client/NAME`, None without keys. `request_id` is for logs and the caller's own
    records: it names nothing here. `traceparent` is well formed."""

    request_id: str
    limits: CallLimits
    room: BodyRoom
    thread: Executor  # for what would hold up every stream
    num_body_bytes: int = 0
    key: str | None = None
    traceparent: str | None = None
    is_gone: bool = False
    _watch: asyncio.Task[None] | None = None

    def watch(self, receive: Receive) -> None:
        """From now on the running task is cancelled when the caller hangs up."""
        task = asyncio.current_task()
        assert task is not None, "calls are served by tasks"
        if self._watch is None:
            self._watch = asyncio.create_task(self._until_gone(receive, task))

    async def _until_gone(self, receive: Receive, task: asyncio.Task[object]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        task.cancel()

    def take_room(self, num_bytes: int) -> None:
        """So much more of the body is held. Raises ApiError where there is no room."""
        self.num_body_bytes += num_bytes
        self.room.num_bytes += num_bytes
        if self.room.num_bytes > self.room.max_bytes:
            text = (
                f"bodies in flight take {self.room.num_bytes >> 20} MiB and this gateway holds "
                f"{self.room.max_bytes >> 20} (--max-prompt-mib): try again, or start another"
            )
            raise ApiError(429, text, code="overloaded", retry_after_s=1.0)

    def end(self) -> None:
        """The call is served."""
        self.room.num_bytes -= self.num_body_bytes
        if self._watch is not None:
            self._watch.cancel()


def call_of(request: Request) -> Call:
    """The call that a handler serves."""
    return cast(Call, request.scope[SCOPE_KEY])
