"""Evaluations on a prefill node: prompts that are computed for numbers, not for tokens. Pure.

One takes its pages when its turn comes, waits for nothing else while it holds them, and gives them
back with its answer. That is kept until its gateway says that it is over: a command that comes
again is answered with what there is.
"""

from bisect import insort
from dataclasses import dataclass, field

import msgspec

from node.actions import NodeAction, Reply
from node.guest import PrefillWork
from node.resident import Attempts, Resident
from node.runner import ChunkValues, Sampled, SequenceStep
from node.state import NodeState
from prefill_node.questions import (
    answer_of,
    as_request,
    explain_invalid,
    failed,
    num_cacheable,
    question_of,
)
from scheduling.views import RequestKey, SequenceView
from tandem.messages.evaluation import (
    EvaluationCommand,
    EvaluationDone,
    EvaluationForgotten,
    EvaluationOver,
    EvaluationSpec,
    EvaluationTaken,
)

MAX_KEPT_BYTES = 64 << 20  # of answers; a gateway that misses one asks for it anew
KEPT_S = 60.0  # gateways ask every 2 s, and give a silent node up after 10


@dataclass(slots=True)
class _Job:
    """One evaluation; it waits, without pages, until it is `is_running`."""

    spec: EvaluationSpec
    resident: Resident
    is_running: bool = False
    started_at: float | None = None
    parts: list[ChunkValues] = field(default_factory=list)

    @property
    def turn(self) -> tuple[int, int, RequestKey]:
        """Sorts by whose turn comes first: higher priority, then age."""
        return (-self.spec.priority, self.spec.sequence, self.resident.key)

    @property
    def num_left(self) -> int:
        return self.resident.num_tokens - self.resident.num_computed


@dataclass(frozen=True, slots=True)
class _Kept:
    peer: bytes
    done: EvaluationDone
    at: float

    @property
    def num_bytes(self) -> int:
        done = self.done
        num_values = len(done.logprobs) + len(done.top_logprobs) + 4 * len(done.top_ids)
        return len(done.vector) + num_values


class EvaluationGuest:
    """See the module. `lookahead_tokens` bounds the prompts that hold pages at once."""

    def __init__(self, state: NodeState, *, lookahead_tokens: int) -> None:
        self._state = state
        self._lookahead_tokens = lookahead_tokens
        self._jobs: dict[RequestKey, _Job] = {}
        self._queue: list[_Job] = []  # those that wait, in turn
        self._kept: dict[RequestKey, _Kept] = {}
        self._num_kept_bytes = 0
        self._attempts = Attempts()

    # --- commands ---------------------------------------------------------------------------

    def evaluate(
        self, peer: bytes, message: EvaluationCommand, now: float, *, is_open: bool
    ) -> list[NodeAction]:
        """Take an evaluation, say what there is of one, or forget it."""
        if isinstance(message, EvaluationOver):
            self._forget(message.request_id, message.attempt)
            key = (message.request_id, message.attempt)
            return [Reply(peer, EvaluationForgotten(request_id=key[0], attempt=key[1]))]
        spec = message.spec
        key = (spec.request_id, spec.attempt)
        if key in self._kept:
            return [Reply(peer, self._kept[key].done)]
        if key not in self._jobs:
            refused = self._refuse(spec, is_open=is_open)
            if refused is not None:
                return [Reply(peer, refused)]
            self._forget(spec.request_id, spec.attempt - 1)
            self._enqueue(peer, spec, now)
        return [Reply(peer, EvaluationTaken(request_id=key[0], attempt=key[1]))]

    def _refuse(self, spec: EvaluationSpec, *, is_open: bool) -> EvaluationDone | None:
        problem = explain_invalid(spec, self._state.identity)
        if problem is not None:
            return failed(spec, "invalid_request", problem)
        num_pages = -(-len(spec.prompt_ids) // self._state.identity.layout.page_size)
        if num_pages > self._state.ledger.num_pages:
            text = f"{num_pages} KV pages are needed, and there are {self._state.ledger.num_pages}"
            return failed(spec, "too_few_pages", text)
        if self._attempts.is_closed((spec.request_id, spec.attempt)):
            return failed(spec, "unavailable", "its answer is not kept any more")
        return None if is_open else failed(spec, "not_serving", "the prefill role is closed here")

    def _enqueue(self, peer: bytes, spec: EvaluationSpec, now: float) -> None:
        page_size = self._state.identity.layout.page_size
        resident = Resident(as_request(spec), peer=peer, now=now, page_size=page_size)
        job = self._jobs[resident.key] = _Job(spec, resident)
        insort(self._queue, job, key=lambda each: each.turn)

    def _forget(self, request_id: bytes, attempt: int) -> None:
        """Nobody wants this attempt or an earlier one; one that never came will not start."""
        if attempt < 1:
            return
        self._attempts.close((request_id, attempt))
        for key in [k for k in (*self._jobs, *self._kept) if k[0] == request_id]:
            if key[1] <= attempt:
                self._drop(key)

    def _drop(self, key: RequestKey) -> None:
        job = self._jobs.pop(key, None)
        if job is not None and job.is_running:
            self._state.give_back(job.resident)
        elif job is not None:
            self._queue.remove(job)
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._num_kept_bytes -= kept.num_bytes

    def peer_lost(self, peer: bytes) -> None:
        """A gateway is silent: its evaluations are of no use."""
        for key in [k for k, job in self._jobs.items() if job.resident.peer == peer]:
            self._drop(key)
        for key in [k for k, kept in self._kept.items() if kept.peer == peer]:
            self._drop(key)

    # --- running ----------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Start those whose turn it is while pages and the look-ahead last."""
        for key in [k for k, kept in self._kept.items() if now - kept.at > KEPT_S]:
            self._drop(key)
        if not self._queue:
            return
        num_tokens = sum(job.num_left for job in self._jobs.values() if job.is_running)
        while self._queue and num_tokens < self._lookahead_tokens:
            job = self._queue[0]
            resident = job.resident
            hashes = self._state.hashes(resident, num_cacheable(job.spec))
            if not self._state.claim(resident, hashes, grows=False):
                return
            resident.num_computed = resident.num_matched
            self._state.num_cached_tokens += resident.num_matched
            job.is_running = True
            num_tokens += job.num_left
            del self._queue[0]

    def views(self) -> tuple[SequenceView, ...]:
        """Those that may run now, in turn."""
        running = [job for job in self._jobs.values() if job.is_running]
        return tuple(job.resident.view() for job in sorted(running, key=lambda each: each.turn))

    def step(self, key: RequestKey, num_tokens: int, now: float) -> SequenceStep:
        """The next chunk, and what is asked about it."""
        job = self._jobs[key]
        if job.started_at is None:
            job.started_at = now
            job.resident.is_begun = True
        step = job.resident.step(num_tokens, ())
        question = question_of(job.spec, step.start, step.start + num_tokens)
        return msgspec.structs.replace(step, sample=None, question=question)

    def computed(
        self, key: RequestKey, num_tokens: int, sampled: Sampled | None, now: float
    ) -> list[NodeAction]:
        """A chunk is computed; after the last one the answer goes out and the pages are free."""
        job = self._jobs[key]
        resident = job.resident
        resident.num_computed += num_tokens
        if sampled is not None and sampled.error is not None:
            self._state.distrust(resident)
            return self._finish(job, failed(job.spec, "internal", sampled.error), now)
        if sampled is not None and sampled.values is not None:
            job.parts.append(sampled.values)
        self._state.index_pages(resident)
        if job.num_left:
            return []
        return self._finish(job, answer_of(job.spec, job.parts), now)

    def _finish(self, job: _Job, answer: EvaluationDone, now: float) -> list[NodeAction]:
        resident = job.resident
        assert job.started_at is not None, "a step was computed"
        done = msgspec.structs.replace(
            answer,
            num_cached_tokens=resident.num_cached,
            started_after_s=max(0.0, job.started_at - resident.arrived_at),
            ended_after_s=max(0.0, now - resident.arrived_at),
        )
        self._drop(resident.key)
        self._attempts.close(resident.key)
        kept = self._kept[resident.key] = _Kept(resident.peer, done, now)
        self._num_kept_bytes += kept.num_bytes
        while self._num_kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        return [Reply(resident.peer, done)]

    # --- what there is ----------------------------------------------------------------------

    def has(self, key: RequestKey) -> bool:
        """Whether this one waits or runs here."""
        return key in self._jobs

    @property
    def num_requests(self) -> int:
        """Evaluations, and answers that nobody has confirmed."""
        return len(self._jobs) + len(self._kept)

    def work(self) -> PrefillWork:
        """What is to be computed, and what it holds."""
        jobs = self._jobs.values()
        return PrefillWork(
            num_prompts=len(jobs),
            num_tokens=sum(job.num_left for job in jobs),
            num_held_tokens=sum(job.resident.num_computed for job in jobs),
            num_held_pages=sum(job.resident.num_pages for job in jobs),
        )
