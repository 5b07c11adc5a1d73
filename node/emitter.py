"""Tokens on their way to gateways: one message per gateway and step, kept until acknowledged. Pure.

A successful socket send proves nothing, so every token and every ending stays here until the
gateway says that it has it, and is sent again when that takes too long.
"""

from dataclasses import dataclass, field

from scheduling.views import RequestKey
from tandem.messages.common import PrefillReport, TokenLogprobs
from tandem.messages.serving import Emission, EmissionAck, Ending, TokenDelta

RESEND_AFTER_S = 0.5
LONGEST_RESEND_S = 4.0
# Half of the control frame's limit: a delta's size is estimated, not measured.
MAX_MESSAGE_COST = 32_000
TOKEN_COST = 6
NO_LOGPROBS: tuple[TokenLogprobs, ...] = ()


@dataclass(slots=True)
class _Stream:
    """Tokens `base, base + 1, ...` of one attempt; those below `sent` were sent at least once."""

    base: int
    sent: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    ending: Ending | None = None
    is_ending_sent: bool = False
    is_ending_taken: bool = False
    is_finished: bool = False  # nothing more will be emitted here, and no ending either
    report: PrefillReport | None = None  # of prefill; it is in the message of the first token
    is_report_sent: bool = False
    waiting_since: float = 0.0  # when the oldest unacknowledged part was sent
    resend_s: float = RESEND_AFTER_S

    @property
    def end(self) -> int:
        return self.base + len(self.ids)

    @property
    def has_news(self) -> bool:
        if self.sent < self.base + len(self.ids):
            return True
        return self.ending is not None and not self.is_ending_sent and not self.is_ending_taken

    def forget_below(self, index: int, now: float) -> None:
        """The gateway has the tokens below `index`."""
        ids = self.ids
        num_taken = min(index - self.base, len(ids))
        del ids[:num_taken]
        if self.logprobs:
            del self.logprobs[:num_taken]
        self.base += num_taken
        self.sent = max(self.sent, self.base)
        if self.is_report_sent:
            self.report = None
        self.waiting_since, self.resend_s = now, RESEND_AFTER_S

    def take(self, key: RequestKey, budget: int) -> tuple[TokenDelta, int]:
        """Tokens not yet sent, as many as cost at most `budget` (one at least), and their cost."""
        first, ids, logprobs = self.sent - self.base, self.ids, self.logprobs
        if first + 1 == len(ids):  # as in most steps
            num_new = 1
            new_ids: tuple[int, ...] = (ids[first],)
        else:
            num_new = self._num_within(first, budget)
            new_ids = tuple(ids[first : first + num_new])
        cost, new_logprobs = num_new * TOKEN_COST, NO_LOGPROBS
        if logprobs:
            new_logprobs = tuple(logprobs[first : first + num_new])
            cost += sum(map(_logprobs_cost, new_logprobs))
        delta = TokenDelta(
            request_id=key[0],
            attempt=key[1],
            start=self.sent,
            ids=new_ids,
            logprobs=new_logprobs,
        )
        self.sent += num_new
        return delta, cost

    def _num_within(self, first: int, budget: int) -> int:
        """How many tokens from the `first` on cost at most `budget`; one at least."""
        if not self.logprobs:
            return min(len(self.ids) - first, max(1, budget // TOKEN_COST))
        cost, num_new = 0, 0
        for index in range(first, len(self.ids)):
            cost += TOKEN_COST + _logprobs_cost(self.logprobs[index])
            if num_new and cost > budget:
                break
            num_new += 1
        return num_new


def _logprobs_cost(logprobs: TokenLogprobs) -> int:
    return 12 + 16 * len(logprobs.top)


@dataclass(slots=True)
class _Draft:
    """A message being filled, with the estimated bytes so far."""

    deltas: list[TokenDelta] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    prefills: list[tuple[bytes, int, PrefillReport]] = field(default_factory=list)
    cost: int = 0

    def fill(self, key: RequestKey, stream: _Stream, now: float) -> bool:
        """Move what fits of a stream's news into the message; whether there is more."""
        base, sent, end = stream.base, stream.sent, stream.base + len(stream.ids)
        if sent == base:
            stream.waiting_since = now
        if sent < end:
            delta, cost = stream.take(key, MAX_MESSAGE_COST - self.cost)
            self.deltas.append(delta)
            self.cost += cost + 40
        if stream.report is not None and not stream.is_report_sent:
            self.prefills.append((*key, stream.report))
            stream.is_report_sent = True
            self.cost += 200
        ending = stream.ending
        if ending is not None and stream.sent == end and not stream.is_ending_taken:
            self.endings.append(ending)
            stream.is_ending_sent = True
            self.cost += 400 + 4 * len(ending.message or "")
        return stream.sent < end


class Emitter:
    """Streams by gateway. `flush` gives what is due; `acknowledge` forgets what arrived."""

    def __init__(self, node_id: str, incarnation: int) -> None:
        self._node_id = node_id
        self._incarnation = incarnation
        self._streams: dict[bytes, dict[RequestKey, _Stream]] = {}
        self._fresh: dict[bytes, dict[RequestKey, _Stream]] = {}  # with news, the oldest first
        self._next_resend_at = 0.0
        self.num_tokens = 0
        self.num_resent = 0

    def token(
        self,
        peer: bytes,
        key: RequestKey,
        index: int,
        token_id: int,
        logprobs: TokenLogprobs | None,
    ) -> None:
        """Emit one token of an attempt; indices of an attempt are consecutive."""
        streams, fresh = self._streams.get(peer), self._fresh.get(peer)
        stream = None if streams is None else streams.get(key)
        if stream is None:
            stream = self._stream(peer, key, index)
        assert index == stream.base + len(stream.ids), (index, stream.end)
        stream.ids.append(token_id)
        if logprobs is not None:
            stream.logprobs.append(logprobs)
        if fresh is None:
            self._note(peer, key, stream)
        else:
            fresh[key] = stream
        self.num_tokens += 1

    def prefilled(self, peer: bytes, key: RequestKey, index: int, report: PrefillReport) -> None:
        """Let the report of prefill travel with the attempt's next tokens."""
        self._stream(peer, key, index).report = report

    def end(self, peer: bytes, ending: Ending) -> None:
        """Emit an attempt's end; after it the attempt emits nothing."""
        key = (ending.request_id, ending.attempt)
        stream = self._stream(peer, key, ending.end_index)
        stream.ending = ending
        self._note(peer, key, stream)

    def has_ending(self, peer: bytes, key: RequestKey) -> bool:
        """Whether the attempt ended here and its gateway has not yet confirmed it."""
        stream = self._streams.get(peer, {}).get(key)
        return stream is not None and stream.ending is not None

    def finish(self, peer: bytes, key: RequestKey) -> None:
        """Another node carries the attempt on: forget it once what was emitted is taken."""
        stream = self._streams.get(peer, {}).get(key)
        if stream is not None and stream.ending is None:
            stream.is_finished = True
            if not stream.ids:
                self.close(peer, key)

    def acknowledge(self, peer: bytes, ack: EmissionAck, now: float) -> None:
        """Forget what the gateway has."""
        streams = self._streams.get(peer, {})
        touched = [*ack.ended]  # that may be over
        for taken in ack.taken:
            key = taken.request_id, taken.attempt
            stream = streams.get(key)
            if stream is None:
                continue
            if taken.next_index > stream.base:
                stream.forget_below(taken.next_index, now)
            if stream.is_ending_taken or stream.is_finished:
                touched.append(key)
        for key in ack.ended:
            # An ending that was not sent yet is news to whoever acknowledged what came before it.
            if key in streams and (streams[key].ending is None or streams[key].is_ending_sent):
                streams[key].is_ending_taken = True
        for key in touched:
            stream = streams.get(key)
            # An ending may be known before tokens that were lost on the way: those stay.
            is_over = stream is not None and (stream.is_ending_taken or stream.is_finished)
            if is_over and stream is not None and not stream.ids:
                self.close(peer, key)
        if not streams:
            self._streams.pop(peer, None)

    def close(self, peer: bytes, key: RequestKey) -> None:
        """Nobody wants this attempt's tokens any more."""
        self._streams.get(peer, {}).pop(key, None)
        self._fresh.get(peer, {}).pop(key, None)

    def drop_peer(self, peer: bytes) -> None:
        """The gateway is dead."""
        self._streams.pop(peer, None)
        self._fresh.pop(peer, None)

    @property
    def num_unacknowledged(self) -> int:
        """Attempts with tokens or endings that no gateway has confirmed."""
        return sum(
            bool(s.ids or s.ending) for streams in self._streams.values() for s in streams.values()
        )

    def flush(self, epoch: int, now: float) -> list[tuple[bytes, Emission]]:
        """Messages to send now: everything new, and what waits too long for its acknowledgement."""
        self._find_overdue(now)
        messages: list[tuple[bytes, Emission]] = []
        for peer, streams in self._fresh.items():
            drafts = [_Draft()] if streams else []
            for key, stream in streams.items():
                is_left = stream.has_news
                while is_left:
                    if drafts[-1].cost >= MAX_MESSAGE_COST:
                        drafts.append(_Draft())
                    is_left = drafts[-1].fill(key, stream, now)
            messages += [(peer, self._emission(draft, epoch)) for draft in drafts]
        self._fresh.clear()
        return messages

    def _emission(self, draft: _Draft, epoch: int) -> Emission:
        return Emission(
            node_id=self._node_id,
            incarnation=self._incarnation,
            epoch=epoch,
            deltas=tuple(draft.deltas),
            endings=tuple(draft.endings),
            prefills=tuple(draft.prefills),
        )

    def _stream(self, peer: bytes, key: RequestKey, index: int) -> _Stream:
        streams = self._streams.get(peer)
        if streams is None:
            streams = self._streams[peer] = {}
        stream = streams.get(key)
        if stream is None:
            stream = streams[key] = _Stream(base=index, sent=index)
        return stream

    def _note(self, peer: bytes, key: RequestKey, stream: _Stream) -> None:
        fresh = self._fresh.get(peer)
        if fresh is None:
            fresh = self._fresh[peer] = {}
        fresh[key] = stream

    def _find_overdue(self, now: float) -> None:
        if now < self._next_resend_at:
            return
        self._next_resend_at = now + RESEND_AFTER_S / 2
        for peer, streams in self._streams.items():
            for key, stream in streams.items():
                is_unknown_end = stream.ending is not None and not stream.is_ending_taken
                is_waiting = bool(stream.ids) or is_unknown_end
                if is_waiting and now - stream.waiting_since > stream.resend_s:
                    stream.sent, stream.is_ending_sent = stream.base, False
                    stream.is_report_sent = False
                    stream.resend_s = min(2 * stream.resend_s, LONGEST_RESEND_S)
                    self._note(peer, key, stream)
                    self.num_resent += 1
