"""The answer to one request, while it arrives and when it is complete; asyncio, one consumer."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec

from tandem.errors import RequestCancelledError, TandemError, error_from_code
from tandem.frames import TokenIds
from tandem.inbox import Inbox
from tandem.messages.client import Accepted, Done, Output, ResumePoint, Submit
from tandem.messages.common import FinishReason, Timeline, TokenLogprobs, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished request. `logprobs` is empty or as long as `token_ids`.

    `stop_string` is the one that ended the text, if one did. `seed` repeats the output.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason
    stop_string: str | None
    usage: Usage
    timeline: Timeline
    sla_class: str
    sla_attained: bool
    seed: int
    model_fingerprint: str


class AsyncStream:
    """Iterates over `Output` chunks: `async for chunk in stream`; `async with` cancels on leaving.

    A failed request raises its `TandemError` where the chunks end; what came before is in
    `received_ids` and `received_text`. A request cancelled by `cancel` ends without an error.
    """

    def __init__(
        self, submit: Submit, accepted: Accepted, cancel: Callable[[bytes], object]
    ) -> None:
        """`submit` is what was asked; `cancel` asks a gateway to end a request."""
        self._submit = submit
        self._submitted_at = time.monotonic()
        self._accepted = accepted
        self._send_cancel = cancel
        self._waiting: deque[Output] = deque()
        self._arrived = asyncio.Event()
        self._inbox = Inbox()
        self._done: Done | None = None
        self._error: TandemError | None = None
        self._is_cancelled = False
        self._over = asyncio.Event()

    @property
    def accepted(self) -> Accepted:
        """What the gateway that serves it now said first."""
        return self._accepted

    @property
    def next_index(self) -> int:
        """The index of the token that comes next."""
        return self._inbox.next_index

    @property
    def is_cancelled(self) -> bool:
        """Whether its user asked for the end."""
        return self._is_cancelled

    @property
    def request_id(self) -> str:
        """The gateway's id of the request, in hex; another one on another gateway."""
        return self._accepted.request_id.hex()

    @property
    def seed(self) -> int:
        """The seed in use; drawn by the gateway where none was given."""
        return self._accepted.seed

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, chat template included."""
        return self._accepted.num_prompt_tokens

    @property
    def is_over(self) -> bool:
        """Whether the last message has arrived (chunks may still wait to be read)."""
        return self._over.is_set()

    @property
    def received_ids(self) -> tuple[int, ...]:
        """All token ids so far."""
        return tuple(self._inbox.ids)

    @property
    def received_text(self) -> str:
        """All text so far."""
        return "".join(self._inbox.texts)

    @property
    def result(self) -> Result:
        """The whole answer. Raises the request's error, and ValueError while it is not over."""
        if self._error is not None:
            raise self._error
        if self._done is None:
            raise ValueError("the request is not over: iterate over the stream, or await finish()")
        return Result(
            request_id=self.request_id,
            text=self.received_text,
            token_ids=self.received_ids,
            logprobs=tuple(self._inbox.logprobs),
            finish_reason=self._done.reason,
            stop_string=self._done.stop_string,
            usage=self._done.usage,
            timeline=self._done.timeline,
            sla_class=self._done.sla_class,
            sla_attained=self._done.sla_attained,
            seed=self._accepted.seed,
            model_fingerprint=self._accepted.model_fingerprint,
        )

    async def next_chunk(self) -> Output | None:
        """The next chunk; None after the last. Raises the request's error."""
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._done is not None:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (chunk := await self.next_chunk()) is not None:
            yield chunk

    async def tokens(self) -> AsyncIterator[int]:
        """Token ids one by one."""
        async for chunk in self:
            for token_id in chunk.token_ids:
                yield token_id

    async def text(self) -> AsyncIterator[str]:
        """Pieces of text; never an incomplete character."""
        async for chunk in self:
            if chunk.text:
                yield chunk.text

    async def finish(self) -> Result:
        """Wait for the end. Raises the request's error."""
        while await self.next_chunk() is not None:
            continue
        return self.result

    async def wait_until_over(self) -> None:
        """Wait for the last message without reading any chunk. Raises nothing."""
        await self._over.wait()

    async def cancel(self) -> None:
        """Ask for the end; the chunks end soon after. Without effect on a finished request."""
        self.request_cancel()

    def request_cancel(self) -> None:
        """`cancel` for callers that cannot wait."""
        if not self.is_over and not self._is_cancelled:
            self._is_cancelled = True
            self._send_cancel(self._accepted.request_id)

    async def __aenter__(self) -> "AsyncStream":
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.request_cancel()

    def take(self, message: Output | Done) -> bool:
        """Take a message of the gateway's; False where something before it is missing."""
        if self.is_over:
            return True
        chunks: tuple[Output, ...] | None
        if isinstance(message, Output):
            chunks = self._inbox.take(message)
        elif self._is_cancelled:
            chunks = self._inbox.end_as_is()  # its user does not wait for what is missing
        else:
            chunks = self._inbox.end(message)
        if chunks is None:
            return False
        self._waiting.extend(chunks)
        if isinstance(message, Done):
            self._error = self._error_of(message)
            self._done = message
            self._over.set()
        self._arrived.set()
        return True

    def resumption(self) -> Submit:
        """What to ask another gateway for: the rest, from the same seed, within the deadline."""
        asked = self._submit
        deadline_s = asked.deadline_s
        if deadline_s is not None:
            deadline_s = max(deadline_s - (time.monotonic() - self._submitted_at), 0.0)
        have = ResumePoint(output_ids=TokenIds(self._inbox.ids), num_chars=self._inbox.num_chars)
        params = msgspec.structs.replace(asked.params, seed=self._accepted.seed)
        return msgspec.structs.replace(asked, params=params, deadline_s=deadline_s, resume=have)

    def move(self, accepted: Accepted, cancel: Callable[[bytes], object]) -> None:
        """Another gateway goes on with it."""
        self._accepted, self._send_cancel = accepted, cancel
        self._inbox.move()
        if self._is_cancelled:
            cancel(accepted.request_id)

    def fail(self, error: TandemError) -> None:
        """End the stream with an error that did not come from the gateway."""
        if not self.is_over:
            self._error = error
            self._over.set()
            self._arrived.set()

    def _error_of(self, done: Done) -> TandemError | None:
        if done.reason == "failed":
            return error_from_code(done.code, done.message, done.retry_after_s)
        if done.reason == "cancelled" and not self._is_cancelled:
            text = done.message or f"request {self.request_id} was cancelled by somebody else"
            return RequestCancelledError(text, code=done.code or "cancelled")
        return None
