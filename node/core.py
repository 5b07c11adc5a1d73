"""A node without sockets, clock or device: routes events to its guests, composes steps. Pure.

A closed role (weight 0) takes no new work; pool, cache, mappings and what is here stay.

The step thread calls `handle` for what came in, `plan` for the next step, `computed` when the
runner has run it, `tick` in between; each returns what the shell should do.
"""

from dataclasses import dataclass, replace

import msgspec

from node.actions import CacheChanged, NodeAction, Reply
from node.guest import DecodeRole, PrefillRole
from node.load import node_load
from node.plan_check import check_plan
from node.refusals import explain_closed, explain_contradiction, explain_invalid, refusal
from node.runner import StepBatch, StepResult
from node.state import NodeState
from scheduling.views import (
    BatchPolicy,
    NodeView,
    RequestKey,
    SequenceView,
    Services,
    StepPlan,
)
from tandem.messages import evaluation, handoff, serving
from tandem.messages.common import NodeRef
from tandem.messages.membership import NodeLoad, RoleWeights

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message from a gateway or a writer that dialled this node."""

    peer: bytes
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class FromNode:
    """A message from a page owner that this node dialled."""

    node_id: str
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class FromBulk:
    """An event of the bulk thread; `is_write` tells a writer's copy from an owner's grant."""

    event: object
    is_write: bool


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A page owner is gone, or refused to exchange pages."""

    node: NodeRef
    reason: str


@dataclass(frozen=True, slots=True)
class GatewaySilent:
    """A gateway has not been heard of; `is_dead` after which nothing is kept for it."""

    peer: bytes
    is_dead: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """The coordinator gave this node an epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class CacheWanted:
    """The coordinator has missed a change of the prefix cache: tell all of it."""


@dataclass(frozen=True, slots=True)
class RolesChanged:
    """The coordinator gave this node other weights, in force from the next step on."""

    weights: RoleWeights


Event = (
    FromPeer
    | FromNode
    | FromBulk
    | NodeLost
    | GatewaySilent
    | Admitted
    | CacheWanted
    | RolesChanged
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows and tokens of one step."""

    max_num_seqs: int
    max_num_batched_tokens: int
    weights: RoleWeights


@dataclass(frozen=True, slots=True)
class Step:
    """A composed step: `batch.sequences` are the plan's decode rows, then its prefill chunks."""

    plan: StepPlan
    batch: StepBatch


class NodeCore:
    """One batch policy over the requests of two guests."""

    def __init__(
        self,
        state: NodeState,
        *,
        prefill: PrefillRole,
        decode: DecodeRole,
        policy: BatchPolicy,
        limits: Limits,
        services: Services,
        is_steady: bool = False,
    ) -> None:
        self._state = state
        self._prefill = prefill
        self._decode = decode
        self._policy = policy
        self._limits = limits
        self._services = services
        self._is_steady = is_steady
        state.costs.start_from(services.costs)
        self.num_steps = 0
        self.num_illegal_plans = 0
        self.num_held = 0  # rows that waited for a page, each step counted
        self.num_unexpected = 0
        self.wake_at: float | None = None
        self._is_cache_wanted = False

    def handle(self, event: Event, now: float) -> list[NodeAction]:
        """One event."""
        match event:
            case FromPeer(peer, message):
                return self._from_peer(peer, message, now)
            case FromNode(node_id, message):
                return self._prefill.answer(node_id, message, now)
            case FromBulk(bulk_event, is_write):
                guest = self._prefill if is_write else self._decode
                return guest.bulk_event(bulk_event, now)
            case NodeLost(node, reason):
                return self._prefill.node_lost(node, reason, now)
            case GatewaySilent(peer, is_dead):
                actions = self._prefill.peer_lost(peer, now) + self._decode.peer_lost(peer, now)
                if is_dead:
                    self._state.emitter.drop_peer(peer)
                return actions
            case Admitted(epoch):
                self._state.epoch = epoch
                self._is_cache_wanted = True
                return []
            case CacheWanted():
                self._is_cache_wanted = True
                return []
            case RolesChanged(weights):
                self._limits = replace(self._limits, weights=weights)
                return []

    def _from_peer(self, peer: bytes, message: msgspec.Struct, now: float) -> list[NodeAction]:
        match message:
            case serving.Prefill() | serving.Decode():
                refused = self._refuse(message)
                if refused is not None:
                    return [Reply(peer, refused)]
                earlier = (message.spec.request_id, message.spec.attempt - 1)
                actions = self._cancel(earlier, now) if earlier[1] else []
                guest = self._prefill if isinstance(message, serving.Prefill) else self._decode
                return actions + guest.command(peer, message, now)
            case serving.Cancel(request_id=request_id, attempt=attempt):
                actions = self._cancel((request_id, attempt), now)
                ack = serving.CommandAck(command="cancel", request_id=request_id, attempt=attempt)
                return [*actions, Reply(peer, ack)]
            case evaluation.EvaluatePrompt() | evaluation.EvaluationOver():
                is_open = self._limits.weights.prefill > 0
                return self._prefill.evaluate(peer, message, now, is_open=is_open)
            case serving.AskAttempt(request_id=request_id, attempt=attempt):
                return [Reply(peer, self._status_of(peer, (request_id, attempt)))]
            case serving.EmissionAck():
                self._state.emitter.acknowledge(peer, message, now)
                return []
            case (
                handoff.WriterHello()
                | handoff.Reserve()
                | handoff.Progress()
                | handoff.Commit()
                | handoff.Drained()
                | serving.Adopted()
            ):
                return self._decode.command(peer, message, now)
            case _:
                self.num_unexpected += 1
                return []

    def _status_of(self, peer: bytes, key: RequestKey) -> serving.AttemptStatus:
        return serving.AttemptStatus(
            request_id=key[0],
            attempt=key[1],
            has_kv=self._decode.has_kv(peer, key),
            is_here=self._prefill.has(key) or self._decode.has(key),
        )

    def _cancel(self, key: RequestKey, now: float) -> list[NodeAction]:
        return self._prefill.cancel(key, now) + self._decode.cancel(key, now)

    def _refuse(self, command: serving.Prefill | serving.Decode) -> serving.CommandRefused | None:
        """Why this node does not take the command, if it does not."""
        guests = (self._prefill, self._decode)
        identity = self._state.identity
        problem = explain_invalid(command, identity) or explain_contradiction(command, *guests)
        if problem is not None:
            return refusal(command, "invalid_request", problem)
        closed = explain_closed(command, self._limits.weights, *guests)
        return None if closed is None else refusal(command, "not_serving", closed)

    def tick(self, now: float) -> list[NodeAction]:
        """Let guests start, resend and grant; send what was emitted."""
        return self.tick_guests(now) + self.flush(now)

    def tick_guests(self, now: float) -> list[NodeAction]:
        """`tick` without what was emitted: the next `flush` gives that."""
        return self._prefill.tick(now) + self._decode.tick(now)

    def flush(self, now: float) -> list[NodeAction]:
        """New tokens and endings, one message per gateway; nothing before admission."""
        if self._state.epoch == 0:
            return []
        emissions = self._state.emitter.flush(self._state.epoch, now)
        return [Reply(peer, emission) for peer, emission in emissions]

    def plan(self, now: float) -> Step | None:
        """The next step, or None where there is nothing to compute until `wake_at`.

        Where rows wait for pages and nothing else can run, the node makes room, whatever the
        policy: each turn brings one request back or preempts one, so there are few.
        """
        while True:
            self.wake_at = None
            prompts = self._prefill.views(now)
            rows = None if prompts else self._steady_rows()
            if rows:
                step, _ = self._execute(StepPlan(decode=rows), now)
                assert step is not None, "there is a page for every row"
                return step
            view = self._view(prompts, now)
            if not (view.prefill or view.waiting or view.running or view.swapped):
                return None
            plan = self._legal(view)
            self.wake_at = plan.wake_at
            step, is_moved = self._execute(plan, now)
            if step is not None or view.prefill:
                return step
            if is_moved:
                self.wake_at = now  # what comes of it is seen next
                return None
            if plan.wake_at is not None and plan.wake_at > now:
                return None
            # Without rows that it held back itself, a policy holds them back for want of pages.
            is_scarce = view.num_free_pages <= view.num_watermark_pages
            is_short = bool(plan.decode or view.swapped) or is_scarce
            if not self._decode.unblock(now, is_short=is_short):
                return None

    def _steady_rows(self) -> tuple[RequestKey, ...] | None:
        """What the policy would plan now without prompts, where that is known without asking it."""
        rows = self._decode.steady_rows() if self._is_steady else None
        is_within = rows is not None and len(rows) <= self._limits.max_num_batched_tokens
        return rows if is_within else None

    def _legal(self, view: NodeView) -> StepPlan:
        wanted = self._policy.plan(view, self._services)
        protected = self._decode.protected() if wanted.preempt else frozenset()
        checked = check_plan(wanted, view, protected)
        self.num_illegal_plans += checked.num_dropped > 0
        return checked.plan

    def _execute(self, plan: StepPlan, now: float) -> tuple[Step | None, bool]:
        """Preempt, admit, and compose of the rows that have a page: the others are held.

        Also whether anybody was preempted or admitted.
        """
        for key, mode in plan.preempt:
            self._decode.preempt(key, mode, now)
        refused = {key for key in plan.admit if not self._decode.admit(key, now)}
        wanted = [key for key in plan.decode if key not in refused] if refused else plan.decode
        rows, sequences = self._decode.steps(wanted, now)
        self.num_held += len(plan.decode) - len(rows)
        sequences += [self._prefill.step(key, num, now) for key, num in plan.prefill]
        if not sequences:
            is_moved = any(mode != "migrate" for _, mode in plan.preempt)
            return None, is_moved or len(refused) < len(plan.admit)
        self._state.costs.step_began(now)
        if len(rows) < len(plan.decode):
            plan = replace(plan, decode=tuple(rows))
        return Step(plan, StepBatch(tuple(sequences), plan.padding_contexts)), True

    def _view(self, prompts: tuple[SequenceView, ...], now: float) -> NodeView:
        return NodeView(
            now=now,
            max_num_seqs=self._limits.max_num_seqs,
            max_num_batched_tokens=self._limits.max_num_batched_tokens,
            prefill_weight=self._limits.weights.prefill,
            decode_weight=self._limits.weights.decode,
            prefill=prompts,
            waiting=self._decode.waiting(),
            running=self._decode.running(),
            swapped=self._decode.swapped(),
            page_size=self._state.identity.layout.page_size,
            num_pages=self._state.ledger.num_pages,
            num_free_pages=self._state.pool.num_free,
            num_watermark_pages=self._state.pool.growth.num_watermark_pages,
        )

    def computed(self, step: Step, result: StepResult, now: float) -> list[NodeAction]:
        """The runner has run the step; send what was emitted."""
        return self.settle(step, result, now) + self.flush(now)

    def settle(self, step: Step, result: StepResult, now: float) -> list[NodeAction]:
        """`computed` without what was emitted.

        All that the next plan needs; messages can be made while the next step runs.
        """
        self.num_steps += 1
        if self._state.costs.step_ended(step.plan, step.batch, now):
            self._services = Services(self._state.costs.current)
            self._prefill.use(self._services)
        actions: list[NodeAction] = []
        num_decode = len(step.plan.decode)
        self._decode.computed(step.plan.decode, result.sampled[:num_decode], now)
        chunks = zip(step.plan.prefill, result.sampled[num_decode:], strict=True)
        for (key, num_tokens), sampled in chunks:
            self._state.num_prompt_tokens += num_tokens
            actions += self._prefill.computed(key, num_tokens, sampled, now)
        return actions

    def cache_changes(self) -> CacheChanged | None:
        """What entered and left the prefix cache since the last call; all of it where asked for."""
        added, removed = self._state.index.take_changes()
        if self._is_cache_wanted:
            self._is_cache_wanted = False
            return CacheChanged(True, tuple(self._state.index.routing_prefixes()), ())
        if not (added or removed):
            return None
        return CacheChanged(False, tuple(added), tuple(removed))

    def load(self, step_age_s: float) -> NodeLoad:
        """What heartbeats carry."""
        return node_load(self._state, self._prefill, self._decode, self.num_steps, step_age_s)

    @property
    def num_sending(self) -> int:
        """Computed prompts whose last pages are on their way to the decode node."""
        return self._prefill.num_sending

    @property
    def num_verifying(self) -> int:
        """Prompts that other nodes committed and whose checksums are being compared."""
        return self._decode.num_verifying

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left of any request."""
        emitter = self._state.emitter
        left = self._prefill.num_requests + self._decode.num_requests
        return left + emitter.num_unacknowledged == 0
