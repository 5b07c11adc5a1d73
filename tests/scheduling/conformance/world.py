"""A node in memory for batch policies: pages, time from a cost model, requests that end.

Strict where the real node is lenient: whatever `check_plan` would cut, or a page would be missing
for, is an assertion here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import structs

from node.plan_check import check_plan
from scheduling.batch.composing import is_reserved, num_pages_at_end, num_pages_to_grow
from scheduling.costs import step_s, step_shape
from scheduling.views import (
    BatchPolicy,
    NodeView,
    RequestKey,
    SequenceView,
    Services,
    StepPlan,
)
from tandem.messages.common import LengthPrediction, NodeCosts

# A step of 2 ms, 20 us for a prompt token, 50 us for a row: a small accelerator.
COSTS = NodeCosts(
    step_s=2e-3,
    prefill_token_s=2e-5,
    prefill_context_s=1e-9,
    decode_row_s=5e-5,
    decode_context_s=1e-8,
    num_steps=100,
)
MAX_STEPS = 50_000

State = Literal["queued", "prefill", "waiting", "running", "swapped", "done"]


@dataclass(frozen=True)
class Arrival:
    """A request to come: its hidden answer length, and what the node is told."""

    at: float
    num_prompt: int
    num_answer: int
    max_answer: int = 64
    priority: int = 0
    tenant: str = "default"
    weight: float = 1.0
    ttft_s: float = math.inf
    tpot_s: float = math.inf
    prediction: LengthPrediction | None = None


def key_of(n: int) -> RequestKey:
    return (n.to_bytes(16, "big"), 1)


@dataclass
class Job:
    """A request that has come."""

    arrival: Arrival
    view: SequenceView
    state: State = "queued"
    first_token_at: float | None = None
    ended_at: float = math.inf
    token_times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Shape:
    """The node. promise: full growth is set aside with a prompt's pages, as by default."""

    num_pages: int = 64
    page_size: int = 16
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 64
    num_watermark_pages: int = 0
    promise: bool = True
    lookahead_tokens: int = 200
    keeps_watermark: bool = True  # assert that no admission goes below


class World:
    """See the module."""

    def __init__(
        self,
        policy: BatchPolicy,
        arrivals: Sequence[Arrival],
        shape: Shape = Shape(),
        costs: NodeCosts = COSTS,
    ) -> None:
        self.policy = policy
        self.shape = shape
        self.services = Services(costs)
        self.now = 0.0
        self.num_free = shape.num_pages
        self.jobs: dict[RequestKey, Job] = {}
        self.live: dict[RequestKey, Job] = {}  # those that have not ended
        self.todo = sorted(enumerate(arrivals), key=lambda pair: (pair[1].at, pair[0]))[::-1]
        self.plans: list[StepPlan] = []
        self.views: list[NodeView] = []
        self.num_preemptions = 0
        self.longest_idle_s = 0.0
        self.num_idle_with_work = 0

    # --- what the policy sees ---------------------------------------------------------------

    def arrive(self) -> None:
        while self.todo and self.todo[-1][1].at <= self.now + 1e-12:
            n, arrival = self.todo.pop()
            key = key_of(n)
            self.jobs[key] = self.live[key] = Job(
                arrival,
                SequenceView(
                    key=key,
                    age=n,
                    arrived_at=arrival.at,
                    priority=arrival.priority,
                    tenant=arrival.tenant,
                    num_prompt_tokens=arrival.num_prompt,
                    num_tokens=arrival.num_prompt,
                    num_computed=0,
                    max_total_tokens=arrival.num_prompt + arrival.max_answer,
                    ttft_s=arrival.ttft_s,
                    tpot_s=arrival.tpot_s,
                    tenant_weight=arrival.weight,
                    prediction=arrival.prediction,
                ),
            )

    def start_prompts(self) -> None:
        """Prompts take their pages, oldest first, while pages and the look-ahead last."""
        page_size = self.shape.page_size
        num_tokens = sum(j.view.num_left for j in self.live.values() if j.state == "prefill")
        queued = [j for j in self.live.values() if j.state == "queued"]
        for job in sorted(queued, key=lambda j: (-j.view.priority, j.view.age)):
            need = -(-job.view.num_tokens // page_size)
            promised = num_pages_at_end(job.view, page_size) - need if self.shape.promise else 0
            busy = any(j.state == "running" for j in self.live.values())
            kept = self.shape.num_watermark_pages if busy else 0
            if num_tokens >= self.shape.lookahead_tokens or need + promised + kept > self.num_free:
                return
            self.num_free -= need + promised
            job.view = structs.replace(job.view, num_pages=need, num_promised=promised)
            job.state = "prefill"
            num_tokens += job.view.num_left

    def of(self, state: State) -> tuple[SequenceView, ...]:
        return tuple(j.view for j in self.live.values() if j.state == state)

    def look(self) -> NodeView:
        prompts = sorted(self.of("prefill"), key=lambda s: (not s.is_begun, -s.priority, s.age))
        return NodeView(
            now=self.now,
            max_num_seqs=self.shape.max_num_seqs,
            max_num_batched_tokens=self.shape.max_num_batched_tokens,
            prefill_weight=1.0,
            decode_weight=1.0,
            prefill=tuple(prompts),
            waiting=self.of("waiting"),
            running=self.of("running"),
            swapped=self.of("swapped"),
            page_size=self.shape.page_size,
            num_pages=self.shape.num_pages,
            num_free_pages=self.num_free,
            num_watermark_pages=self.shape.num_watermark_pages,
        )

    # --- one step ---------------------------------------------------------------------------

    def run(self) -> "World":
        for _ in range(MAX_STEPS):
            if not (self.todo or self.live):
                assert self.num_free == self.shape.num_pages
                return self
            self.step()
        raise AssertionError(f"{MAX_STEPS} steps and not drained: {self.look()}")

    def step(self) -> None:
        self.arrive()
        self.start_prompts()
        view = self.look()
        if not (view.prefill or view.waiting or view.running or view.swapped):
            self.idle(None)
            return
        plan = self.policy.plan(view, self.services)
        assert check_plan(plan, view).num_dropped == 0, (plan, view)
        self.plans.append(plan)
        self.views.append(view)
        self.preempt(plan)
        self.admit(plan, view)
        if plan.decode or plan.prefill:
            self.compute(plan)
        elif plan.preempt or plan.admit:
            assert plan.wake_at is not None, "a step that moves requests asks for the next"
        else:
            self.num_idle_with_work += 1
            self.idle(plan.wake_at)
        held = sum(j.view.num_pages + j.view.num_promised for j in self.live.values())
        assert held + self.num_free == self.shape.num_pages

    def idle(self, wake_at: float | None) -> None:
        moments = [at for at in (wake_at,) if at is not None]
        moments += [self.todo[-1][1].at] if self.todo else []
        later = [at for at in moments if at > self.now]
        assert later, f"nothing will ever happen again: {self.look()}"
        if wake_at is not None and self.live:
            self.longest_idle_s = max(self.longest_idle_s, min(later) - self.now)
        self.now = min(later)

    def preempt(self, plan: StepPlan) -> None:
        for key, mode in plan.preempt:
            job = self.jobs[key]
            assert job.state == "running"
            assert mode == "auto"
            self.num_preemptions += 1
            self.num_free += job.view.num_pages + job.view.num_promised
            is_swap = self.num_preemptions % 2 == 0
            num_computed = job.view.num_computed if is_swap else 0
            job.state = "swapped" if is_swap else "queued"
            job.view = structs.replace(
                job.view,
                num_pages=0,
                num_promised=0,
                num_computed=num_computed,
                num_preemptions=job.view.num_preemptions + 1,
                is_begun=False,
            )

    def admit(self, plan: StepPlan, view: NodeView) -> None:
        is_free_of_watermark = True
        for key in plan.admit:
            job = self.jobs[key]
            need = num_pages_to_grow(job.view, self.shape.page_size)
            if job.state == "swapped":
                need = -(-job.view.num_tokens // self.shape.page_size)
                assert need <= self.num_free, "no pages to come back to"
                self.num_free -= need
                job.view = structs.replace(job.view, num_pages=need)
            if need or not is_reserved(job.view, self.shape.page_size):
                is_free_of_watermark = False
            job.state = "running"
        for key in plan.decode:
            self.grow(self.jobs[key])
        if self.shape.keeps_watermark and view.running and not is_free_of_watermark:
            assert self.num_free >= self.shape.num_watermark_pages

    def grow(self, job: Job) -> None:
        missing = -(-job.view.num_tokens // self.shape.page_size) - job.view.num_pages
        if missing <= 0:
            return
        promised = min(missing, job.view.num_promised)
        self.num_free -= missing - promised
        assert self.num_free >= 0, "a row without a page"
        job.view = structs.replace(
            job.view,
            num_pages=job.view.num_pages + missing,
            num_promised=job.view.num_promised - promised,
        )

    def compute(self, plan: StepPlan) -> None:
        chunks = [(n, self.jobs[key].view.num_computed) for key, n in plan.prefill]
        contexts = [self.jobs[key].view.num_tokens for key in plan.decode]
        shape = step_shape(chunks, [*contexts, *plan.padding_contexts])
        self.now += step_s(self.services.costs, shape)
        for key in plan.decode:
            self.advance(self.jobs[key], 1)
        for key, num_tokens in plan.prefill:
            self.advance(self.jobs[key], num_tokens)

    def advance(self, job: Job, num_tokens: int) -> None:
        num_computed = job.view.num_computed + num_tokens
        job.view = structs.replace(job.view, num_computed=num_computed, is_begun=True)
        if num_computed < job.view.num_tokens:
            return
        job.view = structs.replace(job.view, num_tokens=num_computed + 1, last_token_at=self.now)
        job.token_times.append(self.now)
        if job.first_token_at is None:
            job.first_token_at = self.now
        if job.state == "prefill":
            job.state = "waiting"
        if job.view.num_output_tokens >= job.arrival.num_answer:
            self.num_free += job.view.num_pages + job.view.num_promised
            job.view = structs.replace(job.view, num_pages=0, num_promised=0)
            job.state, job.ended_at = "done", self.now
            del self.live[job.view.key]

    # --- what came of it --------------------------------------------------------------------

    @property
    def mean_latency_s(self) -> float:
        jobs = self.jobs.values()
        return sum(j.ended_at - j.arrival.at for j in jobs) / len(jobs)
