"""The asyncio client: submit, stream, cancel, generate over many prompts."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypedDict, Unpack, overload

import msgspec
from tqdm import tqdm

from tandem.async_stream import AsyncStream, Result
from tandem.errors import GatewayUnreachableError, InvalidRequestError, TandemError
from tandem.frames import Blob, TokenIds
from tandem.gateway_link import GatewayConnection
from tandem.messages.client import ChatMessage, ClientPong, Submit
from tandem.sampling import SamplingParams

DEFAULT_GATEWAY = "tcp://127.0.0.1:7301"
MAX_IN_FLIGHT = 64
READY_POLL_S = 0.05

ChatTurn = ChatMessage | Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[ChatTurn]


class RequestOptions(TypedDict, total=False):
    """What a request may say beside its prompt.

    `params`: how tokens are drawn. `model`: refused unless the deployment serves it.
    `sla_class`: a class of the coordinator's config; `ttft_ms`, `tpot_ms`: own targets instead.
    `priority`: -100 to 100, higher first. `deadline_s`: the request fails when it is not done.
    """

    params: SamplingParams
    model: str
    sla_class: str
    ttft_ms: float
    tpot_ms: float
    priority: int
    deadline_s: float


class AsyncClient:
    """Talks to one gateway; the connection is made by the first call, inside its event loop.

    `connect_timeout_s`: how long the first call waits for a gateway to answer. `silence_s`: after
    that long without a word from the gateway, requests in flight fail.
    """

    def __init__(
        self,
        gateway: str = DEFAULT_GATEWAY,
        *,
        connect_timeout_s: float = 10.0,
        silence_s: float = 10.0,
    ) -> None:
        self._gateway = gateway
        self._connect_timeout_s = connect_timeout_s
        self._silence_s = silence_s
        self._connection: GatewayConnection | None = None
        self._lock = asyncio.Lock()

    async def submit(
        self,
        prompt: str | None = None,
        *,
        prompt_ids: Sequence[int] | None = None,
        chat: Sequence[ChatTurn] | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncStream:
        """Send a request: text, token ids or a conversation. Returns once it is accepted.

        Raises InvalidRequestError and its kin, UnavailableError, GatewayUnreachableError.
        """
        request = make_submit(prompt, prompt_ids, chat, options)
        connection = await self._connected()
        return await connection.submit(request)

    @overload
    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: bool = ...,
        max_in_flight: int = ...,
        return_exceptions: Literal[False] = ...,
        **options: Unpack[RequestOptions],
    ) -> list[Result]: ...

    @overload
    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: bool = ...,
        max_in_flight: int = ...,
        return_exceptions: Literal[True],
        **options: Unpack[RequestOptions],
    ) -> list[Result | TandemError]: ...

    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        progress: bool = True,
        max_in_flight: int = MAX_IN_FLIGHT,
        return_exceptions: bool = False,
        **options: Unpack[RequestOptions],
    ) -> list[Result] | list[Result | TandemError]:
        """Answers in the order of the prompts; at most `max_in_flight` requests at once.

        A failed request does not end the others: the first error is raised when all are over, or,
        with `return_exceptions`, each error stands in the place of its answer.
        """
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}, but must be at least 1")
        answers: dict[int, Result | TandemError] = {}
        todo = iter(enumerate(prompts))
        with tqdm(total=len(prompts), unit="request", disable=not progress) as bar:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(max_in_flight, len(prompts))):
                    group.create_task(self._work(todo, answers, options, bar))
        ordered = [answers[index] for index in range(len(prompts))]
        return ordered if return_exceptions else _all_or_raise(ordered)

    async def ping(self) -> ClientPong:
        """What the gateway serves, and whether it is ready to."""
        return await self._connect().ping(self._connect_timeout_s)

    async def wait_until_ready(self, timeout_s: float) -> ClientPong:
        """Wait for a gateway that knows prefill and decode nodes."""
        deadline = time.monotonic() + timeout_s
        while True:
            remaining_s = max(deadline - time.monotonic(), READY_POLL_S)
            pong = await self._connect().ping(remaining_s)
            if pong.ready:
                return pong
            if time.monotonic() > deadline:
                raise GatewayUnreachableError(
                    f"the gateway at {self._gateway} answers, but after {timeout_s:g} s knows no "
                    "prefill or no decode node: `tandem status` lists the nodes",
                    code="unavailable",
                )
            await asyncio.sleep(READY_POLL_S)

    async def close(self) -> None:
        """Cancel what is in flight and hang up. The next call would connect anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _connect(self) -> GatewayConnection:
        if self._connection is None:
            self._connection = GatewayConnection(self._gateway, silence_s=self._silence_s)
        return self._connection

    async def _connected(self) -> GatewayConnection:
        """A connection on which a gateway has answered: else a request would wait unheard."""
        async with self._lock:
            connection = self._connect()
            if not connection.is_answering:
                await connection.ping(self._connect_timeout_s)
            return connection

    async def _work(
        self,
        todo: Iterator[tuple[int, Prompt]],
        answers: dict[int, Result | TandemError],
        options: RequestOptions,
        bar: "tqdm[object]",
    ) -> None:
        """Take prompts until none is left."""
        for index, prompt in todo:
            try:
                answers[index] = await self._answer(prompt, options)
            except TandemError as error:
                answers[index] = error
            bar.update()

    async def _answer(self, prompt: Prompt, options: RequestOptions) -> Result:
        if isinstance(prompt, str):
            stream = await self.submit(prompt, **options)
        elif all(isinstance(item, int) for item in prompt):
            stream = await self.submit(prompt_ids=prompt, **options)  # type: ignore[arg-type]
        else:
            stream = await self.submit(chat=prompt, **options)  # type: ignore[arg-type]
        async with stream:
            return await stream.finish()


def make_submit(
    prompt: str | None,
    prompt_ids: Sequence[int] | None,
    chat: Sequence[ChatTurn] | None,
    options: RequestOptions,
) -> Submit:
    """The message for a request, still without a label. Raises InvalidRequestError."""
    if sum(given is not None for given in (prompt, prompt_ids, chat)) != 1:
        raise InvalidRequestError(
            "give exactly one of: a prompt, prompt_ids, chat", code="invalid_request"
        )
    try:
        return Submit(
            label="",
            prompt=None if prompt is None else Blob(prompt.encode()),
            prompt_ids=None if prompt_ids is None else TokenIds(prompt_ids),
            chat=() if chat is None else msgspec.convert(chat, tuple[ChatMessage, ...]),
            **options,
        )
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidRequestError(
            f"the prompt cannot be sent: {error}", code="invalid_request"
        ) from None


def _all_or_raise(answers: Sequence[Result | TandemError]) -> list[Result]:
    errors = [answer for answer in answers if isinstance(answer, TandemError)]
    if errors:
        errors[0].add_note(
            f"{len(errors)} of {len(answers)} requests failed; return_exceptions=True returns the "
            "answers of the others"
        )
        raise errors[0]
    return [answer for answer in answers if isinstance(answer, Result)]
