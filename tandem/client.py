"""The blocking client: `AsyncClient` on a thread of its own, with the same calls."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, overload

from tandem.addresses import DEFAULT_GATEWAY
from tandem.async_client import (
    MAX_IN_FLIGHT,
    AsyncClient,
    ChatTurn,
    Prompt,
    RequestOptions,
)
from tandem.async_stream import AsyncStream, Result
from tandem.errors import TandemError
from tandem.messages.client import ClientPong, Output

T = TypeVar("T")


class _LoopThread:
    """An event loop on a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tandem-client", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine over there; an interrupt here (Ctrl-C) cancels it there."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and wait for the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


class Stream:
    """Iterates over `Output` chunks: `for chunk in stream`; `with stream:` cancels on leaving.

    A failed request raises its `TandemError` where the chunks end; what came before is in
    `received_ids` and `received_text`. A request cancelled by `cancel` ends without an error.
    """

    def __init__(self, stream: AsyncStream, thread: _LoopThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def request_id(self) -> str:
        """The gateway's id of the request, in hex."""
        return self._stream.request_id

    @property
    def seed(self) -> int:
        """The seed in use; drawn by the gateway where none was given."""
        return self._stream.seed

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, chat template included."""
        return self._stream.num_prompt_tokens

    @property
    def is_over(self) -> bool:
        """Whether the last message has arrived (chunks may still wait to be read)."""
        return self._stream.is_over

    @property
    def received_ids(self) -> tuple[int, ...]:
        """All token ids so far."""
        return self._stream.received_ids

    @property
    def received_text(self) -> str:
        """All text so far."""
        return self._stream.received_text

    @property
    def result(self) -> Result:
        """The whole answer. Raises the request's error, and ValueError while it is not over."""
        return self._stream.result

    def __iter__(self) -> Iterator[Output]:
        while (chunk := self._thread.call(self._stream.next_chunk())) is not None:
            yield chunk

    def tokens(self) -> Iterator[int]:
        """Token ids one by one."""
        for chunk in self:
            yield from chunk.token_ids

    def text(self) -> Iterator[str]:
        """Pieces of text; never an incomplete character."""
        for chunk in self:
            if chunk.text:
                yield chunk.text

    def finish(self) -> Result:
        """Wait for the end. Raises the request's error."""
        return self._thread.call(self._stream.finish())

    def cancel(self) -> None:
        """Ask for the end; the chunks end soon after. Without effect on a finished request."""
        self._thread.call(self._stream.cancel())

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.is_over:
            self.cancel()


class Client:
    """Talks to a gateway. Close it, or use it as a context manager: it owns a thread.

    Calls, options and errors are those of `AsyncClient`; any thread may call.
    """

    def __init__(
        self,
        gateway: str | Sequence[str] = DEFAULT_GATEWAY,
        *,
        connect_timeout_s: float = 10.0,
        silence_s: float = 10.0,
        keys: str | Path | None = None,
        key_name: str | None = None,
    ) -> None:
        self._client = AsyncClient(
            gateway,
            connect_timeout_s=connect_timeout_s,
            silence_s=silence_s,
            keys=keys,
            key_name=key_name,
        )
        self._thread: _LoopThread | None = _LoopThread()

    def submit(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        chat: Sequence[ChatTurn] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Stream:
        """Send a request: text, token ids or a conversation. Returns once it is accepted."""
        thread = self._running()
        stream = thread.call(
            self._client.submit(prompt, prompt_ids=prompt_ids, chat=chat, **options)
        )
        return Stream(stream, thread)

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: bool = ...,
        max_in_flight: int = ...,
        return_exceptions: Literal[False] = ...,
        **options: Unpack[RequestOptions],
    ) -> list[Result]: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: bool = ...,
        max_in_flight: int = ...,
        return_exceptions: Literal[True],
        **options: Unpack[RequestOptions],
    ) -> list[Result | TandemError]: ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: bool = True,
        max_in_flight: int = MAX_IN_FLIGHT,
        return_exceptions: bool = False,
        **options: Unpack[RequestOptions],
    ) -> list[Result] | list[Result | TandemError]:
        """Answers in the order of the prompts; see `AsyncClient.generate`."""
        thread = self._running()
        if return_exceptions:
            return thread.call(
                self._client.generate(
                    prompts,
                    progress=progress,
                    max_in_flight=max_in_flight,
                    return_exceptions=True,
                    **options,
                )
            )
        return thread.call(
            self._client.generate(
                prompts, progress=progress, max_in_flight=max_in_flight, **options
            )
        )

    def ping(self) -> ClientPong:
        """What the gateway serves, and whether it is ready to."""
        return self._running().call(self._client.ping())

    def wait_until_ready(self, timeout_s: float) -> ClientPong:
        """Wait for a gateway that knows prefill and decode nodes."""
        return self._running().call(self._client.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Cancel what is in flight, hang up and end the thread. May be called again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                thread.call(self._client.close())
            finally:
                thread.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running(self) -> _LoopThread:
        if self._thread is None:
            raise ValueError("this client was closed: make another one")
        return self._thread
