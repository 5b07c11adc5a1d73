"""The decode guest: joins KV with commands, runs residents token by token, emits. Pure.

How much of a request's growth is set aside before its KV is sent is the node's choice (Orca's
reservation sets all of it aside); where that is not all, pages can run out, rows wait for them, and
requests are preempted (`decode_node/preemption.py`). The oldest can always finish.
"""

from collections.abc import Callable, Sequence

import msgspec

from decode_node.adoption import Adoptions
from decode_node.entry import Entry, Phase
from decode_node.preemption import Preemption, is_protected
from decode_node.replies import explain_misfit, explain_too_few, refusal
from decode_node.rows import DecodeRows
from kv_transfer import actions as kv
from kv_transfer.arrivals import ArrivalPhase
from kv_transfer.incoming import IncomingTransfers
from node.actions import NodeAction, NodeNotice, Reply
from node.ledger import PageState
from node.resident import MAX_CLOSED, Attempts, Resident, finish_reason
from node.runner import Sampled, SequenceStep
from node.state import NodeState
from scheduling.views import PreemptMode, RequestKey, SequenceView
from tandem.messages import handoff
from tandem.messages.common import ErrorCode, FinishReason, NodeRef, TokenLogprobs
from tandem.messages.serving import (
    Adopted,
    CommandAck,
    Decode,
)

StartLocal = Callable[[Resident, float], None]


class DecodeGuest:
    """See the module."""

    def __init__(
        self,
        state: NodeState,
        transfers: IncomingTransfers,
        preemption: Preemption,
        *,
        start_local: StartLocal,
    ) -> None:
        self._state = state
        self._transfers = transfers
        self._preemption = preemption
        self._start_local = start_local
        self._entries: dict[RequestKey, Entry] = {}
        self._arrived: dict[RequestKey, kv.Arrived] = {}  # KV that came before its command
        self._adoptions = Adoptions()
        self._failed: dict[RequestKey, tuple[ErrorCode, str]] = {}  # before their command came
        self._attempts = Attempts()
        self._rows = DecodeRows(state, self._entries)

    # --- commands and hand-offs -------------------------------------------------------------

    def command(self, peer: bytes, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """A gateway's `Decode`, question or answer, or a writer's part of a hand-off."""
        match message:
            case Decode():
                return self._decode(peer, message, now)
            case Adopted(request_id=request_id, attempt=attempt, is_wanted=is_wanted):
                key = (request_id, attempt)
                is_over = self._adoptions.answered(peer, key, is_wanted=is_wanted)
                return self.cancel(key, now) if is_over else []
            case _:
                assert isinstance(message, handoff.FromWriter)
                actions = self._obey(self._transfers.handle(peer, message, now), now)
                if isinstance(message, handoff.Reserve):
                    self._look_for_command((message.request_id, message.attempt), message.gateway)
                return actions

    def _look_for_command(self, key: RequestKey, gateway: bytes) -> None:
        if key not in self._entries and self._is_wanting(key):
            self._adoptions.found(key, gateway)

    def _is_wanting(self, key: RequestKey) -> bool:
        """Whether pages are held or waited for, for an attempt without a command."""
        phase = self._transfers.phase(key)
        return key in self._arrived or phase not in (None, ArrivalPhase.DRAINING)

    def has(self, key: RequestKey) -> bool:
        """Whether this attempt is waiting, running, or its KV is on its way."""
        return key in self._entries or self._is_wanting(key)

    def has_kv(self, peer: bytes, key: RequestKey) -> bool:
        """Whether the attempt goes on, or ended, here: its prefill node is not needed any more."""
        entry = self._entries.get(key)
        if entry is not None and entry.phase is not Phase.EXPECTED:
            return True
        is_committed = self._transfers.phase(key) is ArrivalPhase.VERIFYING
        return key in self._arrived or is_committed or self._state.emitter.has_ending(peer, key)

    def _decode(self, peer: bytes, message: Decode, now: float) -> list[NodeAction]:
        spec = message.spec
        key = (spec.request_id, spec.attempt)
        ack = CommandAck(command="decode", request_id=key[0], attempt=key[1])
        if key in self._failed:
            return [Reply(peer, refusal(key, *self._failed[key]))]  # again: it may have got lost
        if key in self._entries or self._attempts.is_closed(key):
            return [Reply(peer, ack)]
        page_size = self._state.identity.layout.page_size
        resident = Resident(spec, peer=peer, now=now, page_size=page_size)
        if resident.num_final_pages > self._state.ledger.num_pages:
            text = explain_too_few(resident, self._state.ledger.num_pages)
            return [Reply(peer, refusal(key, "too_few_pages", text))]
        if resident.num_expected_pages is not None:
            self._state.pool.growth.expect(key, resident.num_expected_pages)
        self._entries[key] = Entry(resident, is_local=message.prefill is None)
        self._adoptions.settled(key)
        actions: list[NodeAction] = [Reply(peer, ack)]
        if message.prefill is None:
            actions += self._drop_transfers(key, now)
            self._start_local(resident, now)
        elif key in self._arrived:
            self._join(self._arrived.pop(key), now)
        return actions

    def answer(self, node_id: str, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """Decode guests dial no node."""
        raise AssertionError(f"{type(message).__name__} from {node_id} is for the prefill guest")

    def bulk_event(self, event: object, now: float) -> list[NodeAction]:
        """Pages were verified, a grant was closed, or a writer is proved dead."""
        assert isinstance(event, kv.OwnerEvent)
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
                case kv.Notice(text):
                    actions.append(NodeNotice(text))
                case kv.Arrived():
                    self._on_arrived(action, now)
                case kv.ArrivalFailed():
                    self._on_failed(action, now)
                case _:
                    actions.append(action)
        return actions

    def _on_arrived(self, arrived: kv.Arrived, now: float) -> None:
        entry = self._entries.get(arrived.key)
        if entry is None and not self._attempts.is_closed(arrived.key):
            self._arrived[arrived.key] = arrived
        elif entry is not None and entry.awaits_transfer:
            self._join(arrived, now)
        else:
            self._drop(arrived)

    def _on_failed(self, failed: kv.ArrivalFailed, now: float) -> None:
        key = failed.key
        entry = self._entries.get(key)
        if entry is not None and not entry.awaits_transfer:
            return
        if failed.code == "cancelled":
            # The writer tells the gateway how the attempt ended (its first token may have been the
            # last); an ending from here could overtake that.
            self._attempts.close(key)
            self._entries.pop(key, None)
            self._state.pool.growth.over(key)
        else:
            self._fail(key, failed.code, failed.message, now)

    def _drop_transfers(self, key: RequestKey, now: float) -> list[NodeAction]:
        """Nothing of this attempt, or of earlier ones, is wanted from other nodes."""
        for known in [k for k in self._arrived if k[0] == key[0] and k[1] <= key[1]]:
            self._drop(self._arrived.pop(known))
        return self._obey(self._transfers.cancel(key, now), now)

    def _drop(self, arrived: kv.Arrived) -> None:
        self._state.pool.forgo(arrived.key, arrived.num_promised)
        self._state.pool.release(arrived.pages)

    def _join(self, arrived: kv.Arrived, now: float) -> None:
        entry = self._entries[arrived.key]
        resident = entry.resident
        problem = explain_misfit(arrived, resident, self._state)
        if problem is not None:
            self._drop(arrived)
            self._fail(arrived.key, "transfer_failed", problem, now)
            return
        self._state.ledger.move(arrived.pages[arrived.num_cached :], PageState.ACTIVE)
        resident.add_pages(list(arrived.pages))
        resident.num_promised = arrived.num_promised
        resident.num_computed = arrived.num_tokens
        entry.num_transfer_bytes = arrived.num_bytes
        resident.num_cached = arrived.num_cached * self._state.identity.layout.page_size
        entry.num_cached_tokens = resident.num_cached
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
        entry.phase = Phase.WAITING
        self._state.index_pages(resident)
        if entry.first_token is None:  # else it is computed again, and this token is any later one
            entry.kv_at = now
            entry.first_token = token
            index = resident.num_output_tokens
            self._state.emitter.prefilled(resident.peer, resident.key, index, token.report)
        self._append(entry, token.token_id, token.logprobs, now)

    # --- running ----------------------------------------------------------------------------

    def waiting(self) -> tuple[SequenceView, ...]:
        """Requests with KV that no policy has admitted yet."""
        return self._rows.views(Phase.WAITING)

    def running(self) -> tuple[SequenceView, ...]:
        """Admitted requests."""
        return self._rows.views(Phase.RUNNING)

    def swapped(self) -> tuple[SequenceView, ...]:
        """Requests with their KV in host memory."""
        return self._rows.views(Phase.SWAPPED)

    def steady_rows(self) -> tuple[RequestKey, ...] | None:
        """All that run, oldest first, where nothing but their next tokens is to be decided."""
        return self._rows.steady()

    def admit(self, key: RequestKey, now: float) -> bool:
        """The policy admits it; False where a swapped one has no room to come back."""
        entry = self._entries[key]
        if entry.phase is Phase.SWAPPED and not self._preemption.restore(entry):
            return False
        entry.phase = Phase.RUNNING
        if entry.started_at is None:
            entry.started_at = now
        return True

    def steps(
        self, keys: Sequence[RequestKey], now: float
    ) -> tuple[Sequence[RequestKey], list[SequenceStep]]:
        """Those of these running requests that need not wait for a page, and their next tokens."""
        return self._rows.steps(keys)

    def protected(self) -> frozenset[RequestKey]:
        """Requests that came back from a preemption a moment ago: not to be preempted again."""
        return frozenset(k for k, e in self._entries.items() if is_protected(e.resident))

    def preempt(self, key: RequestKey, mode: PreemptMode, now: float) -> None:
        """The policy wants its pages for others, or it elsewhere."""
        self._preemption.preempt(self._entries[key], mode, now)

    def unblock(self, now: float, *, is_short: bool) -> bool:
        """Nothing could run: make that something can; False where there is nothing to be done."""
        return self._preemption.unblock(self._entries.values(), now, is_short=is_short)

    def computed(
        self, keys: Sequence[RequestKey], sampled: Sequence[Sampled | None], now: float
    ) -> None:
        """The step drew the next token of each of these."""
        for key, drawn in zip(keys, sampled, strict=True):
            entry = self._entries[key]
            assert drawn is not None
            if drawn.error is None:
                entry.resident.num_computed += 1
                logprobs = None if drawn.logprob is None else drawn.wire_logprobs
                self._append(entry, drawn.token_id, logprobs, now)
            else:
                self._end(entry, "failed", now, "internal", drawn.error)
                self._state.distrust(entry.resident)
                self._state.give_back(entry.resident)

    def _append(
        self, entry: Entry, token_id: int, logprobs: TokenLogprobs | None, now: float
    ) -> None:
        resident = entry.resident
        index = resident.num_tokens - resident.num_prompt_tokens
        self._state.emitter.token(resident.peer, resident.key, index, token_id, logprobs)
        resident.append(token_id)
        resident.last_token_at = now
        reason = finish_reason(resident, self._state.identity.eos_token_ids)
        if reason is not None:
            self._finish(entry, reason, now)

    def tick(self, now: float) -> list[NodeAction]:
        """Grant reserves that have waited for pages, resend what is due, drop what nobody wants."""
        actions = self._preemption.take_wishes() + self._obey(self._transfers.tick(now), now)
        questions, silent = self._adoptions.tick(now, self._is_wanting)
        for key in silent:
            text = "the gateway did not say whether the attempt is wanted"
            actions += self._abandon(key, text, now)
        return actions + [Reply(gateway, question) for gateway, question in questions]

    # --- ending -----------------------------------------------------------------------------

    def cancel(self, key: RequestKey, now: float) -> list[NodeAction]:
        """End this attempt and earlier ones, known or not yet known."""
        self._attempts.close(key)
        actions = self._drop_transfers(key, now)
        for known in [k for k in self._entries if k[0] == key[0] and k[1] <= key[1]]:
            entry = self._entries.pop(known)
            self._state.pool.growth.over(known)
            self._state.emitter.close(entry.resident.peer, known)
            self._release(entry)
        return actions

    def peer_lost(self, peer: bytes, now: float) -> list[NodeAction]:
        """A gateway is silent: its requests end."""
        lost = [key for key, entry in self._entries.items() if entry.resident.peer == peer]
        actions: list[NodeAction] = []
        for key in lost:
            self._fail(key, "unavailable", "the gateway was silent for too long", now)
            actions += self._obey(self._transfers.cancel(key, now), now)
        for key in self._adoptions.of_gateway(peer):
            actions += self._abandon(key, "the gateway was silent for too long", now)
        return actions

    def _abandon(self, key: RequestKey, message: str, now: float) -> list[NodeAction]:
        """Give up what came before its command; should that come after all, it is refused."""
        self._adoptions.settled(key)
        self._fail(key, "unavailable", message, now)
        return self._drop_transfers(key, now)

    def _finish(self, entry: Entry, reason: FinishReason, now: float) -> None:
        self._end(entry, reason, now)
        self._release(entry)

    def _fail(self, key: RequestKey, code: ErrorCode, message: str, now: float) -> None:
        entry = self._entries.get(key)
        if entry is None:
            if not self._attempts.is_closed(key):
                self._failed[key] = (code, message)
                self._attempts.close(key)
                if len(self._failed) > MAX_CLOSED:  # not sooner than the attempt: it is no success
                    del self._failed[next(iter(self._failed))]
            return
        self._end(entry, "failed", now, code, message)
        self._release(entry)

    def _release(self, entry: Entry) -> None:
        """Give back what it holds; what the prefill guest still computes is that guest's."""
        if entry.has_pages:
            self._state.index_pages(entry.resident)
            self._state.give_back(entry.resident)
        elif entry.phase is Phase.SWAPPED:
            self._preemption.forget(entry)

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
        self._state.pool.growth.over(resident.key)
        node_id = self._state.identity.node_id
        ending = entry.ending(reason, node_id, now, code=code, message=message)
        self._state.emitter.end(resident.peer, ending)

    def knows(self, key: RequestKey) -> bool:
        """Whether its `Decode` came, or it is over."""
        return key in self._entries or self._attempts.is_closed(key)

    def has_had(self, request_id: bytes) -> bool:
        """Whether some attempt of the request is here, or was."""
        is_over = self._attempts.is_closed((request_id, 1))
        return is_over or any(key[0] == request_id for key in self._entries)

    @property
    def num_verifying(self) -> int:
        """Committed hand-offs whose checksums are being compared."""
        return sum(phase is ArrivalPhase.VERIFYING for phase in self._transfers.live().values())

    @property
    def num_preempted(self) -> int:
        """Preemptions since the start."""
        return self._preemption.num_preempted

    @property
    def num_requests(self) -> int:
        """Requests, KV without a command, and grants that are not over."""
        return len(self._entries) + len(self._arrived) + self._transfers.num_open
