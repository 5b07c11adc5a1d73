"""One simulated node: the production policies plan its steps, a profile says how long they take.

It follows `node.core` and the two guests: prompts claim pages within a look-ahead, prefill and
decode share each step, rows grow into promised pages. Steps that only decode, under a policy that
would say the same again, are run as one (`steps.decode_run`), until something happens here.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from node.plan_check import check_plan
from scheduling.costs import StepShape, num_pairs
from scheduling.views import BatchPolicy, NodeView, SequenceView, Services, StepPlan
from simulator.performance.meters import Meters
from simulator.performance.order import Order
from simulator.performance.pages import BlockPages
from simulator.performance.preemption import Preemption
from simulator.performance.profiles import Profile
from simulator.performance.queues import Queues, Residents
from simulator.performance.requests import Phase, Resident
from simulator.performance.residency import Residency
from simulator.performance.steps import Noise, Run, decode_run, single_step

MAX_RUN_STEPS = 4096
REPLAN_S = 1e-6  # time goes on even for a policy that asks to be asked again at once


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
    noise: Noise
    world: World
    queues: Queues
    residency: Residency
    preemption: Preemption
    num_illegal: int = 0
    _busy_s: float = 0.0
    _step: _Step | None = None
    _number: int = 0
    _is_planning: bool = False

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

    def turn(self, prefill_weight: float, decode_weight: float, now: float) -> None:
        """Obey an order; what is here goes on."""
        self.settings = replace(
            self.settings, prefill_weight=prefill_weight, decode_weight=decode_weight
        )
        self.poke(now)

    def busy_until(self, now: float) -> float:
        """Seconds that were spent in steps so far."""
        step = self._step
        return self._busy_s + (0.0 if step is None else now - step.run.began_at)

    def enqueue(self, resident: Resident, now: float) -> None:
        """A prompt to compute."""
        self.set_phase(resident, Phase.QUEUED)
        self.poke(now)

    def set_phase(self, resident: Resident, phase: Phase) -> None:
        """Move a request between the queues of this node."""
        self.queues.move(resident, phase)
        self.order.changed()

    @property
    def pages(self) -> BlockPages:
        """Its pool."""
        return self.residency.pages

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

    def give_back(self, resident: Resident, now: float) -> None:
        """Release its pages and promises; others may have waited for them."""
        self.residency.give_back(resident)
        self.world.pages_freed(self.index, now)

    # --- planning ---------------------------------------------------------------------------

    def _plan(self, now: float) -> None:
        """As `node.core.plan`: where nothing can run, the node makes room, whatever the policy."""
        self._is_planning = True
        self._number += 1
        queues = self.queues
        if queues.queued or queues.granted:
            self._start_prompts(now)
        while queues.has_work:
            view = self._view(now)
            plan = self._legal(view)
            has_moved = self._move(plan, now)
            if self._begin_step(plan, now) or view.prefill:
                break
            if has_moved or (plan.wake_at is not None and plan.wake_at > now):
                wake_at = now if has_moved else max(now + REPLAN_S, plan.wake_at or now)
                self.world.at(wake_at, self.index, self._number)
                break
            is_scarce = view.num_free_pages <= view.num_watermark_pages
            is_short = bool(plan.decode or view.swapped) or is_scarce
            if not self.preemption.unblock(is_short=is_short):
                break
            self._note_preempted(now)
        self._is_planning = False

    def _legal(self, view: NodeView) -> StepPlan:
        wanted = self.policy.plan(view, self.services)
        protected = self.preemption.protected() if wanted.preempt else frozenset()
        checked = check_plan(wanted, view, protected)
        self.num_illegal += checked.num_dropped > 0
        return checked.plan

    def _move(self, plan: StepPlan, now: float) -> bool:
        """Preempt and admit; whether anybody was."""
        queues = self.queues
        for key, mode in plan.preempt:
            self.preemption.take(queues.running[key], mode)
        if plan.preempt:
            self._note_preempted(now)
        has_moved = any(mode != "migrate" for _, mode in plan.preempt)
        for key in plan.admit:
            swapped = queues.swapped.get(key)
            if swapped is None or self.preemption.restore(swapped):
                queues.move(queues.waiting[key], Phase.RUNNING)
                has_moved = True
        return has_moved

    def _note_preempted(self, now: float) -> None:
        for resident in self.queues.queued.values():
            if resident.num_dropped and not resident.num_todo:
                self.todo_changed(resident)
        self.order.changed()
        self.world.pages_freed(self.index, now)

    def _view(self, now: float) -> NodeView:
        settings, pages, queues = self.settings, self.pages, self.queues
        size = pages.block_pages
        return NodeView(
            now=now,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            prefill_weight=settings.prefill_weight,
            decode_weight=settings.decode_weight,
            prefill=tuple(r.view(size) for r in self._in_order(Phase.RUNNABLE, now)),
            waiting=_views(queues.waiting, size),
            running=_views(queues.running, size),
            swapped=_views(queues.swapped, size),
            page_size=settings.profile.page_size,
            num_pages=pages.num_pages,
            num_free_pages=pages.num_free,
            num_watermark_pages=pages.growth.num_watermark_pages,
        )

    def _in_order(self, phase: Phase, now: float) -> list[Resident]:
        if not self.queues.of(phase):
            return []
        return self.order.of(phase, self.queues.prompts, now)

    def _start_prompts(self, now: float) -> None:
        """As `prefill_node.guest.tick`: pages for prompts, within the look-ahead."""
        queues, limit = self.queues, self.settings.lookahead_tokens
        num_tokens = sum(r.num_left for r in queues.reserving.values())
        num_tokens += sum(r.num_left for r in queues.runnable.values())
        preempted = [r for r in queues.queued.values() if r.num_preemptions]
        for resident in sorted(preempted, key=lambda r: (r.age, r.key)):
            if not self._start(resident, now):
                break
            num_tokens += resident.num_left
        for resident in self._in_order(Phase.GRANTED, now):
            if not self._start(resident, now):
                return
            num_tokens += resident.num_left
        if num_tokens >= limit:
            return
        for resident in self._in_order(Phase.QUEUED, now):
            if resident.num_preemptions:
                continue
            if num_tokens >= limit or not self._start(resident, now):
                return
            num_tokens += resident.num_left

    def _start(self, resident: Resident, now: float) -> bool:
        is_local = resident.decode is None
        is_granted = resident.phase is Phase.GRANTED
        if not self.residency.claim(resident, with_growth=is_local):
            return False
        resident.num_computed = len(resident.blocks) * self.settings.block_tokens
        self.world.meters.num_wasted_tokens += max(0, resident.num_dropped - resident.num_computed)
        if resident.num_dropped == 0:
            resident.request.num_cached = resident.num_computed
        resident.num_dropped = 0
        self.todo_changed(resident)
        self.set_phase(resident, Phase.RUNNABLE if is_local or is_granted else Phase.RESERVING)
        if not is_local and not is_granted:
            self.world.reserve(self.index, resident, now)
        return True

    def _begin_step(self, plan: StepPlan, now: float) -> bool:
        """Run the rows that have a page, the others are held, and the chunks; False: none."""
        running = self.queues.running
        wanted = [running[key] for key in plan.decode if key in running]
        rows = [r for r in wanted if self.residency.grow(r, r.num_tokens)]
        chunks = [(self.queues.runnable[key], num) for key, num in plan.prefill]
        for resident, _ in chunks:
            self._begin(resident, now)
        if not rows and not chunks:
            return False
        run = self._make_run(rows, chunks, plan.padding_contexts, now)
        num_held = len(running) - len(rows)
        self._step = _Step(self._number, run, rows, chunks, num_held, len(plan.padding_contexts))
        self.world.at(run.ends_at, self.index, self._number)
        return True

    def _begin(self, resident: Resident, now: float) -> None:
        if resident.started_at is None:
            resident.started_at = now
            resident.changed()
            self.order.changed()

    def _make_run(
        self,
        rows: list[Resident],
        chunks: list[tuple[Resident, int]],
        padding: Sequence[int],
        now: float,
    ) -> Run:
        profile = self.settings.profile
        num_context = sum(r.num_tokens for r in rows)
        is_plain = not chunks and not padding and self.preemption.swap_s == 0
        if is_plain and self._is_alike(rows):
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
        extra_s, self.preemption.swap_s = self.preemption.swap_s, 0.0
        return single_step(profile, shape, prefix, extra_s, now, self.noise)

    def _is_alike(self, rows: list[Resident]) -> bool:
        """Whether the next steps would be planned like this one, until something happens here."""
        queues = self.queues
        has_all = len(rows) == len(queues.running)
        is_full = not queues.waiting or len(rows) == self.settings.max_num_seqs
        is_free = not queues.has_prompts and not queues.swapped
        return self.settings.is_steady and has_all and is_full and is_free

    # --- rows -------------------------------------------------------------------------------

    def _apply(self, step: _Step, now: float) -> None:
        run = step.run
        self._busy_s += now - run.began_at
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
        if num_steps > 1:  # all of it promised
            self.residency.grow(resident, resident.num_computed)
        if resident.num_left_to_draw == 0:
            self.queues.running.pop(resident.key)
            self._end(resident, now)

    def _end(self, resident: Resident, now: float) -> None:
        resident.phase = Phase.GONE
        self.give_back(resident, now)
        self.world.ended(self.index, resident, now)

    def _chunk_computed(self, resident: Resident, num_tokens: int, now: float) -> None:
        resident.num_computed += num_tokens
        self.todo_changed(resident)
        resident.chunks.append((now, resident.num_computed))
        self.residency.publish(resident)
        if resident.num_left:
            return
        self.world.meters.drew(resident.request, now)
        if resident.num_tokens == resident.request.num_prompt:  # else it was preempted
            self.world.prompt_computed(self.index)
        resident.num_tokens += 1
        resident.phase = Phase.GONE
        del self.queues.runnable[resident.key]
        self.order.changed()
        if resident.decode is not None:
            self.world.computed(self.index, resident, now)
        elif resident.num_left_to_draw == 0:
            self._end(resident, now)
        else:
            self.set_phase(resident, Phase.WAITING)


def _views(residents: Residents, block_pages: int) -> tuple[SequenceView, ...]:
    """In the order in which their commands came, as a node has them."""
    return tuple(r.view(block_pages) for r in sorted(residents.values(), key=lambda r: r.age))
