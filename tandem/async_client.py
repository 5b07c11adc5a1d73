"""The asyncio client: submit, stream, cancel, generate over many prompts."""

import asyncio
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

import msgspec
from tqdm import tqdm

from tandem.addresses import DEFAULT_GATEWAY
from tandem.async_stream import AsyncStream, Result
from tandem.errors import (
    GatewayUnreachableError,
    InternalError,
    InvalidRequestError,
    TandemError,
    UnavailableError,
)
from tandem.frames import Blob, TokenIds
from tandem.gateway_link import DEFAULT_GATEWAY_NAME, GatewayConnection
from tandem.keys import Keyring
from tandem.messages.client import ChatMessage, ClientPong, Submit
from tandem.sampling import SamplingParams

MAX_IN_FLIGHT = 64
READY_POLL_S = 0.05
ASK_EVERY_S = 2.0
MOVE_WITHIN_S = 30.0
ADDRESS = re.compile(r"tcp://(\S*[^\s:]):(\d{1,5})")
logger = logging.getLogger(__name__)

ChatTurn = ChatMessage | Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[ChatTurn]


class RequestOptions(TypedDict, total=False):
    """What a request may say beside its prompt.

    `params`: how tokens are drawn. `model`: refused unless the deployment serves it.
    `sla_class`: a class of the coordinator's config; `ttft_ms`, `tpot_ms`: own targets instead.
    `priority`: -100 to 100, higher first. `deadline_s`: the request fails when it is not done.
    `choice`: of one prompt and seed each is another answer.
    """

    params: SamplingParams
    model: str
    sla_class: str
    ttft_ms: float
    tpot_ms: float
    priority: int
    deadline_s: float
    choice: int


class AsyncClient:
    """Talks to one gateway of those given; connections are made by calls, inside their event loop.

    `gateway`: an address, several separated by commas, or a sequence of them. When a gateway is
    lost, its streams go on at another one without a token missing or doubled.
    `connect_timeout_s`: how long a call waits for a gateway to answer. `silence_s`: after that long
    without a word a gateway is given up; where there is no other, requests in flight fail.
    `keys`: the keys folder, where the deployment has keys, and `key_name` where it has several of
    clients; a gateway whose key has another name than `gateway` is written tcp://host:port#name.
    Raises ValueError for an address that cannot be dialled and for keys that are missing.
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
        self._keys = None if keys is None else Keyring(Path(keys), "client", key_name)
        self._addresses = split_addresses(gateway)
        for address in self._addresses:
            _check_address(address, self._keys)
        self._current = 0
        self._connect_timeout_s = connect_timeout_s
        self._silence_s = silence_s
        self._connections: dict[str, GatewayConnection] = {}
        self._moves: set[asyncio.Task[None]] = set()
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
        for _ in self._addresses[1:]:
            connection = await self._connected()
            try:
                return await connection.submit(request)
            except UnavailableError as error:
                if error.code != "unavailable":
                    raise
                self._leave(connection.address)
        return await (await self._connected()).submit(request)

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
        """Wait for a gateway, if need be for its start, that knows prefill and decode nodes."""
        deadline = time.monotonic() + timeout_s
        has_answered = False
        while True:
            remaining_s = max(deadline - time.monotonic(), READY_POLL_S)
            try:
                pong = await self._connect().ping(min(remaining_s, ASK_EVERY_S))
            except GatewayUnreachableError:
                self._leave(self._addresses[self._current])
            else:
                has_answered = True
                if pong.ready:
                    return pong
            if time.monotonic() > deadline:
                raise self._not_ready(timeout_s, has_answered=has_answered)
            await asyncio.sleep(READY_POLL_S)

    def _not_ready(self, timeout_s: float, *, has_answered: bool) -> GatewayUnreachableError:
        where = " or ".join(self._addresses)
        text = (
            f"no gateway answers at {where} within {timeout_s:g} s: start one with `tandem up "
            "--model MODEL`, or name the right address"
        )
        if has_answered:
            text = (
                f"the gateway at {where} answers, but after {timeout_s:g} s knows no prefill or no "
                "decode node: `tandem status` lists the nodes"
            )
        return GatewayUnreachableError(text, code="unavailable")

    async def close(self) -> None:
        """Cancel what is in flight and hang up. The next call would connect anew."""
        moves, connections = list(self._moves), list(self._connections.values())
        self._connections.clear()
        for move in moves:
            move.cancel()
        await asyncio.gather(*moves, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in connections))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # --- gateways ---------------------------------------------------------------------------

    def _connect(self) -> GatewayConnection:
        """The present gateway's connection. Raises GatewayUnreachableError."""
        address = self._addresses[self._current]
        if address not in self._connections:
            try:
                self._connections[address] = GatewayConnection(
                    address,
                    silence_s=self._silence_s,
                    on_lost=partial(self._lost, address),
                    has_others=len(self._addresses) > 1,
                    keys=self._keys,
                )
            except (ValueError, OSError) as error:  # keys were removed; no such network
                raise GatewayUnreachableError(str(error), code="unavailable") from None
        return self._connections[address]

    def _leave(self, address: str) -> None:
        """Turn to the next gateway, unless somebody else did."""
        if self._addresses[self._current] == address:
            self._current = (self._current + 1) % len(self._addresses)

    async def _connected(self) -> GatewayConnection:
        """A connection on which a gateway has answered: else a request would wait unheard."""
        async with self._lock:
            deadline = time.monotonic() + self._connect_timeout_s
            slice_s = self._connect_timeout_s
            if len(self._addresses) > 1:
                slice_s = min(slice_s / len(self._addresses), ASK_EVERY_S)
            while True:
                address = self._addresses[self._current]
                try:
                    connection = self._connect()
                    if not connection.is_answering:
                        await connection.ping(slice_s)
                except GatewayUnreachableError:
                    self._leave(address)
                    if len(self._addresses) == 1 or time.monotonic() + slice_s / 2 > deadline:
                        raise
                    await asyncio.sleep(READY_POLL_S)
                else:
                    return connection

    def _lost(self, address: str, stream: AsyncStream, error: TandemError) -> None:
        """A stream cannot go on where it was."""
        is_gone = isinstance(error, GatewayUnreachableError)
        if is_gone or len(self._addresses) > 1:
            self._leave(address)
        can_move = isinstance(error, UnavailableError) and not stream.is_cancelled
        if not can_move or (is_gone and len(self._addresses) == 1):
            stream.fail(error)
            return
        move = asyncio.create_task(self._move(stream, error))
        self._moves.add(move)
        move.add_done_callback(self._moves.discard)

    async def _move(self, stream: AsyncStream, why: TandemError) -> None:
        """Go on with a stream at a gateway that takes it; else it fails."""
        try:
            failure = await self._find_taker(stream, why)
        except asyncio.CancelledError:
            failure = TandemError("the client was closed", code="cancelled")
        except Exception as error:  # an error of ours: its reader must not wait for ever
            logger.exception("cannot move a stream")
            failure = InternalError(f"cannot go on at another gateway: {error!r}")
        if failure is not None:
            stream.fail(failure)

    async def _find_taker(self, stream: AsyncStream, why: TandemError) -> TandemError | None:
        """Ask one gateway after another, all again when they said it may help; or why not."""
        deadline = time.monotonic() + MOVE_WITHIN_S
        pauses: list[float] = []  # that gateways asked for since all were asked
        while not stream.is_cancelled:
            address = self._addresses[self._current]
            try:
                connection = await self._connected()
                address = connection.address
                await connection.submit(stream.resumption(), stream)
            except UnavailableError as error:
                why = error
                self._leave(address)
                pauses.append(max(error.retry_after_s or 0.0, READY_POLL_S))
            except TandemError as error:
                return error
            else:
                return None
            wait_s = READY_POLL_S
            if len(pauses) >= len(self._addresses):
                wait_s, pauses = min(pauses), []
            if time.monotonic() + wait_s > deadline:
                break
            await asyncio.sleep(wait_s)
        return why

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


def split_addresses(gateway: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses of `tcp://a,tcp://b`, or of a sequence. Raises ValueError for none."""
    parts = gateway.split(",") if isinstance(gateway, str) else gateway
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise ValueError("no gateway is named: give its address, tcp://host:port")
    return addresses


def _check_address(address: str, keys: Keyring | None) -> None:
    """Raises ValueError for what could never be dialled: later, only a stream would learn of it."""
    where, _, name = address.partition("#")
    match = ADDRESS.fullmatch(where)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        raise ValueError(f"cannot dial {where!r}: it is no address; use tcp://host:port")
    owner = name or DEFAULT_GATEWAY_NAME
    if keys is not None and not keys.keys_of("gateway", owner):
        raise ValueError(
            f"{keys.folder} has no public key of gateway/{owner}: copy it there, or write the "
            "address as tcp://host:port#name with the name of the gateway's key"
        )


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
