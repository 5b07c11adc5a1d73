"""One seed from beginning to end: faults, then peace, in which everything must come to its end."""

import random
import traceback
from collections import Counter
from dataclasses import dataclass

from simulator.clock import Violation
from simulator.knobs import Knobs, draw
from simulator.nemesis import Nemesis
from simulator.oracle import Request, make_request, make_requests
from simulator.world import World

AUDIT_S = 0.25
END_S = 30.0  # after the faults every request has ended
LATE_END_S = 10.0  # what is submitted in peace ends, and well
LATE_AFTER_S = 5.0  # by then everybody knows everybody again
NUM_LATE = 2
MAX_KEPT = 8  # records that a node may keep per request of the whole deployment
MAX_ATTEMPTS = 12  # three failures, three deaths, and moves, which are not held against it
QUIET_S = 4.5  # the longest time between two resends, and a little
SETTLED_S = 100.0  # cancels to dead nodes are repeated for 60 s


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed did. `error` is None where every invariant held."""

    seed: int
    error: str | None
    trace_hash: str
    last_lines: tuple[str, ...]
    labels: Counter[str]
    num_events: int
    num_tokens: int
    virtual_s: float


class Simulation:
    """Runs one scenario."""

    def __init__(self, knobs: Knobs, *, is_traced: bool = False) -> None:
        self._rng = random.Random(f"load {knobs.seed}")
        self.knobs = knobs
        self.world = World(knobs, make_requests(knobs, self._rng), is_traced=is_traced)
        self._nemesis = Nemesis(self.world)
        self._next_audit = 0.0

    def run(self) -> None:
        """All phases. Raises Violation, or whatever a core raises."""
        self.advance_to(self.knobs.safety_s)
        self._nemesis.heal()
        healed_at = self.world.clock.now
        self._advance_until_over(healed_at + END_S)
        self.advance_to(healed_at + LATE_AFTER_S)
        while any(node.drain is not None for node in self.world.nodes.values()):
            self.advance_to(self.world.clock.now + LATE_AFTER_S)  # its successor has joined by then
        late = self._submit_late(self.world.clock.now)
        self._advance_until_over(self.world.clock.now + END_S)
        for request in late:
            self._check_late(request)
        self._check_ends()
        self._settle(healed_at + SETTLED_S)

    def advance_to(self, until: float) -> None:
        """Run until then, with audits."""
        clock = self.world.clock
        while clock.now < until:
            clock.step()
            if clock.now >= self._next_audit:
                self.audit()
                self._next_audit = clock.now + AUDIT_S

    def _advance_until_over(self, until: float) -> None:
        while not all(request.is_over for request in self.world.requests):
            if self.world.clock.now > until:
                waiting = [r.number for r in self.world.requests if not r.is_over]
                raise Violation(
                    f"I14: requests {waiting} have not ended {END_S} s after the faults"
                )
            self.advance_to(self.world.clock.now + AUDIT_S)

    def audit(self) -> None:
        """Invariants of whole processes."""
        for node in self.world.nodes.values():
            if node.process.is_alive:
                node.ledger.check()
                load = node.core.load(0.0)
                num_kept = load.num_requests + node.outgoing.num_unacknowledged
                if load.num_preempted:
                    self.world.clock.reach("has preempted")
                if load.num_wasted_tokens:
                    self.world.clock.reach("has computed KV again")
                if num_kept > MAX_KEPT * len(self.world.clients):
                    raise Violation(f"I7: {node.process.name} minds {num_kept} things")
                counts = node.ledger.counts()
                for name in ("quarantined", "draining", "filling"):
                    if getattr(counts, name):
                        self.world.clock.reach(f"pages {name}")

    def _submit_late(self, at: float) -> list[Request]:
        late = []
        for number in range(NUM_LATE):
            request = make_request(1000 + number, at, self.knobs, self._rng)
            self.world.clients.append(self.world.add_client(request))
            late.append(request)
        return late

    def _check_late(self, request: Request) -> None:
        done = request.done
        if done is None or done.reason not in ("stop", "length"):
            raise Violation(f"I14: request {request.number} came in peace and ended: {done}")
        if request.ended_at - request.submit_at > LATE_END_S:
            raise Violation(
                f"I14: request {request.number} came in peace and took "
                f"{request.ended_at - request.submit_at:.1f} s"
            )

    def _check_ends(self) -> None:
        """What no fault explains must not fail."""
        for request in self.world.requests:
            num_attempts = 0 if request.done is None else request.done.timeline.num_attempts
            if num_attempts > 1:
                self.world.clock.reach("several attempts")
            if num_attempts > MAX_ATTEMPTS:
                raise Violation(f"I12: request {request.number} had {num_attempts} attempts")
            is_failed = request.done is not None and request.done.reason == "failed"
            if is_failed:
                assert request.done is not None
                self.world.clock.reach(f"failed: {request.done.code}")
            if not self.knobs.faults and (is_failed or request.refused):
                raise Violation(f"I14: request {request.number} failed without faults: {request}")

    def _settle(self, until: float) -> None:
        """Nothing is held, nothing is asked for any more."""
        while (left := self._left()) is not None:
            if self.world.clock.now > until:
                raise Violation(f"I3/I7: not settled {SETTLED_S} s after the faults: {left}")
            self.advance_to(self.world.clock.now + AUDIT_S)

    def _left(self) -> str | None:
        world = self.world
        for node in world.nodes.values():
            counts = node.ledger.counts()
            if counts.free + counts.cached != node.ledger.num_pages or node.ledger.num_promised:
                return f"{node.process.name} has {counts}, {node.ledger.num_promised} promised"
            if not node.core.is_idle or node.incoming.live() or node.outgoing.live():
                return f"{node.process.name} is not idle: {node.core.load(0.0)}"
        for gateway in world.gateways.values():
            if len(gateway.ledger):
                return f"{gateway.process.name} has {len(gateway.ledger)} requests"
        at, what = world.network.last_demand
        if world.clock.now - at < QUIET_S:
            return f"{what} was sent {world.clock.now - at:.1f} s ago"
        return None


def run_seed(seed: int, num_requests: int | None = None, *, is_traced: bool = False) -> Outcome:
    """Run a seed; every error is an outcome."""
    simulation = Simulation(draw(seed, num_requests), is_traced=is_traced)
    error = None
    try:
        simulation.run()
    except Exception as problem:  # noqa: BLE001  whatever a core raises is a finding
        error = explain(problem)
    clock = simulation.world.clock
    return Outcome(
        seed=seed,
        error=error,
        trace_hash=clock.trace_hash,
        last_lines=clock.last_lines,
        labels=clock.labels,
        num_events=clock.num_events,
        num_tokens=sum(len(request.tokens) for request in simulation.world.requests),
        virtual_s=clock.now,
    )


def explain(problem: Exception) -> str:
    """The error, and where it came from if it is none of the simulator's own."""
    if isinstance(problem, Violation):
        return str(problem)
    return "".join(traceback.format_exception(problem)[-6:])
