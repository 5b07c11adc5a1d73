"""The decode guest: joins KV with commands, runs residents token by token, emits. Pure.

A request's pages for its full length are set aside before its KV is sent (Orca's reservation), so
whatever was admitted can always finish and nothing needs to be preempted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from kv_transfer import actions as kv
from kv_transfer.incoming import IncomingTransfers
from node.actions import NodeAction, Reply
from node.ledger import PageState
from node.resident import Attempts, Resident, finish_reason
from node.runner import Sampled, SequenceStep
from node.state import NodeState
from scheduling.views import RequestKey, SequenceView
from tandem.messages import handoff
from tandem.messages.common import DecodeReport, ErrorCode, FinishReason, NodeRef, TokenLogprobs
from tandem.messages.serving import CommandAck, CommandRefused, Decode, Ending

COMMAND_PATIENCE_S = 60.0
MAX_FAILED = 1_000

StartLocal = Callable[[Resident, float], None]


class Phase(Enum):
    """Where a request is on its way."""

    EXPECTED = auto()  # its command is here, its KV is not
    WAITING = auto()  # KV and command are here; the batch policy has not admitted it
    RUNNING = auto()  # one token per step


@dataclass(slots=True)
class Entry:
    """One request with its command; `kv_at` and `started_at` are for its timeline."""

    resident: Resident
    phase: Phase = Phase.EXPECTED
    first_token: kv.FirstToken | None = None
    kv_at: float | None = None
    started_at: float | None = None
    num_transfer_bytes: int = 0


class DecodeGuest:
    """See the module."""

    def __init__(
        self, state: NodeState, transfers: IncomingTransfers, *, start_local: StartLocal
    ) -> None:
        self._state = state
        self._transfers = transfers
        self._start_local = start_local
        self._entries: dict[RequestKey, Entry] = {}
        # KV that came before its command, and when.
        self._arrived: dict[RequestKey, tuple[kv.Arrived, float]] = {}
        self._failed: dict[RequestKey, tuple[ErrorCode, str]] = {}  # before their command came
        self._attempts = Attempts()

    # --- commands and hand-offs -------------------------------------------------------------

    def command(self, peer: bytes, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """A gateway's `Decode`, or a writer's part of a hand-off."""
        if isinstance(message, Decode):
            return self._decode(peer, message, now)
        assert isinstance(
            message, handoff.Reserve | handoff.Progress | handoff.Commit | handoff.Drained
        )
        return self._obey(self._transfers.handle(peer, message, now), now)

    def _decode(self, peer: bytes, message: Decode, now: float) -> list[NodeAction]:
        spec = message.spec
        key = (spec.request_id, spec.attempt)
        ack = CommandAck(command="decode", request_id=key[0], attempt=key[1])
        if key in self._failed:
            return [Reply(peer, _refusal(key, *self._failed.pop(key)))]
        if key in self._entries or self._attempts.is_closed(key):
            return [Reply(peer, ack)]
        page_size = self._state.identity.layout.page_size
        resident = Resident(spec, peer=peer, now=now, page_size=page_size)
        if resident.num_final_pages > self._state.ledger.num_pages:
            return [Reply(peer, self._too_few_pages(resident))]
        self._entries[key] = Entry(resident)
        if message.prefill is None:
            self._start_local(resident, now)
        elif key in self._arrived:
            self._join(self._arrived.pop(key)[0], now)
        return [Reply(peer, ack)]

    def _too_few_pages(self, resident: Resident) -> CommandRefused:
        text = (
            f"{resident.max_total_tokens} tokens need {resident.num_final_pages} KV pages and the "
            f"decode node has {self._state.ledger.num_pages}: shorten the prompt, lower "
            "max_tokens, or start the node with more --num-pages"
        )
        return _refusal(resident.key, "too_few_pages", text)

    def answer(self, node_id: str, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """Decode guests dial no node."""
        raise AssertionError(f"{type(message).__name__} from {node_id} is for the prefill guest")

    def bulk_event(self, event: object, now: float) -> list[NodeAction]:
        """Pages were verified, or a grant was closed."""
        assert isinstance(event, kv.PagesVerified | kv.GrantClosed)
        return self._obey(self._transfers.bulk_event(event, now), now)

    def node_lost(self, node: NodeRef, reason: str, now: float) -> list[NodeAction]:
        """A writer is gone; what it may still write to stays DRAINING until it is proved silent."""
        return []

    def _obey(self, wanted: list[kv.IncomingAction], now: float) -> list[NodeAction]:
        actions: list[NodeAction] = []
        for action in wanted:
            match action:
                case kv.ReplyToWriter(writer, message):
                    actions.append(Reply(writer, message))
                case kv.Arrived():
                    self._on_arrived(action, now)
                case kv.ArrivalFailed(key, "cancelled"):
                    # The writer tells the gateway how the attempt ended (its first token may have
                    # been the last); an ending from here could overtake that.
                    self._attempts.close(key)
                    self._entries.pop(key, None)
                case kv.ArrivalFailed(key, code, message):
                    self._fail(key, code, message, now)
                case _:
                    actions.append(action)
        return actions

    def _on_arrived(self, arrived: kv.Arrived, now: float) -> None:
        if self._attempts.is_closed(arrived.key):
            self._drop(arrived)
        elif arrived.key in self._entries:
            self._join(arrived, now)
        else:
            self._arrived[arrived.key] = (arrived, now)

    def _drop(self, arrived: kv.Arrived) -> None:
        self._state.ledger.unpromise(arrived.num_promised)
        self._state.ledger.release(arrived.pages)

    def _join(self, arrived: kv.Arrived, now: float) -> None:
        entry = self._entries[arrived.key]
        resident = entry.resident
        vocab_size = self._state.identity.model.vocab_size
        if (
            arrived.num_tokens != resident.num_tokens
            or arrived.first_token.token_id >= vocab_size
            or len(arrived.pages) + arrived.num_promised < resident.num_final_pages
        ):
            self._drop(arrived)
            text = f"KV of {arrived.num_tokens} tokens came for {resident.num_tokens}"
            self._fail(arrived.key, "transfer_failed", text, now)
            return
        self._state.ledger.move(arrived.pages, PageState.ACTIVE)
        resident.add_pages(list(arrived.pages))
        resident.num_promised = arrived.num_promised
        resident.num_computed = arrived.num_tokens
        entry.num_transfer_bytes = arrived.num_bytes
        self._take_first_token(entry, arrived.first_token, now)

    def local_done(self, resident: Resident, token: kv.FirstToken, now: float) -> None:
        """This node's own prefill guest computed the prompt: the `inproc` hand-off to itself."""
        entry = self._entries.get(resident.key)
        if entry is None:
            self._state.give_back(resident)
        else:
            self._take_first_token(entry, token, now)

    def local_failed(self, key: RequestKey, code: ErrorCode, message: str, now: float) -> None:
        """This node's own prefill guest could not compute the prompt."""
        self._fail(key, code, message, now)

    def _take_first_token(self, entry: Entry, token: kv.FirstToken, now: float) -> None:
        resident = entry.resident
        entry.kv_at = now
        entry.first_token = token
        entry.phase = Phase.WAITING
        self._state.index_pages(resident)
        index = resident.num_output_tokens
        self._state.emitter.prefilled(resident.peer, resident.key, index, token.report)
        self._append(entry, token.token_id, token.logprobs, now)

    # --- running ----------------------------------------------------------------------------

    def waiting(self) -> tuple[SequenceView, ...]:
        """Requests with KV that no policy has admitted yet."""
        return self._views(Phase.WAITING)

    def running(self) -> tuple[SequenceView, ...]:
        """Admitted requests."""
        return self._views(Phase.RUNNING)

    def _views(self, phase: Phase) -> tuple[SequenceView, ...]:
        return tuple(e.resident.view() for e in self._entries.values() if e.phase is phase)

    def admit(self, key: RequestKey, now: float) -> None:
        """The policy admitted it."""
        entry = self._entries[key]
        entry.phase = Phase.RUNNING
        entry.started_at = now

    def step(self, key: RequestKey, num_tokens: int, now: float) -> SequenceStep:
        """The next token of a running request; it gets the page that the token needs."""
        resident = self._entries[key].resident
        self._state.grow(resident)
        return resident.step(num_tokens, self._state.identity.eos_token_ids)

    def computed(
        self, key: RequestKey, num_tokens: int, sampled: Sampled | None, now: float
    ) -> list[NodeAction]:
        """The step drew the next token."""
        entry = self._entries[key]
        assert sampled is not None
        entry.resident.num_computed += num_tokens
        if sampled.error is not None:
            self._fail(key, "internal", sampled.error, now)
            return []
        self._append(entry, sampled.token_id, sampled.wire_logprobs, now)
        return []

    def _append(
        self, entry: Entry, token_id: int, logprobs: TokenLogprobs | None, now: float
    ) -> None:
        resident = entry.resident
        index = resident.num_output_tokens
        self._state.emitter.token(resident.peer, resident.key, index, token_id, logprobs)
        resident.append(token_id)
        reason = finish_reason(resident, self._state.identity.eos_token_ids)
        if reason is not None:
            self._finish(entry, reason, now)

    def tick(self, now: float) -> list[NodeAction]:
        """Grant reserves that have waited for pages, resend what is due, drop what nobody wants."""
        for key in [k for k, (_, at) in self._arrived.items() if now - at > COMMAND_PATIENCE_S]:
            self._attempts.close(key)
            self._drop(self._arrived.pop(key)[0])
        return self._obey(self._transfers.tick(now), now)

    # --- ending -----------------------------------------------------------------------------

    def cancel(self, key: RequestKey, now: float) -> list[NodeAction]:
        """End this attempt and earlier ones, known or not yet known."""
        self._attempts.close(key)
        actions = self._obey(self._transfers.cancel(key, now), now)
        for known in [k for k in self._arrived if k[0] == key[0] and k[1] <= key[1]]:
            self._drop(self._arrived.pop(known)[0])
        for known in [k for k in self._entries if k[0] == key[0] and k[1] <= key[1]]:
            entry = self._entries.pop(known)
            self._state.emitter.close(entry.resident.peer, known)
            if entry.phase is not Phase.EXPECTED:
                self._release(entry)
        return actions

    def peer_lost(self, peer: bytes, now: float) -> list[NodeAction]:
        """A gateway is silent: its requests end."""
        lost = [key for key, entry in self._entries.items() if entry.resident.peer == peer]
        actions: list[NodeAction] = []
        for key in lost:
            self._fail(key, "unavailable", "the gateway was silent for too long", now)
            actions += self._obey(self._transfers.cancel(key, now), now)
        return actions

    def _finish(self, entry: Entry, reason: FinishReason, now: float) -> None:
        self._end(entry, reason, now)
        self._release(entry)

    def _fail(self, key: RequestKey, code: ErrorCode, message: str, now: float) -> None:
        entry = self._entries.get(key)
        if entry is None:
            if not self._attempts.is_closed(key):
                self._failed[key] = (code, message)
                self._attempts.close(key)
                if len(self._failed) > MAX_FAILED:
                    del self._failed[next(iter(self._failed))]
            return
        self._end(entry, "failed", now, code, message)
        if entry.phase is not Phase.EXPECTED:
            self._release(entry)

    def _release(self, entry: Entry) -> None:
        self._state.index_pages(entry.resident)
        self._state.give_back(entry.resident)

    def _end(
        self,
        entry: Entry,
        reason: FinishReason,
        now: float,
        code: ErrorCode | None = None,
        message: str | None = None,
    ) -> None:
        resident = entry.resident
        self._attempts.close(resident.key)
        self._entries.pop(resident.key, None)
        token = entry.first_token
        ending = Ending(
            request_id=resident.key[0],
            attempt=resident.key[1],
            end_index=resident.num_output_tokens,
            reason=reason,
            code=code,
            message=message,
            prefill=token.report if token is not None else None,
            decode=self._report(entry, now),
        )
        self._state.emitter.end(resident.peer, ending)

    def _report(self, entry: Entry, now: float) -> DecodeReport:
        arrived_at = entry.resident.arrived_at
        kv_at = now if entry.kv_at is None else entry.kv_at
        started_at = now if entry.started_at is None else entry.started_at
        return DecodeReport(
            node_id=self._state.identity.node_id,
            transfer_end_after_s=max(0.0, kv_at - arrived_at),
            started_after_s=max(0.0, started_at - arrived_at),
            ended_after_s=max(0.0, now - arrived_at),
            transfer_bytes=entry.num_transfer_bytes,
        )

    @property
    def num_requests(self) -> int:
        """Requests, KV without a command, and grants that are not over."""
        return len(self._entries) + len(self._arrived) + self._transfers.num_open


def _refusal(key: RequestKey, code: ErrorCode, message: str) -> CommandRefused:
    return CommandRefused(
        command="decode", request_id=key[0], attempt=key[1], code=code, message=message
    )
