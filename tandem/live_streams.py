"""The streams on one connection: acknowledges what came, asks again for what is missing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from tandem.async_stream import AsyncStream
from tandem.errors import InternalError, TandemError, UnavailableError, error_from_code
from tandem.messages.client import (
    Accepted,
    CancelRequest,
    Done,
    Output,
    Received,
    Resume,
    ResumeRefused,
)

TICK_S = 0.25
TICKS_PER_S = round(1 / TICK_S)
ACK_S = 5.0  # a gateway counts every message against its client's rate
ACK_TOKENS = 256  # so many are acknowledged without waiting for it to pass
MAX_FRUITLESS = 10


@dataclass(slots=True)
class _Entry:
    stream: AsyncStream
    num_acked: int = 0
    num_ticks: int = 0  # since the last word about it
    is_asking: bool = False  # `Resume` is unanswered
    num_fruitless: int = 0  # resumptions since the last token


class LiveStreams:
    """See the module. `on_lost` gets a stream that cannot go on here, and why."""

    def __init__(
        self,
        send: Callable[[msgspec.Struct], object],
        on_lost: Callable[[AsyncStream, TandemError], None],
        *,
        has_others: bool,
    ) -> None:
        """`has_others`: there are other gateways to go to when this one stops."""
        self._send = send
        self._on_lost = on_lost
        self._has_others = has_others
        self._entries: dict[bytes, _Entry] = {}
        self.num_unexpected = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[AsyncStream]:
        return iter([entry.stream for entry in self._entries.values()])

    def add(self, stream: AsyncStream) -> None:
        """A stream begins, or goes on, here."""
        self._entries[stream.accepted.request_id] = _Entry(stream, stream.next_index)

    def clear(self) -> list[AsyncStream]:
        """All of them; they are here no more."""
        streams = list(self)
        self._entries.clear()
        return streams

    def deliver(self, message: Output | Done) -> None:
        """The gateway's next word on a request."""
        entry = self._entries.get(message.request_id)
        if entry is None:
            self.num_unexpected += 1
            if isinstance(message, Done):  # it is told until somebody says that it came
                index = message.usage.num_output_tokens
                self._say(message.request_id, index, is_done=True)
            return
        stream = entry.stream
        before = stream.next_index
        if isinstance(message, Done) and self._is_worth_moving(message, stream):
            self._end(entry)
            error = error_from_code(message.code, message.message, message.retry_after_s)
            self._on_lost(stream, error)
            return
        if not stream.take(message):
            if not entry.is_asking:
                self._ask(entry)
            return
        if stream.is_over:
            self._end(entry)
        elif stream.next_index > before:
            entry.num_fruitless = 0
            if stream.next_index - entry.num_acked >= ACK_TOKENS:
                self._acknowledge(entry)

    def _is_worth_moving(self, done: Done, stream: AsyncStream) -> bool:
        """A gateway that must stop says so of each request: others may go on with them."""
        is_stop = (done.reason, done.code) == ("failed", "unavailable")
        return self._has_others and is_stop and not stream.is_cancelled

    def confirm(self, accepted: Accepted) -> bool:
        """The gateway replays a known request; False where it is not known here."""
        entry = self._entries.get(accepted.request_id)
        if entry is not None:
            entry.is_asking = False
        return entry is not None

    def refuse(self, refused: ResumeRefused) -> None:
        """The gateway knows a request no more: it was restarted, or we were away too long."""
        entry = self._entries.pop(refused.request_id, None)
        if entry is None:
            self.num_unexpected += 1
            return
        self._on_lost(entry.stream, UnavailableError(refused.message, code="unavailable"))

    def resume_all(self) -> None:
        """The link broke: what was on its way is lost."""
        for request_id, entry in self._entries.items():
            entry.is_asking = True
            self._send(Resume(request_id=request_id, next_index=entry.stream.next_index))

    def tick(self, *, is_answering: bool) -> None:
        """Every 0.25 s: what is due is said again; questions only where somebody answers."""
        for request_id, entry in list(self._entries.items()):
            entry.num_ticks += 1
            if entry.num_ticks % TICKS_PER_S == 0 and entry.stream.is_cancelled:
                self._send(CancelRequest(request_id=request_id))
            if entry.is_asking:
                if is_answering and entry.num_ticks % TICKS_PER_S == 0:
                    self._ask(entry)
            elif entry.num_ticks >= _ticks_between(entry):
                self._acknowledge(entry)

    def _ask(self, entry: _Entry) -> None:
        stream = entry.stream
        request_id = stream.accepted.request_id
        entry.num_fruitless += 1
        if entry.num_fruitless > MAX_FRUITLESS:
            del self._entries[request_id]
            self._send(CancelRequest(request_id=request_id))
            text = (
                f"the stream of request {stream.request_id} does not go on after token "
                f"{stream.next_index}: the gateway was asked {MAX_FRUITLESS} times to resume it"
            )
            self._on_lost(stream, InternalError(text))
            return
        entry.is_asking = True
        self._send(Resume(request_id=request_id, next_index=stream.next_index))

    def _acknowledge(self, entry: _Entry) -> None:
        entry.num_ticks, entry.num_acked = 0, entry.stream.next_index
        if entry.stream.accepted.silence_s is not None:
            self._say(entry.stream.accepted.request_id, entry.num_acked)

    def _end(self, entry: _Entry) -> None:
        request_id = entry.stream.accepted.request_id
        del self._entries[request_id]
        if entry.stream.accepted.silence_s is not None:
            self._say(request_id, entry.stream.next_index, is_done=True)

    def _say(self, request_id: bytes, next_index: int, *, is_done: bool = False) -> None:
        self._send(Received(request_id=request_id, next_index=next_index, is_done=is_done))


def _ticks_between(entry: _Entry) -> int:
    """Ticks between two acknowledgements: 5 s with news, else what the gateway asks for."""
    silence_s = entry.stream.accepted.silence_s or 30.0
    longest = max(int(silence_s / 3 / TICK_S), 1)
    has_news = entry.stream.next_index > entry.num_acked
    return min(longest, round(ACK_S / TICK_S)) if has_news else longest
