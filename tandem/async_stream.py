"""The answer to one request, while it arrives and when it is complete; asyncio, one consumer."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tandem.errors import InternalError, RequestCancelledError, TandemError, error_from_code
from tandem.messages.client import Accepted, Done, Output
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

    def __init__(self, accepted: Accepted, cancel: Callable[[bytes], None]) -> None:
        self._accepted = accepted
        self._send_cancel = cancel
        self._waiting: deque[Output] = deque()
        self._arrived = asyncio.Event()
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprobs] = []
        self._done: Done | None = None
        self._error: TandemError | None = None
        self._is_cancelled = False
        self._over = asyncio.Event()

    @property
    def request_id(self) -> str:
        """The gateway's id of the request, in hex."""
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
        return tuple(self._ids)

    @property
    def received_text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

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
            logprobs=tuple(self._logprobs),
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

    def take(self, message: Output | Done) -> None:
        """Take a message of the gateway's; after the end it is ignored."""
        if self.is_over:
            return
        if isinstance(message, Done):
            self._error = self._error_of(message)
            self._done = message
            self._over.set()
        elif message.index != len(self._ids):
            self.fail(
                InternalError(
                    f"the stream of request {self.request_id} jumped from token {len(self._ids)} "
                    f"to {message.index}: tokens were lost between gateway and client"
                )
            )
        else:
            self._ids.extend(message.token_ids)
            self._texts.append(message.text)
            self._logprobs.extend(message.logprobs)
            self._waiting.append(message)
        self._arrived.set()

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
