"""A small fluid world around the real coordinator: nodes that follow their costs, no tokens.

A prefill node computes its prompts one after the other; a decode node gives every request a step
per `decode_step_s` of its rows. Nodes beat every half second with what they really have.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.gate import OverloadGate, Wish
from scheduling.costs import decode_step_s, prefill_s
from tandem.messages.common import NodeCosts
from tandem.messages.placement import Placed, PlaceRefused
from tests.coordinator.conftest import Cluster

COSTS = NodeCosts(
    step_s=0.01,
    prefill_token_s=1e-4,
    prefill_context_s=0.0,
    decode_row_s=1e-3,
    decode_context_s=0.0,
    error=0.05,
    num_steps=1000,
    transfer_s=0.001,
    transfer_bytes_per_s=1e9,
)
NUM_PROMPT, NUM_OUTPUT = 1000, 50
PROMPT_S = prefill_s(COSTS, NUM_PROMPT, 0, 512)
NUM_PAGES = 10_000


@dataclass
class Served:
    """A request's life; None where it did not come to that."""

    number: int
    asked_at: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    refused_after_s: float | None = None

    def is_good(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether it ended and kept both targets."""
        if self.ttft_s is None or self.tpot_s is None:
            return False
        return self.ttft_s <= ttft_s and self.tpot_s <= tpot_s


@dataclass
class World:
    """`cluster` (see conftest) has joined; events are run in the order of their times.

    stuck: nodes that say that they are full, and where nothing ever ends. gate: what a gateway
    asks before it asks the coordinator.
    """

    cluster: Cluster
    prefills: tuple[str, ...] = ("p0", "p1")
    decodes: tuple[str, ...] = ("d0", "d1")
    costs: NodeCosts = COSTS
    stuck: tuple[str, ...] = ()
    events: list = field(default_factory=list)
    queues: dict[str, deque] = field(default_factory=dict)
    running: dict[str, set[int]] = field(default_factory=dict)
    requests: dict[int, Served] = field(default_factory=dict)
    tie: itertools.count = field(default_factory=itertools.count)
    changes: dict = field(default_factory=dict)
    tenant_of: Callable[[int], str] = lambda number: "default"
    gate: OverloadGate | None = None
    num_asked: int = 0

    def __post_init__(self) -> None:
        for name in self.prefills:
            self.cluster.join(name, "prefill", num_pages=NUM_PAGES)
            self.queues[name] = deque()
        for name in self.decodes:
            self.cluster.join(name, "decode", num_pages=NUM_PAGES, max_num_seqs=64)
            self.running[name] = set()

    def at(self, when: float, act, *args) -> None:
        """Run `act(*args)` then."""
        heapq.heappush(self.events, (when, next(self.tie), act, args))

    def run(self, rate: float, seconds: float, **changes) -> list[Served]:
        """Ask `rate` times a second, evenly, and wait for all ends."""
        start = self.cluster.now
        self.changes = changes
        for number in range(round(rate * seconds)):
            self.at(start + number / rate, self._ask, number)
        for tick in range(round(seconds * 2) + 240):
            self.at(start + tick / 2, self._beat)
            self.at(start + tick / 2 + 0.1, self._tick)
            self.at(start + tick / 2 + 0.3, self._tick)
        while self.events:
            self.cluster.now, _, act, args = heapq.heappop(self.events)
            act(*args)
        return [self.requests[number] for number in sorted(self.requests)]

    def _ask(self, number: int) -> None:
        request = self.requests[number] = Served(number, self.cluster.now)
        if self.gate is not None:
            wish = Wish(
                tenant=self.tenant_of(number), sla_class=None, ttft_ms=None, tpot_ms=None,
                priority=0, num_bytes=NUM_PROMPT,
            )  # fmt: skip
            if self.gate.wait_s(wish, self.cluster.now) is not None:
                request.refused_after_s = 0.0
                return
            self.gate.asked(number.to_bytes(16, "big"), wish)
        self.num_asked += 1
        self._hear(
            self.cluster.place(
                number,
                num_prompt_tokens=NUM_PROMPT,
                max_output_tokens=NUM_OUTPUT,
                tenant=self.tenant_of(number),
                **self.changes,
            )
        )

    def _tick(self) -> None:
        self._hear([m for _, m in self.cluster._collect(self.cluster.core.tick(self.cluster.now))])

    def _beat(self) -> None:
        gateway = self.cluster.gateway_hello()
        self.cluster.send("gw", gateway)
        for name, queue in self.queues.items():
            waiting = 1000 if name in self.stuck else len(queue)
            self.cluster.beat(
                name,
                num_pages=NUM_PAGES,
                num_prefill_waiting=waiting,
                num_prefill_tokens_waiting=waiting * NUM_PROMPT,
                costs=self.costs,
            )
        for name, served in self.running.items():
            rows = range(150) if name in self.stuck else served
            self.cluster.beat(
                name,
                num_pages=NUM_PAGES,
                used=len(rows) * 66,
                num_decode_running=len(rows),
                num_decode_tokens=len(rows) * NUM_PROMPT,
                costs=self.costs,
            )

    def _hear(self, answers) -> None:
        for answer in answers:
            number = int.from_bytes(answer.request_id, "big")
            request = self.requests.get(number)
            if self.gate is not None:
                self._tell_gate(answer)
            if isinstance(answer, PlaceRefused):
                assert request.ttft_s is None and request.refused_after_s is None
                request.refused_after_s = self.cluster.now - request.asked_at
            elif isinstance(answer, Placed):
                assert {answer.prefill.node_id, answer.decode.node_id}.isdisjoint(self.stuck)
                queue = self.queues[answer.prefill.node_id]
                queue.append((number, answer.decode.node_id))
                if len(queue) == 1:
                    self.at(self.cluster.now + PROMPT_S, self._prefilled, queue)

    def _tell_gate(self, answer) -> None:
        if isinstance(answer, Placed):
            self.gate.placed(answer.request_id, self.cluster.now)
        elif isinstance(answer, PlaceRefused):
            self.gate.refused(answer.request_id, answer.retry_after_s, self.cluster.now)

    def _prefilled(self, queue: deque) -> None:
        number, decode = queue.popleft()
        if queue:
            self.at(self.cluster.now + PROMPT_S, self._prefilled, queue)
        request = self.requests[number]
        request.ttft_s = self.cluster.now - request.asked_at
        rows = self.running[decode]
        rows.add(number)
        self.at(self.cluster.now, self._step, number, decode, self.cluster.now, 1)

    def _step(self, number: int, decode: str, since: float, num_tokens: int) -> None:
        """Every tenth token is an event: steps of ten change little, and cost a tenth."""
        rows = self.running[decode]
        if num_tokens < NUM_OUTPUT:
            more = min(10, NUM_OUTPUT - num_tokens)
            step_s = decode_step_s(self.costs, len(rows), 0)
            self.at(
                self.cluster.now + more * step_s, self._step, number, decode, since,
                num_tokens + more,
            )  # fmt: skip
            return
        rows.discard(number)
        self.requests[number].tpot_s = (self.cluster.now - since) / (NUM_OUTPUT - 1)
        report = self.cluster.report(number, num_output_tokens=NUM_OUTPUT)
        self._hear([m for _, m in self.cluster.send("gw", report) if hasattr(m, "attempt")])
