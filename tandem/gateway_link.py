"""One client's connection to one gateway: pairs answers with questions, notices when it is gone."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from tandem.async_stream import AsyncStream
from tandem.codec import Decoder, encode
from tandem.errors import (
    GatewayUnreachableError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    TandemError,
    error_from_code,
)
from tandem.messages.client import (
    Accepted,
    CancelRequest,
    ClientPing,
    ClientPong,
    Done,
    Malformed,
    Output,
    Refused,
    Submit,
    ToClient,
    ToGateway,
)
from tandem.sockets import Link

PING_EVERY_S = 1.0
CANCEL_GRACE_S = 1.0


class WatchedLink(Link[ToClient]):
    """A link that also tells when its connection broke: a restarted gateway knows no request."""

    def __init__(self, context: zmq.asyncio.Context, *, identity: bytes, address: str) -> None:
        super().__init__(context, ToClient, identity=identity, address=address)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    async def disconnections(self) -> AsyncIterator[None]:
        """One item for each broken connection."""
        while True:
            await recv_monitor_message(self._monitor)
            yield None

    def close(self) -> None:
        """Close at once; queued messages are dropped."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        super().close()


class GatewayConnection:
    """Made and used inside one running event loop; `close` leaves no socket and no task."""

    def __init__(self, address: str, *, silence_s: float) -> None:
        self.address = address
        self.num_unexpected = 0
        self.is_answering = False  # from the first message until the connection breaks
        self._silence_s = silence_s
        self._context = zmq.asyncio.Context()
        identity = f"client/{uuid.uuid4().hex}".encode()
        try:
            self._link = WatchedLink(self._context, identity=identity, address=address)
        except ValueError:
            self._context.term()
            raise
        self._check: Decoder[ToGateway] = Decoder(ToGateway)
        self._num_questions = 0
        self._questions: dict[str, asyncio.Future[AsyncStream | ClientPong]] = {}
        self._streams: dict[bytes, AsyncStream] = {}
        self._num_heard = 0
        self._tasks = [
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._watch_disconnections()),
            asyncio.create_task(self._watch_silence()),
        ]

    async def ping(self, timeout_s: float) -> ClientPong:
        """Ask for the gateway's state. Raises GatewayUnreachableError without an answer."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._ask(ClientPing(label=self._new_label()))
        except TimeoutError:
            raise GatewayUnreachableError(
                f"no gateway answers at {self.address} within {timeout_s:g} s: start one with "
                "`tandem up --model MODEL`, or name the right address (the gateway prints it as "
                "`ready gateway tcp://host:port`)",
                code="unavailable",
            ) from None
        if not isinstance(answer, ClientPong):
            raise InternalError("the gateway answered a ping with a stream")
        return answer

    async def submit(self, request: Submit) -> AsyncStream:
        """Send a request (its label is set here) and wait until the gateway has accepted it."""
        answer = await self._ask(msgspec.structs.replace(request, label=self._new_label()))
        if not isinstance(answer, AsyncStream):
            raise InternalError("the gateway answered a request with a pong")
        return answer

    async def close(self) -> None:
        """Cancel what is in flight, wait a second at most for its end, and hang up."""
        live = list(self._streams.values())
        for stream in live:
            stream.request_cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_GRACE_S):
                await asyncio.gather(*(stream.wait_until_over() for stream in live))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_all(partial(TandemError, "the client was closed", code="cancelled"))
        self._link.close()
        self._context.term()

    def _new_label(self) -> str:
        self._num_questions += 1
        return str(self._num_questions)

    async def _ask(self, question: Submit | ClientPing) -> AsyncStream | ClientPong:
        """Send a question and wait for the answer with its label."""
        self._validate(question)
        future: asyncio.Future[AsyncStream | ClientPong]
        future = asyncio.get_running_loop().create_future()
        self._questions[question.label] = future
        try:
            if not self._link.send(question):
                raise OverloadedError(
                    f"10,000 messages wait for the gateway at {self.address}: send fewer at once",
                    code="overloaded",
                )
            return await future
        except asyncio.CancelledError:
            _cancel_stream_of(future)
            raise
        finally:
            # An `Accepted` that comes after its asker has gone is answered with a cancel.
            self._questions.pop(question.label, None)

    def _validate(self, question: Submit | ClientPing) -> None:
        """Read the message as the gateway will: a fault is then this request's, with its reason."""
        try:
            self._check.decode(encode(question))
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequestError(str(error), code="invalid_request") from None

    def _cancel(self, request_id: bytes) -> None:
        self._link.send(CancelRequest(request_id=request_id))

    async def _receive(self) -> None:
        async for message in self._link.messages():
            self._num_heard += 1
            self.is_answering = True
            match message:
                case Output() | Done():
                    self._deliver(message)
                case Accepted():
                    self._open_stream(message)
                case Refused(label=label):
                    self._answer(
                        label,
                        error_from_code(message.code, message.message, message.retry_after_s),
                    )
                case ClientPong(label=label):
                    self._answer(label, message)
                case Malformed(message=text):
                    # What this side sends was checked, so the two sides speak different versions.
                    reason = f"the gateway cannot read this client's messages: {text}"
                    self._fail_all(partial(InternalError, reason))

    def _deliver(self, message: Output | Done) -> None:
        stream = self._streams.get(message.request_id)
        if stream is None:
            self.num_unexpected += 1
            return
        stream.take(message)
        if stream.is_over:
            del self._streams[message.request_id]
            if not isinstance(message, Done):
                self._cancel(message.request_id)

    def _open_stream(self, accepted: Accepted) -> None:
        stream = AsyncStream(accepted, self._cancel)
        if self._answer(accepted.label, stream):
            self._streams[accepted.request_id] = stream
        else:
            self._cancel(accepted.request_id)

    def _answer(self, label: str, answer: AsyncStream | ClientPong | TandemError) -> bool:
        """Give the asker its answer; False where it no longer waits."""
        future = self._questions.get(label)
        if future is None or future.done():
            self.num_unexpected += 1
            return False
        if isinstance(answer, TandemError):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return True

    async def _watch_disconnections(self) -> None:
        text = (
            f"the gateway at {self.address} closed the connection while requests were in flight: "
            "look at its log, then send them again"
        )
        async for _ in self._link.disconnections():
            self._fail_all(partial(GatewayUnreachableError, text, code="unavailable"))

    async def _watch_silence(self) -> None:
        """Ping while anything is in flight; a gateway that says nothing for long is given up.

        Counts silent pings, not time: this loop itself may have been blocked by its user.
        """
        num_silent, num_heard = 0, self._num_heard
        while True:
            await asyncio.sleep(PING_EVERY_S)
            is_idle = not self._streams and not self._questions
            num_silent = 0 if is_idle or num_heard < self._num_heard else num_silent + 1
            num_heard = self._num_heard
            if is_idle:
                continue
            self._link.send(ClientPing(label="beat"))
            if num_silent * PING_EVERY_S > self._silence_s:
                text = f"the gateway at {self.address} said nothing for {self._silence_s:g} s"
                self._fail_all(partial(GatewayUnreachableError, text, code="unavailable"))

    def _fail_all(self, make_error: Callable[[], TandemError]) -> None:
        """End all that waits, each with an exception of its own (they collect tracebacks)."""
        self.is_answering = False
        for future in self._questions.values():
            if not future.done():
                future.set_exception(make_error())
        for stream in self._streams.values():
            stream.fail(make_error())
        self._streams.clear()


def _cancel_stream_of(future: asyncio.Future[AsyncStream | ClientPong]) -> None:
    """Cancel the request whose asker was cancelled between the answer and its own next step."""
    if future.done() and not future.cancelled() and future.exception() is None:
        answer = future.result()
        if isinstance(answer, AsyncStream):
            answer.request_cancel()
