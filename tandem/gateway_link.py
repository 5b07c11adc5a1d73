"""One client's connection to one gateway: pairs answers with questions, notices when it is gone."""

import asyncio
import contextlib
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import zmq.asyncio

from tandem.async_stream import AsyncStream
from tandem.codec import Decoder, encode
from tandem.errors import (
    GatewayUnreachableError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    RateLimitedError,
    TandemError,
    UnavailableError,
    error_from_code,
)
from tandem.keys import Keyring
from tandem.live_streams import TICK_S, TICKS_PER_S, LiveStreams
from tandem.messages.client import (
    Accepted,
    CancelRequest,
    ClientPing,
    ClientPong,
    Done,
    Malformed,
    Output,
    Refused,
    ResumeRefused,
    Submit,
    ToClient,
    ToGateway,
)
from tandem.resends import Resends
from tandem.sockets import Link

CANCEL_GRACE_S = 1.0
TROUBLED_S = 2
DEFAULT_GATEWAY_NAME = "gateway"  # of its key; tcp://host:port#name is one of another name
BROKEN_S = 2.0
RESEND_S = 2.0  # then 4 s, 8 s, ...; the gateway runs a request that comes again once
GIVE_UP_SILENCES = 3  # a gateway that does answer pings may have many prompts to tokenise


@dataclass(slots=True)
class _Question:
    """What waits for an answer: a ping, a new request, or one that continues `stream`."""

    future: asyncio.Future[AsyncStream | ClientPong]
    submit: Submit | None = None
    stream: AsyncStream | None = None


class GatewayConnection:
    """Made and used inside one running event loop; `close` leaves no socket and no task.

    `on_lost` gets a stream that cannot go on here, and why. A gateway is given up after `silence_s`
    without a word in spite of pings; where there are others, a broken link needs 2 s only.
    """

    def __init__(
        self,
        address: str,
        *,
        silence_s: float,
        on_lost: Callable[[AsyncStream, TandemError], None],
        has_others: bool = False,
        keys: Keyring | None = None,
    ) -> None:
        self.address = address
        self._keys = keys
        # One for all connections: by it the gateway knows a request that comes again.
        name = "anonymous" if keys is None else keys.name
        self._identity = f"client/{name}/{uuid.uuid4().hex}".encode()
        self.is_answering = False  # from the first message until the connection breaks
        self._silence_s = silence_s
        self._on_lost = on_lost
        self._has_others = has_others
        self._context = zmq.asyncio.Context()
        try:
            self._link = self._dial()
        except ValueError:
            self._context.term()
            raise
        self._streams = LiveStreams(self._send, on_lost, has_others=has_others)
        self._check: Decoder[ToGateway] = Decoder(ToGateway)
        self._num_questions = 0
        self._questions: dict[str, _Question] = {}
        self._resends = Resends(
            first=round(RESEND_S * TICKS_PER_S),
            limit=math.ceil(GIVE_UP_SILENCES * silence_s * TICKS_PER_S),
        )
        self._dropped: str | None = None  # what the gateway said of messages that it dropped
        self._num_heard = 0
        self._is_broken = False
        self._link_tasks = self._listen()
        self._watching = asyncio.create_task(self._watch())

    async def ping(self, timeout_s: float) -> ClientPong:
        """Ask for the gateway's state. Raises GatewayUnreachableError without an answer."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._ask(ClientPing(label=self._new_label()))
        except TimeoutError:
            raise GatewayUnreachableError(
                self._link.trouble
                or f"no gateway answers at {self.address} within {timeout_s:g} s: start one with "
                "`tandem up --model MODEL`, or name the right address (the gateway prints it as "
                "`ready gateway tcp://host:port`)",
                code="unavailable",
            ) from None
        if not isinstance(answer, ClientPong):
            raise InternalError("the gateway answered a ping with a stream")
        return answer

    async def submit(self, request: Submit, stream: AsyncStream | None = None) -> AsyncStream:
        """Send a request (its label is set here) and wait until the gateway has accepted it.

        With `stream`, one of another gateway that goes on here.
        """
        labelled = msgspec.structs.replace(request, label=self._new_label())
        answer = await self._ask(labelled, stream)
        if not isinstance(answer, AsyncStream):
            raise InternalError("the gateway answered a request with a pong")
        return answer

    async def close(self) -> None:
        """Cancel what is in flight, wait a second at most for its end, and hang up."""
        live = list(self._streams)
        for stream in live:
            stream.request_cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_GRACE_S):
                await asyncio.gather(*(stream.wait_until_over() for stream in live))
        tasks = [*self._link_tasks, self._watching]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._give_up(partial(TandemError, "the client was closed", code="cancelled"))
        self._link.close()
        self._context.term()

    # --- questions --------------------------------------------------------------------------

    def _new_label(self) -> str:
        self._num_questions += 1
        return str(self._num_questions)

    async def _ask(
        self, question: Submit | ClientPing, stream: AsyncStream | None = None
    ) -> AsyncStream | ClientPong:
        """Send a question and wait for the answer with its label."""
        self._validate(question)
        future: asyncio.Future[AsyncStream | ClientPong]
        future = asyncio.get_running_loop().create_future()
        submit = question if isinstance(question, Submit) else None
        self._questions[question.label] = _Question(future, submit, stream)
        try:
            if not self._send(question):
                raise OverloadedError(
                    f"10,000 messages wait for the gateway at {self.address}: send fewer at once",
                    code="overloaded",
                )
            if submit is not None:
                self._resends.add(submit.label)
            return await future
        except asyncio.CancelledError:
            _cancel_stream_of(future)
            raise
        finally:
            # An `Accepted` that comes after its asker has gone is answered with a cancel.
            self._questions.pop(question.label, None)
            self._resends.forget(question.label)
            if not len(self._resends):
                self._dropped = None

    def _validate(self, question: Submit | ClientPing) -> None:
        """Read the message as the gateway will: a fault is then this request's, with its reason."""
        try:
            self._check.decode(encode(question))
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequestError(str(error), code="invalid_request") from None

    def _send(self, message: msgspec.Struct) -> bool:
        return self._link.send(message)

    def _cancel(self, request_id: bytes) -> None:
        self._send(CancelRequest(request_id=request_id))

    # --- answers ----------------------------------------------------------------------------

    async def _receive(self, link: Link[ToClient]) -> None:
        async for message in link.messages():
            self._num_heard += 1
            self.is_answering, self._is_broken = True, False
            match message:
                case Output() | Done():
                    self._streams.deliver(message)
                case Accepted():
                    self._accept(message)
                case ResumeRefused():
                    self._streams.refuse(message)
                case Refused(label=label):
                    self._answer(
                        label,
                        error_from_code(message.code, message.message, message.retry_after_s),
                    )
                case ClientPong(label=label):
                    self._answer(label, message)
                case Malformed(is_rate_limited=True, message=text):
                    # What streams say is repeated, and so are requests: later now.
                    self._dropped = text
                    self._resends.back_off()
                case Malformed(message=text):
                    # What this side sends was checked, so the two sides speak different versions.
                    reason = f"the gateway cannot read this client's messages: {text}"
                    self._give_up(partial(InternalError, reason))

    def _accept(self, accepted: Accepted) -> None:
        """A request begins, goes on, or nobody waits for it any more."""
        if self._streams.confirm(accepted):
            return
        question = self._questions.get(accepted.label)
        if question is None or question.submit is None or question.future.done():
            self._cancel(accepted.request_id)
            return
        stream = question.stream
        if stream is None:
            stream = AsyncStream(question.submit, accepted, self._cancel)
        elif stream.accepted.model_fingerprint != accepted.model_fingerprint:
            self._cancel(accepted.request_id)
            text = f"the gateway at {self.address} serves other weights: it cannot go on there"
            question.future.set_exception(InternalError(text))
            return
        else:
            stream.move(accepted, self._cancel)
        self._streams.add(stream)
        question.future.set_result(stream)

    def _answer(self, label: str, answer: ClientPong | TandemError) -> None:
        """Give the asker its answer, where it still waits."""
        question = self._questions.get(label)
        if question is None or question.future.done():
            return
        if isinstance(answer, TandemError):
            question.future.set_exception(answer)
        else:
            question.future.set_result(answer)

    # --- the link ---------------------------------------------------------------------------

    def _dial(self) -> Link[ToClient]:
        address, _, gateway = self.address.partition("#")
        return Link(
            self._context,
            ToClient,
            identity=self._identity,
            address=address,
            keys=self._keys,
            server=f"gateway/{gateway or DEFAULT_GATEWAY_NAME}",
        )

    def _listen(self) -> list[asyncio.Task[None]]:
        return [
            asyncio.create_task(self._receive(self._link)),
            asyncio.create_task(self._watch_disconnections(self._link)),
        ]

    def _redial(self) -> None:
        """A connection that says nothing may be one that a network forgot: try a fresh one."""
        try:
            link = self._dial()
        except ValueError as error:  # the gateway's key was removed from the folder
            self._fail_questions(str(error))
            return
        for task in self._link_tasks:
            task.cancel()
        self._link.close()
        self._link = link
        self._link_tasks = self._listen()
        self._streams.resume_all()

    async def _watch_disconnections(self, link: Link[ToClient]) -> None:
        """ZeroMQ dials again by itself; requests that may be lost are the asker's to repeat."""
        text = (
            f"the gateway at {self.address} closed the connection while requests were in flight: "
            "look at its log, then send them again"
        )
        async for _ in link.disconnections():
            self.is_answering, self._is_broken = False, True
            self._fail_submits(partial(GatewayUnreachableError, text, code="unavailable"))
            self._streams.resume_all()

    async def _watch(self) -> None:
        """Ping while anything is in flight; a gateway that says nothing for long is given up.

        Counts silent pings, not time: this loop itself may have been blocked by its user.
        """
        num_ticks, num_silent, num_heard, num_troubled = 0, 0, self._num_heard, 0
        redial_after = max(math.ceil(self._silence_s / 2), 1)
        while True:
            await asyncio.sleep(TICK_S)
            num_ticks += 1
            self._streams.tick(is_answering=self.is_answering and not num_silent)
            self._repeat_submits()
            if num_ticks % TICKS_PER_S:
                continue
            num_troubled = num_troubled + 1 if self._link.trouble else 0
            if num_troubled >= TROUBLED_S and self._link.trouble is not None:
                self._fail_questions(self._link.trouble)
            is_idle = not len(self._streams) and not self._questions
            num_silent = 0 if is_idle or num_heard < self._num_heard else num_silent + 1
            num_heard = self._num_heard
            if is_idle:
                continue
            if num_silent == redial_after:
                self._redial()
            self._send(ClientPing(label="beat"))
            if num_silent > self._patience_s:
                self._give_up_silent()
                num_silent = 0

    def _repeat_submits(self) -> None:
        """Ask again what may be lost, and end what was asked too often."""
        for label in list(self._resends.tick()):
            question = self._questions.get(label)
            if question is not None and question.submit is not None:
                self._send(question.submit)
        for label in self._resends.overdue():
            self._resends.forget(label)
            self._answer(label, self._unanswered())

    def _unanswered(self) -> TandemError:
        limit_s = GIVE_UP_SILENCES * self._silence_s
        text = f"the gateway at {self.address} did not answer the request within {limit_s:g} s"
        if self._dropped is None:
            return UnavailableError(f"{text}, though it was repeated", code="unavailable")
        return RateLimitedError(f"{text}; it drops messages: {self._dropped}", code="rate_limited")

    @property
    def _patience_s(self) -> float:
        is_gone = self._is_broken and self._has_others
        return min(self._silence_s, BROKEN_S) if is_gone else self._silence_s

    def _give_up_silent(self) -> None:
        text = f"the gateway at {self.address} said nothing for {self._silence_s:g} s"
        if self._is_broken:
            text = (
                f"the gateway at {self.address} closed the connection and did not come back within "
                f"{self._patience_s:g} s"
            )
        self._give_up(partial(GatewayUnreachableError, text, code="unavailable"))

    def _fail_submits(self, make_error: Callable[[], TandemError]) -> None:
        """Pings wait as long as their askers want."""
        for question in self._questions.values():
            if question.submit is not None and not question.future.done():
                question.future.set_exception(make_error())

    def _fail_questions(self, trouble: str) -> None:
        """Keys are why there is no connection: waiting for longer would not help."""
        for question in self._questions.values():
            if not question.future.done():
                question.future.set_exception(GatewayUnreachableError(trouble, code="unavailable"))

    def _give_up(self, make_error: Callable[[], TandemError]) -> None:
        """End all that waits, each with an exception of its own (they collect tracebacks)."""
        self.is_answering = False
        self._fail_submits(make_error)
        for stream in self._streams.clear():
            self._on_lost(stream, make_error())


def _cancel_stream_of(future: asyncio.Future[AsyncStream | ClientPong]) -> None:
    """Cancel the request whose asker was cancelled between the answer and its own next step."""
    if future.done() and not future.cancelled() and future.exception() is None:
        answer = future.result()
        if isinstance(answer, AsyncStream):
            answer.request_cancel()
