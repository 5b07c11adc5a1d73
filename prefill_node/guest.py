"""The prefill guest: a queue of prompts, their chunks, their hand-off to decode nodes. Pure.

Order of claims for a remote prompt: its own pages first, then the owner's. Where the owner has no
room the own pages are given back and the next prompt runs; the reserve stays queued there. A prefix
that only the owner has is read from there where that is cheaper; pages of such a prompt enter the
prefix cache once the owner took the Commit, which proves that it held what was read.
"""

from typing import Protocol

import msgspec

from kv_transfer import actions as kv
from kv_transfer.departures import OutgoingPhase
from kv_transfer.outgoing import OutgoingTransfers
from node.actions import NodeAction, Reply, SendToNode
from node.guest import PrefillWork
from node.resident import PREFIX_PAGES, Attempts, Resident, finish_reason
from node.runner import Sampled, SequenceStep
from node.state import NodeState
from prefill_node.job import Job, Phase, work_of
from prefill_node.order import PromptOrder, num_tokens_with_pages, to_bring_back
from prefill_node.reading import ReadCosts
from scheduling.views import PrefillPolicy, RequestKey, SequenceView, Services
from tandem.messages.common import ErrorCode, NodeRef
from tandem.messages.handoff import FromOwner
from tandem.messages.serving import CommandAck, Prefill

GRANTED_PATIENCE_S = 5.0


class LocalDecode(Protocol):
    """The decode guest of the same node: the `inproc` end of a hand-off, no transfer needed."""

    def local_done(self, resident: Resident, token: kv.FirstToken, now: float) -> None:
        """The prompt's KV is in the resident's pages, which change hands."""

    def local_failed(self, key: RequestKey, code: ErrorCode, message: str, now: float) -> None:
        """The prompt cannot be computed."""


class PrefillGuest:
    """See the module. `lookahead_tokens` bounds the prompts that hold pages before they run."""

    def __init__(
        self,
        state: NodeState,
        transfers: OutgoingTransfers,
        policy: PrefillPolicy,
        *,
        lookahead_tokens: int,
        local: LocalDecode,
        services: Services,
    ) -> None:
        self._state = state
        self._transfers = transfers
        self._lookahead_tokens = lookahead_tokens
        self._local = local
        self._order = PromptOrder(policy, services)
        self._jobs: dict[RequestKey, Job] = {}
        self._unproven: dict[RequestKey, Resident] = {}  # committed on top of what was read
        self._costs = ReadCosts()
        self._attempts = Attempts()

    def use(self, services: Services) -> None:
        """What its policy may ask from now on."""
        self._order.services = services

    # --- commands ---------------------------------------------------------------------------

    def command(self, peer: bytes, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """Take a `Prefill`; a repeated or late one is only acknowledged."""
        assert isinstance(message, Prefill)
        spec = message.spec
        key = (spec.request_id, spec.attempt)
        if key not in self._jobs and not self._attempts.is_closed(key):
            page_size = self._state.identity.layout.page_size
            resident = Resident(spec, peer=peer, now=now, page_size=page_size)
            self._enqueue(Job(resident, message.decode))
        ack = CommandAck(command="prefill", request_id=key[0], attempt=key[1])
        return [Reply(peer, ack)]

    def start_local(self, resident: Resident, now: float) -> None:
        """Compute a prompt for the decode guest of this node, without a transfer."""
        self._enqueue(Job(resident, None))

    def _enqueue(self, job: Job) -> None:
        self._jobs[job.resident.key] = job
        self._state.hashes(job.resident, PREFIX_PAGES * self._state.identity.layout.page_size)
        self._order.changed()

    def cancel(self, key: RequestKey, now: float) -> list[NodeAction]:
        """End this attempt and earlier ones, known or not yet known."""
        self._attempts.close(key)
        actions: list[NodeAction] = []
        for known in [k for k in self._jobs if k[0] == key[0] and k[1] <= key[1]]:
            job = self._jobs[known]
            self._state.emitter.close(job.resident.peer, known)
            actions += self._end(job, now)
        # A committed transfer outlives its job until the owner has answered.
        for known in [k for k in self._transfers.live() if k[0] == key[0] and k[1] <= key[1]]:
            actions += self._obey(self._transfers.cancel(known, now), now)
            self._settle(known, now, is_proven=False)
        return actions

    def peer_lost(self, peer: bytes, now: float) -> list[NodeAction]:
        """A gateway is silent: its prompts are of no use."""
        actions: list[NodeAction] = []
        for job in [j for j in self._jobs.values() if j.resident.peer == peer]:
            if job.phase is not Phase.CLOSING and job.decode is not None:
                self._emit_end(job, "unavailable", "the gateway was silent for too long", now)
            actions += self._end(job, now)
        return actions

    # --- the hand-off -----------------------------------------------------------------------

    def answer(self, node_id: str, message: msgspec.Struct, now: float) -> list[NodeAction]:
        """The owner of a hand-off answers."""
        assert isinstance(message, FromOwner)
        return self._obey(self._transfers.handle(node_id, message, now), now)

    def bulk_event(self, event: object, now: float) -> list[NodeAction]:
        """A copy returned."""
        assert isinstance(event, kv.WriterEvent)
        return self._obey(self._transfers.bulk_event(event, now), now)

    def node_lost(self, node: NodeRef, reason: str, now: float) -> list[NodeAction]:
        """An owner is gone: its transfers fail."""
        lost = self._transfers.peer_lost(node.node_id, now, reason, incarnation=node.incarnation)
        return self._obey(lost, now)

    def _obey(self, wanted: list[kv.OutgoingAction], now: float) -> list[NodeAction]:
        actions: list[NodeAction] = []
        for action in wanted:
            match action:
                case kv.SendToOwner(owner, message):
                    actions.append(SendToNode(owner, message))
                case kv.Granted(key, num_cached_tokens):
                    actions += self._on_granted(key, num_cached_tokens, now)
                case kv.ReadEnded(key, seconds):
                    self._on_read(key, seconds)
                case kv.Parked(key):
                    self._on_parked(key)
                case kv.SourceReleased(key):
                    self._on_released(key)
                case kv.Committed(key, num_pages):
                    self._state.handed_over(num_pages)
                    self._settle(key, now, is_proven=True)
                case kv.TransferFailed(key, code, message):
                    self._state.num_handoffs_failed += 1
                    self._settle(key, now, is_proven=False)
                    self._on_failed(key, code, message, now)
                case _:
                    actions.append(action)
        return actions

    def _on_granted(self, key: RequestKey, num_cached_tokens: int, now: float) -> list[NodeAction]:
        job = self._jobs.get(key)
        if job is None or job.phase not in (Phase.RESERVING, Phase.PARKED):
            return []
        job.granted_at = now
        job.num_owner_tokens = num_cached_tokens
        if job.phase is Phase.RESERVING:
            return self._read_or_run(job, now)
        job.phase = Phase.GRANTED
        self._order.changed()
        return []

    def _read_or_run(self, job: Job, now: float) -> list[NodeAction]:
        """It has its own pages and the owner's: get what of its prefix is cheaper to read."""
        resident = job.resident
        page_size = self._state.identity.layout.page_size
        first = resident.num_computed // page_size
        # The last known token is always computed: the next one is drawn from its logits.
        end = min(job.num_owner_tokens, resident.num_tokens - 1) // page_size
        if not self._costs.is_worth_reading(end - first, page_size):
            job.phase = Phase.RUNNABLE
            return []
        job.phase = Phase.READING
        job.num_read_pages = end - first
        own_pages = resident.pages[first:end]
        return self._obey(self._transfers.read(resident.key, first, own_pages, now), now)

    def _on_read(self, key: RequestKey, seconds: float | None) -> None:
        job = self._jobs.get(key)
        if job is None or job.phase is not Phase.READING:
            return
        job.phase = Phase.RUNNABLE
        if seconds is None:
            job.num_read_pages = 0  # computed after all
            return
        self._costs.pages_read(job.num_read_pages, seconds)
        resident = job.resident
        resident.num_computed += job.num_read_pages * self._state.identity.layout.page_size
        resident.num_cached = resident.num_computed

    def _settle(self, key: RequestKey, now: float, *, is_proven: bool) -> None:
        """The owner took or refused what was computed on top of pages read from it."""
        self._state.costs.sending_ended(key, now, is_there=is_proven)
        resident = self._unproven.pop(key, None)
        if resident is not None:
            if is_proven:
                self._state.index_pages(resident)
            self._state.give_back(resident)

    def _on_parked(self, key: RequestKey) -> None:
        job = self._jobs.get(key)
        if job is not None and job.phase is Phase.RESERVING:
            self._state.give_back(job.resident)
            job.phase = Phase.PARKED

    def _on_released(self, key: RequestKey) -> None:
        job = self._jobs.pop(key, None)
        if job is not None:
            if job.num_read_pages and self._transfers.phase(key) is OutgoingPhase.COMMITTING:
                self._unproven[key] = job.resident
            else:
                self._state.give_back(job.resident)
            self._state.emitter.finish(job.resident.peer, key)
            self._attempts.close(key)

    def _on_failed(self, key: RequestKey, code: ErrorCode, message: str, now: float) -> None:
        job = self._jobs.get(key)
        if job is not None and job.phase is not Phase.CLOSING:
            self._emit_end(job, code, message, now)
            job.phase = Phase.CLOSING

    # --- running ----------------------------------------------------------------------------

    def tick(self, now: float) -> list[NodeAction]:
        """Start prompts while pages and the look-ahead last; resend what is due."""
        actions = self._obey(self._transfers.tick(now), now)
        num_tokens = num_tokens_with_pages(self._jobs.values())
        for job in to_bring_back(self._jobs.values()):
            if not self._claim_pages(job):
                break
            num_tokens += job.num_left
            actions += self._start(job, now)
        granted = self._in_order(Phase.GRANTED, now)
        for job in granted:
            if not self._claim_pages(job):
                return actions + self._give_up_stuck(granted, now)
            num_tokens += job.num_left
            actions += self._start(job, now)
        queued = self._in_order(Phase.QUEUED, now) if num_tokens < self._lookahead_tokens else []
        for job in [j for j in queued if not j.resident.num_preemptions]:
            if num_tokens >= self._lookahead_tokens or not self._claim_pages(job):
                break
            num_tokens += job.num_left
            actions += self._start(job, now)
        return actions

    def _give_up_stuck(self, granted: list[Job], now: float) -> list[NodeAction]:
        """Two nodes that prefill for each other could hold each other's last pages for ever."""
        actions: list[NodeAction] = []
        for job in granted:
            if now - (job.granted_at or now) > GRANTED_PATIENCE_S:
                text = "no pages became free on the prefill node for a prompt with room to decode"
                self._emit_end(job, "overloaded", text, now)
                actions += self._end(job, now)
        return actions

    def _in_order(self, phase: Phase, now: float) -> list[Job]:
        return self._order.of(phase, self._jobs.values(), now)

    def _claim_pages(self, job: Job) -> bool:
        return self._state.take_prefix(job.resident, grows=job.decode is None)

    def _start(self, job: Job, now: float) -> list[NodeAction]:
        resident = job.resident
        if job.phase is Phase.GRANTED:
            return self._read_or_run(job, now)
        if job.decode is None:
            job.phase = Phase.RUNNABLE
            return []
        job.phase = Phase.RESERVING
        return self._obey(
            self._transfers.start(
                resident.key,
                job.decode,
                num_tokens=resident.num_tokens,
                max_total_tokens=resident.max_total_tokens,
                sequence=resident.spec.sequence,
                deadline_s=resident.spec.deadline_s,
                page_hashes=b"".join(self._state.hashes(resident, resident.num_tokens)),
                gateway=resident.peer,
                now=now,
            ),
            now,
        )

    def views(self, now: float) -> tuple[SequenceView, ...]:
        """Prompts that may run now, in the policy's order."""
        return tuple(job.view() for job in self._in_order(Phase.RUNNABLE, now))

    def step(self, key: RequestKey, num_tokens: int, now: float) -> SequenceStep:
        """The next chunk of a prompt."""
        job = self._jobs[key]
        if job.started_at is None:
            job.started_at = now
            job.resident.is_begun = True
            self._order.changed()
        self._costs.step_began(num_tokens, now)
        return job.resident.step(num_tokens, self._state.identity.eos_token_ids)

    def computed(
        self, key: RequestKey, num_tokens: int, sampled: Sampled | None, now: float
    ) -> list[NodeAction]:
        """A chunk is in the pages: ship what is complete; at the prompt's end, hand over."""
        job = self._jobs[key]
        resident = job.resident
        resident.num_computed += num_tokens
        self._costs.step_ended(now)
        if sampled is not None and sampled.error is not None:
            self._state.distrust(resident)
            self._emit_end(job, "internal", sampled.error, now)
            return self._end(job, now)
        if not job.num_read_pages:
            self._state.index_pages(resident)
        if sampled is not None:
            return self._finish(job, sampled, now)
        if job.decode is None:
            return []
        num_full = resident.num_computed // self._state.identity.layout.page_size
        job.num_shipped_pages = num_full
        return self._obey(self._transfers.pages_computed(key, resident.pages[:num_full], now), now)

    def _finish(self, job: Job, sampled: Sampled, now: float) -> list[NodeAction]:
        resident = job.resident
        token = job.first_token(sampled, self._state.identity.node_id, now)
        self._order.ended()
        if job.decode is None:
            job.phase = Phase.CLOSING
            del self._jobs[resident.key]
            self._attempts.close(resident.key)
            self._local.local_done(resident, token, now)
            return []
        index = resident.num_output_tokens
        emitter = self._state.emitter
        emitter.prefilled(resident.peer, resident.key, index, token.report)
        emitter.token(resident.peer, resident.key, index, token.token_id, token.logprobs)
        resident.append(token.token_id)
        reason = finish_reason(resident, self._state.identity.eos_token_ids)
        if reason is not None:
            emitter.end(resident.peer, job.ended(reason, token.report))
            return self._end(job, now)
        job.phase = Phase.SENDING
        num_bytes = job.num_bytes_left(self._state.identity.layout)
        self._state.costs.sending_began(resident.key, num_bytes, now)
        return self._obey(self._transfers.finish(resident.key, resident.pages, token, now), now)

    # --- ending -----------------------------------------------------------------------------

    def _emit_end(self, job: Job, code: ErrorCode, message: str, now: float) -> None:
        resident = job.resident
        if job.decode is None:
            self._local.local_failed(resident.key, code, message, now)
        else:
            self._state.emitter.end(resident.peer, job.failed(code, message))

    def _end(self, job: Job, now: float) -> list[NodeAction]:
        """Stop a job in any phase; its pages go when no copy reads them."""
        key = job.resident.key
        self._attempts.close(key)
        if job.phase is Phase.CLOSING:
            return []
        is_known_to_owner = job.phase is not Phase.QUEUED and job.decode is not None
        job.phase = Phase.CLOSING
        self._order.ended()
        if is_known_to_owner:
            return self._obey(self._transfers.cancel(key, now), now)
        self._state.give_back(job.resident)
        del self._jobs[key]
        return []

    def has(self, key: RequestKey) -> bool:
        """Whether this prompt waits, runs, or is on its way to its decode node."""
        return key in self._jobs or key in self._transfers.live()

    def knows(self, key: RequestKey) -> bool:
        """Whether its `Prefill` came, or it is over."""
        job = self._jobs.get(key)
        return (job is not None and job.decode is not None) or self._attempts.is_closed(key)

    @property
    def num_requests(self) -> int:
        """Jobs and transfers not yet over."""
        transfers = self._transfers
        return max(len(self._jobs), len(transfers.live()), transfers.num_unacknowledged)

    @property
    def num_sending(self) -> int:
        """Computed prompts whose pages are not all at the decode node yet."""
        return sum(job.phase is Phase.SENDING for job in self._jobs.values())

    def work(self) -> PrefillWork:
        """Prompts not yet computed, and what all of them hold."""
        return work_of(self._jobs.values())
