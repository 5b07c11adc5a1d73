"""One simulated node: the production policies plan its steps, a profile says how long they take.

It follows `node.core` and the two guests: prompts claim pages within a look-ahead, prefill and
decode share each step, rows grow into promised pages. Steps that only decode, under a policy that
would say the same again, are run as one (`steps.decode_run`), until something happens here.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.plan_check import check_plan
from scheduling.costs import StepShape, num_pairs
from scheduling.views import BatchPolicy, NodeView, RequestKey, Services, StepPlan
from simulator.performance.meters import Meters
from simulator.performance.order import Order
from simulator.performance.pages import BlockPages
from simulator.performance.profiles import Profile
from simulator.performance.requests import Phase, Resident
from simulator.performance.steps import Noise, Run, decode_run, single_step

MAX_RUN_STEPS = 4096
REPLAN_S = 1e-3  # a policy that asks to be asked again at once, and did nothing, waits this long


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What an operator would set on a node. `is_steady`: see `SimNode`."""

    profile: Profile
    prefill_weight: float
    decode_weight: float
    max_num_seqs: int
    max_num_batched_tokens: int
    lookahead_tokens: int
    block_tokens: int
    tpot_s: float
    is_steady: bool


class World(Protocol):
    """What a node asks of the rest of the simulation."""

    meters: Meters

    def at(self, time: float, node: int, step: int) -> None:
        """Call `step_ended(step)` or `woken(step)` of a node then."""

    def reserve(self, source: int, resident: Resident, now: float) -> None:
        """A prompt has its own pages: ask its decode node for room."""

    def computed(self, source: int, resident: Resident, now: float) -> None:
        """A prompt for another node is computed: its first token is known, its pages go there."""

    def pages_freed(self, node: int, now: float) -> None:
        """A node has more room than before."""

    def ended(self, node: int, resident: Resident, now: float) -> None:
        """The last token of a request is known; its pages were given back."""

    def prompt_computed(self, node: int) -> None:
        """One prompt less is to be computed there."""

    def todo_changed(self, node: int, num_tokens: int) -> None:
        """So many more prompt tokens are to be computed there."""


@dataclass(slots=True)
class _Step:
    """What runs: decode rows, and chunks of prompts."""

    number: int
    run: Run
    rows: list[Resident]
    chunks: list[tuple[Resident, int]]
    num_held: int
    num_padding: int


@dataclass(slots=True)
class SimNode:
    """See the module. `step` numbers plans, so that what was scheduled for an old one is ignored.

    With `settings.is_steady` the policy is one that, with nothing to admit, decodes all rows in
    every step; `tests/performance` runs each of them both ways and compares.
    """

    index: int
    name: str
    settings: NodeSettings
    policy: BatchPolicy
    order: Order
    services: Services
    pages: BlockPages
    noise: Noise
    world: World
    queued: dict[RequestKey, Resident] = field(default_factory=dict)
    granted: dict[RequestKey, Resident] = field(default_factory=dict)
    reserving: dict[RequestKey, Resident] = field(default_factory=dict)
    runnable: dict[RequestKey, Resident] = field(default_factory=dict)
    waiting: dict[RequestKey, Resident] = field(default_factory=dict)
    running: dict[RequestKey, Resident] = field(default_factory=dict)
    swapped: dict[RequestKey, Resident] = field(default_factory=dict)
    num_illegal: int = 0
    _step: _Step | None = None
    _number: int = 0
    _is_planning: bool = False
    _swap_s: float = 0.0

    # --- events -----------------------------------------------------------------------------

    def poke(self, now: float) -> None:
        """Something changed here: plan now, or after the step that is being computed."""
        if self._is_planning:
            return
        if self._step is None:
            self._plan(now)
            return
        run = self._step.run
        if run.num_steps > 1:
            num_steps = bisect_left(run.ends, now) + 1
            if num_steps < run.num_steps:
                run.num_steps = num_steps
                self._number += 1
                self._step.number = self._number
                self.world.at(run.ends_at, self.index, self._number)

    def enqueue(self, resident: Resident, now: float) -> None:
        """A prompt to compute."""
        self.set_phase(resident, Phase.QUEUED)
        self.poke(now)

    def set_phase(self, resident: Resident, phase: Phase) -> None:
        """Move a request between the queues of this node."""
        self._queue(resident.phase).pop(resident.key, None)
        resident.phase = phase
        self._queue(phase)[resident.key] = resident
        self.order.changed()

    def _queue(self, phase: Phase) -> dict[RequestKey, Resident]:
        match phase:
            case Phase.QUEUED:
                return self.queued
            case Phase.GRANTED:
                return self.granted
            case Phase.RESERVING:
                return self.reserving
            case Phase.RUNNABLE:
                return self.runnable
            case Phase.WAITING:
                return self.waiting
            case Phase.RUNNING:
                return self.running
            case Phase.SWAPPED:
                return self.swapped
            case _:
                return {}

    def due(self, number: int, now: float) -> None:
        """What was scheduled for plan `number`: the end of its steps, or its wake-up."""
        if number != self._number:
            return
        step, self._step = self._step, None
        if step is not None:
            self._is_planning = True
            self._apply(step, now)
            self._is_planning = False
        self._plan(now)

    def todo_changed(self, resident: Resident) -> None:
        """What is left of a prompt, now that more is known, or done."""
        self.world.todo_changed(self.index, resident.num_left - resident.num_todo)
        resident.num_todo = resident.num_left
        resident.changed()

    # --- pages ------------------------------------------------------------------------------

    def num_pages(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-num_tokens // self.settings.profile.page_size)

    def cached_blocks(self, resident: Resident) -> Sequence[int]:
        """The leading blocks of its prompt that are here; the last known token is never of them."""
        blocks = resident.request.blocks
        if not blocks:
            return blocks
        limit = (resident.num_tokens - 1) // self.settings.block_tokens
        return blocks[: min(limit, self.pages.match(blocks))]

    def claim(self, resident: Resident, *, with_growth: bool) -> bool:
        """Give a request pages for its known tokens, cached ones first; False where too few."""
        blocks = self.cached_blocks(resident)
        num_pages = self.num_pages(resident.num_tokens)
        num_fresh = num_pages - len(blocks) * self.pages.block_pages
        final = self.num_pages(max(resident.num_tokens, resident.request.num_final_tokens - 1))
        num_promised = final - num_pages if with_growth else 0
        if not self.pages.claim(blocks, num_fresh, num_promised):
            return False
        resident.blocks = list(blocks)
        resident.num_own = num_fresh
        resident.num_promised = num_promised
        resident.changed()
        return True

    def publish(self, resident: Resident) -> None:
        """Its computed blocks enter the cache."""
        blocks = resident.request.blocks
        if blocks:
            num_full = min(len(blocks), resident.num_computed // self.settings.block_tokens)
            new = self.pages.publish(blocks[len(resident.blocks) : num_full])
            resident.blocks += new
            resident.num_own -= len(new) * self.pages.block_pages

    def give_back(self, resident: Resident, now: float) -> None:
        """Release its pages and promises; blocks stay cached."""
        self.pages.release(resident.blocks, resident.num_own, resident.num_promised)
        resident.blocks, resident.num_own, resident.num_promised = [], 0, 0
        resident.changed()
        self.world.pages_freed(self.index, now)

    # --- planning ---------------------------------------------------------------------------

    def _plan(self, now: float) -> None:
        self._is_planning = True
        self._number += 1
        if self.queued or self.granted:
            self._start_prompts(now)
        if self.runnable or self.waiting or self.running or self.swapped:
            view = self._view(now)
            checked = check_plan(self.policy.plan(view, self.services), view)
            self.num_illegal += checked.num_dropped > 0
            self._execute(checked.plan, now)
        self._is_planning = False

    def _view(self, now: float) -> NodeView:
        settings, size = self.settings, self.pages.block_pages
        return NodeView(
            now=now,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            prefill_weight=settings.prefill_weight,
            decode_weight=settings.decode_weight,
            prefill=tuple(r.view(size) for r in self._in_order(Phase.RUNNABLE, now)),
            waiting=tuple(r.view(size) for r in self.waiting.values()),
            running=tuple(r.view(size) for r in self.running.values()),
            swapped=tuple(r.view(size) for r in self.swapped.values()),
            page_size=settings.profile.page_size,
            num_pages=self.pages.num_pages,
            num_free_pages=self.pages.num_available,
        )

    def _in_order(self, phase: Phase, now: float) -> list[Resident]:
        if not self._queue(phase):
            return []
        prompts = (self.queued, self.granted, self.reserving, self.runnable)
        return self.order.of(phase, prompts, now)

    def _start_prompts(self, now: float) -> None:
        """As `prefill_node.guest.tick`: pages for prompts, within the look-ahead."""
        num_tokens = sum(r.num_left for r in self.reserving.values())
        num_tokens += sum(r.num_left for r in self.runnable.values())
        for resident in self._in_order(Phase.GRANTED, now):
            if not self._start(resident, now):
                return
            num_tokens += resident.num_left
        if num_tokens >= self.settings.lookahead_tokens:
            return
        for resident in self._in_order(Phase.QUEUED, now):
            if num_tokens >= self.settings.lookahead_tokens or not self._start(resident, now):
                return
            num_tokens += resident.num_left

    def _start(self, resident: Resident, now: float) -> bool:
        is_local = resident.decode is None
        is_granted = resident.phase is Phase.GRANTED
        if not self.claim(resident, with_growth=is_local):
            return False
        resident.num_computed = len(resident.blocks) * self.settings.block_tokens
        resident.request.num_cached = resident.num_computed
        self.todo_changed(resident)
        self.set_phase(resident, Phase.RUNNABLE if is_local or is_granted else Phase.RESERVING)
        if not is_local and not is_granted:
            self.world.reserve(self.index, resident, now)
        return True

    def _execute(self, plan: StepPlan, now: float) -> None:
        for key, mode in plan.preempt:
            self._preempt(self.running[key], mode == "swap", now)
        for key in plan.admit:
            self._admit(key)
        rows = [self.running[key] for key in plan.decode if key in self.running]
        chunks = [(self.runnable[key], num) for key, num in plan.prefill]
        for resident, _ in chunks:
            self._begin(resident, now)
        if not rows and not chunks:
            self._wake_at(plan, now)
            return
        run = self._make_run(rows, chunks, plan.padding_contexts, now)
        num_held = len(self.running) - len(rows)
        self._step = _Step(self._number, run, rows, chunks, num_held, len(plan.padding_contexts))
        self.world.at(run.ends_at, self.index, self._number)

    def _begin(self, resident: Resident, now: float) -> None:
        if resident.started_at is None:
            resident.started_at = now
            resident.changed()
            self.order.changed()

    def _wake_at(self, plan: StepPlan, now: float) -> None:
        if plan.wake_at is not None:
            has_moved = plan.preempt or plan.admit
            earliest = now if has_moved else now + REPLAN_S
            self.world.at(max(earliest, plan.wake_at), self.index, self._number)

    def _make_run(
        self,
        rows: list[Resident],
        chunks: list[tuple[Resident, int]],
        padding: Sequence[int],
        now: float,
    ) -> Run:
        profile = self.settings.profile
        num_context = sum(r.num_tokens for r in rows)
        if not chunks and not padding and self._swap_s == 0 and self._is_alike(rows):
            num_steps = min(r.num_left_to_draw for r in rows)
            num_steps = min(num_steps, MAX_RUN_STEPS)
            return decode_run(profile, len(rows), num_context, num_steps, now, self.noise)
        shape = StepShape(
            num_prefill_tokens=sum(n for _, n in chunks),
            num_prefill_pairs=sum(num_pairs(n, r.num_computed) for r, n in chunks),
            num_decode_rows=len(rows) + len(padding),
            num_decode_tokens=num_context + sum(padding),
        )
        prefix = sum(r.num_computed for r, _ in chunks)
        extra_s, self._swap_s = self._swap_s, 0.0
        return single_step(profile, shape, prefix, extra_s, now, self.noise)

    def _is_alike(self, rows: list[Resident]) -> bool:
        """Whether the next steps would be planned like this one, until something happens here."""
        has_all = len(rows) == len(self.running)
        is_full = not self.waiting or len(rows) == self.settings.max_num_seqs
        has_prompts = self.runnable or self.queued or self.granted
        return (
            self.settings.is_steady and has_all and is_full and not has_prompts and not self.swapped
        )

    # --- rows -------------------------------------------------------------------------------

    def _admit(self, key: RequestKey) -> None:
        if key in self.swapped:
            resident = self.swapped[key]
            if not self.claim(resident, with_growth=True):
                return
            self._swap_s += self._swap_seconds(resident)
            self.set_phase(resident, Phase.RUNNING)
        else:
            self.set_phase(self.waiting[key], Phase.RUNNING)

    def _preempt(self, resident: Resident, is_swap: bool, now: float) -> None:
        """Take its pages. Their tokens are computed again, or come back from host memory."""
        request = resident.request
        request.num_preemptions += 1
        if is_swap and self.settings.profile.swap_bytes_per_s > 0:
            self._swap_s += self._swap_seconds(resident)
            self.set_phase(resident, Phase.SWAPPED)
        else:
            self.world.meters.num_wasted_tokens += resident.num_computed
            resident.num_computed = 0
            resident.decode = None
            resident.started_at = None
            self.todo_changed(resident)
            self.set_phase(resident, Phase.QUEUED)
        self.give_back(resident, now)

    def _swap_seconds(self, resident: Resident) -> float:
        profile = self.settings.profile
        num_bytes = self.num_pages(resident.num_computed) * profile.page_bytes
        return profile.swap_s + num_bytes / profile.swap_bytes_per_s

    def _apply(self, step: _Step, now: float) -> None:
        run = step.run
        self.noise.advance(0 if self.noise.is_silent else run.num_steps)
        self.world.meters.ran(run, step.rows, step.num_held, step.num_padding)
        for resident in step.rows:
            self._decoded(resident, run.num_steps, now)
        for resident, num_tokens in step.chunks:
            self._chunk_computed(resident, num_tokens, now)

    def _decoded(self, resident: Resident, num_steps: int, now: float) -> None:
        resident.num_computed += num_steps
        resident.num_tokens += num_steps
        resident.changed()
        num_have = resident.num_own + len(resident.blocks) * self.pages.block_pages
        num_new = self.num_pages(resident.num_computed) - num_have
        if num_new > 0:
            self.pages.grow(num_new, promised=True)
            resident.num_own += num_new
            resident.num_promised -= num_new
        if resident.num_left_to_draw == 0:
            self.running.pop(resident.key)
            self._end(resident, now)

    def _end(self, resident: Resident, now: float) -> None:
        resident.phase = Phase.GONE
        self.give_back(resident, now)
        self.world.ended(self.index, resident, now)

    def _chunk_computed(self, resident: Resident, num_tokens: int, now: float) -> None:
        resident.num_computed += num_tokens
        self.todo_changed(resident)
        resident.chunks.append((now, resident.num_computed))
        self.publish(resident)
        if resident.num_left:
            return
        self.world.meters.drew(resident.request, now)
        if resident.num_tokens == resident.request.num_prompt:  # else it was preempted
            self.world.prompt_computed(self.index)
        resident.num_tokens += 1
        resident.phase = Phase.GONE
        del self.runnable[resident.key]
        self.order.changed()
        if resident.decode is not None:
            self.world.computed(self.index, resident, now)
        elif resident.num_left_to_draw == 0:
            self._end(resident, now)
        else:
            self.set_phase(resident, Phase.WAITING)
