"""Pages run out, requests are preempted in every mode: streams stay right, pages are conserved."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from node.core import FromPeer, GatewaySilent
from node.growth import Overcommit, ReserveMode
from node.runner import Sampled, StepBatch, StepResult
from scheduling.batch.fifo import FifoPolicy
from scheduling.views import NodeView, PreemptMode, Services, StepPlan
from tandem.messages.common import LengthPrediction
from tandem.messages.serving import AskAttempt, Emission, MoveWanted
from tandem.sampling import SamplingParams
from tests.node.node_world import GATEWAY, World, expected, stream
from tests.node.whole_node import Node

NONE = Overcommit("none", 1)


def node_maker(**options: Any) -> Callable[..., Node]:
    """Decode nodes with these options; the prefill node stays as it is."""

    def make(name: str, num_pages: int, **others: Any) -> Node:
        return Node(name, num_pages, **(others | options if name == "d" else others))

    return make


class Naive:
    """Every running request in every step, whether there are pages or not."""

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        rows = tuple(s.key for s in view.running)
        admitted = tuple(s.key for s in view.waiting)[: view.max_num_seqs - len(rows)]
        prefill = tuple((s.key, s.num_left) for s in view.prefill)
        return StepPlan(decode=rows + admitted, admit=admitted, prefill=prefill)


class Once:
    """Continuous batching that preempts a request when it has so many tokens, in these modes."""

    def __init__(
        self, *modes: PreemptMode, at: int = 50, every: int = 20, away_for: int = 5
    ) -> None:
        self._modes = list(modes)
        self._at = at
        self._every = every
        self._away_for = away_for
        self._fifo = FifoPolicy()

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        due = [s.key for s in view.running if s.num_tokens >= self._at]
        if self._modes and due:
            self._at += self._every
            return StepPlan(preempt=((due[0], self._modes.pop(0)),))
        if view.swapped and self._away_for:
            self._away_for -= 1
            return StepPlan(decode=tuple(s.key for s in view.running))
        return self._fifo.plan(view, services)


def check_streams(world: World, sizes: dict[bytes, tuple[int, int]]) -> None:
    for number, (request_id, (num_prompt, num_new)) in enumerate(sizes.items(), 1):
        assert world.endings[request_id] == "length", world.reasons[request_id]
        assert stream(world, request_id) == list(expected(number, num_prompt, num_new))
    world.assert_no_leak()


class Timid:
    """Runs nothing while no page is free, and forgets the swapped: the node must make room."""

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        if view.num_free_pages == 0 and len(view.running + view.waiting) > 1 and not view.prefill:
            return StepPlan()
        return Naive().plan(view, services)


@pytest.mark.parametrize("local", [False, True])
def test_rows_without_a_page_are_held_until_older_ones_end(local: bool) -> None:
    world = World(decode_pages=12, make_node=node_maker(overcommit=NONE, batch_policy=Naive()))
    sizes = {world.submit(n, 20 + n, 60 + n, local=local): (20 + n, 60 + n) for n in range(1, 7)}
    world.run()
    check_streams(world, sizes)
    assert world.d.core.num_held > 0
    assert world.d.preemption.num_preempted == 0, "somebody could always run"


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("policy", [FifoPolicy, Timid])
@pytest.mark.parametrize("local", [False, True])
def test_more_requests_than_pages_all_end_right(policy: Any, preemption: str, local: bool) -> None:
    make = node_maker(overcommit=NONE, preemption=preemption, batch_policy=policy())
    world = World(decode_pages=12, make_node=make)
    sizes = {world.submit(n, 20 + n, 60 + n, local=local): (20 + n, 60 + n) for n in range(1, 7)}
    world.run()
    check_streams(world, sizes)
    load = world.d.core.load(0.0)
    assert load.num_preempted > 0
    assert world.d.preemption.num_swapped == (load.num_preempted if preemption == "swap" else 0)
    assert (load.num_wasted_tokens > 0) == (preemption == "recompute")


def test_without_promises_more_run_at_once() -> None:
    most = {}
    for reserve in ("full", "none"):
        make = node_maker(overcommit=Overcommit(reserve))  # type: ignore[arg-type]
        world = World(decode_pages=20, make_node=make)
        sizes = {world.submit(n, 20, 100): (20, 100) for n in range(1, 6)}
        num_running = [0]
        world.run(each_turn=lambda w=world, n=num_running: n.append(len(w.d.decode.running())))  # type: ignore[misc]
        check_streams(world, sizes)
        most[reserve] = max(num_running)
    assert most["none"] > most["full"]


class Rude:
    """Whatever comes to mind: known and unknown keys, any mode, the held, the swapped."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._fifo = FifoPolicy()

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        rng = self._rng
        modes: tuple[PreemptMode, ...] = ("auto", "recompute", "swap", "migrate")
        keys = [s.key for s in view.running + view.waiting + view.swapped + view.prefill]
        preempt = tuple((k, rng.choice(modes)) for k in keys if rng.random() < 0.15)
        if rng.random() < 0.5:
            plan = self._fifo.plan(view, services)
            return StepPlan(plan.decode, plan.prefill, plan.admit, preempt)
        some = [k for k in keys if rng.random() < 0.6]
        rng.shuffle(some)
        prefill = tuple((s.key, rng.randint(1, 40)) for s in view.prefill)
        return StepPlan(tuple(some), prefill, tuple(some), preempt)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_policy_does_streams_and_pages_hold(seed: int) -> None:
    rng = random.Random(seed)
    reserve: ReserveMode = rng.choice(("full", "predicted", "none", "none"))
    make = node_maker(
        overcommit=Overcommit(reserve, rng.choice((0, 1))),
        preemption=rng.choice(("auto", "recompute", "swap")),
        num_swap_pages=rng.choice((0, 3, 1000)),
        batch_policy=Rude(rng),
        rows=rng.choice((2, 8)),
    )
    is_lossy = rng.random() < 0.5
    world = World(
        decode_pages=rng.choice((9, 14, 30)),
        loss=0.1 if is_lossy else 0.0,
        copy_chance=0.5 if is_lossy else 1.0,
        seed=seed,
        make_node=make,
    )
    sizes = {}
    for n in range(1, 9):
        size = rng.randint(1, 70), rng.randint(1, 60)
        sizes[world.submit(n, *size, local=rng.random() < 0.4)] = size
    world.run()
    check_streams(world, sizes)


def run_one(
    *modes: PreemptMode, num_swap_pages: int = 1000, until: Callable[[World], object] | None = None
) -> tuple[World, bytes]:
    make = node_maker(batch_policy=Once(*modes), num_swap_pages=num_swap_pages)
    world = World(decode_pages=20, make_node=make)
    request_id = world.submit(1, 40, 60)
    if until is None:
        world.run()
    else:
        world.run_until(lambda: until(world))
    return world, request_id


def test_a_swapped_request_is_away_and_comes_back_with_its_pages() -> None:
    world, request_id = run_one("swap", until=lambda w: w.d.core.load(0.0).num_preempted)
    assert world.d.ledger.num_promised == 0
    assert world.d.ledger.counts().active == 0
    world.d.pool[:] = 0xEE  # nothing of what it had is left where it was, cached or not
    world.d.state.index.forget(range(20))
    world.run()
    check_streams(world, {request_id: (40, 60)})
    load = world.d.core.load(0.0)
    assert (load.num_preempted, load.num_wasted_tokens) == (1, 0)


def test_a_dropped_request_is_computed_again_from_what_is_cached() -> None:
    world, request_id = run_one("recompute")
    check_streams(world, {request_id: (40, 60)})
    load = world.d.core.load(0.0)
    assert load.num_preempted == 1
    assert load.num_wasted_tokens < 16, "its full pages stayed cached"
    assert len({r.first_token_after_s for r in world.reports}) == 1, "it has one first token"


def test_a_swapped_request_that_the_policy_forgets_comes_back_when_nothing_else_runs() -> None:
    make = node_maker(batch_policy=Once("swap", away_for=10_000))
    world = World(decode_pages=20, make_node=make)
    sizes = {world.submit(n, 40, 30 * n): (40, 30 * n) for n in (1, 2)}
    world.run()
    check_streams(world, sizes)
    assert world.d.preemption.num_swapped == 1


def test_where_host_memory_is_full_pages_are_computed_again() -> None:
    world, request_id = run_one("swap", num_swap_pages=3)
    check_streams(world, {request_id: (40, 60)})
    assert (world.d.preemption.num_preempted, world.d.preemption.num_swapped) == (1, 0)


@pytest.mark.parametrize(("every", "num_preempted"), [(20, 3), (8, 2), (4, 1)])
def test_who_came_back_a_moment_ago_keeps_its_pages(every: int, num_preempted: int) -> None:
    policy = Once("swap", "recompute", "swap", every=every, away_for=0)
    world = World(decode_pages=20, make_node=node_maker(batch_policy=policy))
    request_id = world.submit(1, 40, 60)
    views = []
    world.run(each_turn=lambda: views.extend(world.d.decode.running()))
    check_streams(world, {request_id: (40, 60)})
    assert world.d.preemption.num_preempted == num_preempted
    assert max(view.num_preemptions for view in views) == num_preempted
    assert world.d.core.num_illegal_plans == 0, "it could not know"


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_a_preempted_request_is_still_here_and_can_be_cancelled(mode: PreemptMode) -> None:
    world, request_id = run_one(mode, until=lambda w: w.d.core.load(0.0).num_preempted)
    key = (request_id, 1)
    assert world.d.decode.has(key) and world.d.decode.knows(key)
    world.tell("d", FromPeer(GATEWAY, AskAttempt(request_id=request_id, attempt=1)))
    assert (world.statuses[-1].has_kv, world.statuses[-1].is_here) == (True, True)
    assert not world.d.core.is_idle
    world.cancel(request_id)
    world.run()
    world.assert_no_leak()
    assert request_id not in world.endings


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_preempted_requests_end_with_their_gateway(mode: PreemptMode) -> None:
    world, request_id = run_one(mode, until=lambda w: w.d.core.load(0.0).num_preempted)
    world.tell("d", GatewaySilent(GATEWAY, False))
    world.run()
    world.assert_no_leak()
    assert world.endings[request_id] == "failed"


def test_a_wish_to_move_is_told_to_the_gateway_and_changes_nothing() -> None:
    wishes: list[object] = []
    world, request_id = run_one("migrate", "migrate", until=lambda w: len(w.tokens) > 0)
    at_gateway = world.at_gateway

    def note(name: str, message: Any) -> None:
        if isinstance(message, MoveWanted):
            wishes.append(message)
        at_gateway(name, message)

    world.at_gateway = note  # type: ignore[method-assign]
    world.run()
    check_streams(world, {request_id: (40, 60)})
    assert wishes == [MoveWanted(request_id=request_id, attempt=1)], "not twice in 3 s"
    assert world.d.core.load(0.0).num_preempted == 0


def test_an_error_while_it_is_computed_again_ends_it_and_leaves_no_pages_to_trust() -> None:
    world, request_id = run_one("recompute", until=lambda w: w.d.core.load(0.0).num_preempted)
    run = world.d.runner.run

    def fail(batch: StepBatch) -> StepResult:
        return StepResult(tuple(Sampled(0, error="broken") for _ in run(batch).sampled))

    world.d.runner.run = fail  # type: ignore[method-assign]
    world.run()
    world.assert_no_leak()
    assert world.reasons[request_id] == "internal: broken"


def test_predicted_promises_up_to_the_predicted_length() -> None:
    promised = {}
    for q90 in (10.0, 1000.0):
        world = World(decode_pages=20, make_node=node_maker(overcommit=Overcommit("predicted")))
        world.prediction = LengthPrediction(score=0.0, q50=5.0, q90=q90)
        request_id = world.submit(1, 30, 100)
        world.run_until(lambda w=world: w.d.decode.running())  # type: ignore[misc]
        promised[q90] = world.d.ledger.num_promised
        world.run()
        check_streams(world, {request_id: (30, 100)})
    assert promised[10.0] <= 1
    assert promised[1000.0] >= 5


def test_logprobs_stay_with_their_tokens() -> None:
    seen: list[int] = []
    make = node_maker(batch_policy=Once("recompute", "swap"))
    world = World(decode_pages=20, make_node=make)
    params = SamplingParams(max_tokens=60, temperature=0.0, logprobs=0)
    request_id = world.submit(1, 40, 60, params=params)
    take = world.take

    def note(emission: Emission) -> Any:
        seen.extend(len(d.ids) - len(d.logprobs) for d in emission.deltas)
        return take(emission)

    world.take = note  # type: ignore[method-assign]
    world.run()
    check_streams(world, {request_id: (40, 60)})
    assert seen and not any(seen)
