"""WAIT: the same few of a kind enter in each step; gates wait, and never for ever."""

import pytest
from msgspec import structs

from scheduling.batch.catalogue import make_batch_policy
from scheduling.batch.gate import ArrivalRate, Gate
from scheduling.batch.wait import WaitOptions, WaitPolicy
from scheduling.views import NodeView, SequenceView, Services
from tests.scheduling.conformance.traces import predict
from tests.scheduling.conformance.world import COSTS, Arrival, Shape, World, key_of

SERVICES = Services(COSTS)


def row(n: int, *, answer: int = 30, num_output: int = 1, at: float = 0.0) -> SequenceView:
    return SequenceView(
        key=key_of(n),
        age=n,
        arrived_at=at,
        priority=0,
        tenant="default",
        num_prompt_tokens=16,
        num_tokens=16 + num_output,
        num_computed=15 + num_output,
        max_total_tokens=400,
        num_pages=4,
        num_promised=30,
        last_token_at=at,
        prediction=predict(answer),
    )


def view(
    now: float, *, waiting: list[SequenceView], running: list[SequenceView], rows: int = 66
) -> NodeView:
    return NodeView(
        now=now,
        max_num_seqs=rows,
        max_num_batched_tokens=512,
        prefill_weight=1.0,
        decode_weight=1.0,
        prefill=(),
        waiting=tuple(waiting),
        running=tuple(running),
    )


def test_rates_are_those_of_the_window() -> None:
    rate = ArrivalRate(10.0, 0.0)
    for n in range(1000):
        rate.count(3, now=n * 0.1)
    assert rate.per_s(99.9) == pytest.approx(30, rel=0.01)
    assert rate.per_s(110.0) == pytest.approx(30 / 2.72, rel=0.02)


def test_a_threshold_below_one_does_not_close_the_gate_for_good() -> None:
    """0.3 per step rounds to 0, or to 1 in every step; it is 3 in 10 steps."""
    gate = Gate(max_wait_s=1.0)
    num_entered = 0
    for n in range(100):
        quota = gate.quota(5, num_per_step=0.3, rate=100.0, now=0.01 * n)
        assert quota in (0, 1)
        gate.entered(quota or 0)
        num_entered += quota or 0
    assert num_entered == 30


def test_a_gate_waits_for_its_threshold_then_gives_up_waiting() -> None:
    gate = Gate(max_wait_s=0.5)
    assert gate.quota(1, num_per_step=2.0, rate=100.0, now=1.0) is None
    assert gate.opens_at == 1.5
    assert gate.quota(2, num_per_step=2.0, rate=100.0, now=1.1) == 2
    assert gate.quota(1, num_per_step=2.0, rate=100.0, now=1.2) is None
    assert gate.quota(1, num_per_step=2.0, rate=100.0, now=1.7) == 1


def test_a_gate_opens_at_once_where_nobody_is_expected() -> None:
    assert Gate(max_wait_s=0.5).quota(1, num_per_step=4.0, rate=1.0, now=1.0) == 1


def test_a_burst_enters_a_few_at_a_time() -> None:
    """66 rows, answers of up to 32 tokens: 33 stages, so two enter in each step."""
    policy = WaitPolicy(WaitOptions(max_wait_s=60.0), nested=False)
    waiting = [row(n) for n in range(40)]
    admitted = []
    running: list[SequenceView] = []
    for n in range(5):
        plan = policy.plan(view(0.01 * n, waiting=waiting, running=running), SERVICES)
        admitted.append(len(plan.admit))
        running += [s for s in waiting if s.key in plan.admit]
        waiting = [s for s in waiting if s.key not in plan.admit]
    assert admitted == [2, 2, 2, 2, 2]
    fifo = make_batch_policy("fifo").plan(view(0.0, waiting=waiting, running=[]), SERVICES)
    assert len(fifo.admit) == 30


def test_a_type_waits_as_a_whole_while_another_runs() -> None:
    policy = WaitPolicy(WaitOptions(max_wait_s=1.0), nested=False)
    arrivals = [row(n, answer=30) for n in range(60)]  # 33 per second: worth to wait for
    policy.plan(view(0.0, waiting=arrivals, running=[]), SERVICES)
    short, long = row(0), row(100, answer=300)
    plan = policy.plan(view(0.1, waiting=[], running=[short, long]), SERVICES)
    assert plan.decode == (long.key,)
    plan = policy.plan(view(0.2, waiting=[], running=[short]), SERVICES)
    assert (plan.decode, plan.wake_at) == ((), 1.1)
    plan = policy.plan(view(1.2, waiting=[], running=[short]), SERVICES)
    assert plan.decode == (short.key,)


def test_nested_holds_those_beyond_a_boundary_until_enough_stand_there() -> None:
    options = WaitOptions(max_wait_s=1.0, first_bound=4)
    policy = WaitPolicy(options, nested=True)
    rows = [row(n) for n in range(6)]
    running: list[SequenceView] = []
    policy.plan(view(0.0, waiting=rows, running=[], rows=6), SERVICES)
    # All reached the first boundary, after 4 tokens: what happens to them is the gate's choice.
    policy.plan(view(0.1, waiting=[], running=rows, rows=6), SERVICES)
    running = [structs.replace(s, num_tokens=21, num_computed=20, last_token_at=0.2) for s in rows]
    plan = policy.plan(view(0.2, waiting=[], running=running, rows=6), SERVICES)
    assert len(plan.decode) < len(running)
    now = 0.2
    done = set(plan.decode)
    for _ in range(40):
        now = max(plan.wake_at or 0.0, now + 0.01)
        plan = policy.plan(view(now, waiting=[], running=running, rows=6), SERVICES)
        done |= set(plan.decode)
    assert done == {s.key for s in running}


def crowded(name: str, num_answer: int, num_pages: int) -> World:
    """60 requests at once, alike, and pages for a part of the rows; none are reserved."""
    prediction = predict(num_answer)
    arrivals = [Arrival(0.0, 16, num_answer, prediction=prediction) for _ in range(60)]
    shape = Shape(
        num_pages=num_pages,
        max_num_seqs=30,
        max_num_batched_tokens=200,
        promise=False,
        lookahead_tokens=100,
    )
    return World(make_batch_policy(name), arrivals, shape).run()


@pytest.mark.parametrize("name", ["wait", "wait-nested"])
def test_fewer_are_evicted_than_first_come_first_served_evicts(name: str) -> None:
    """Measured: 1 instead of 16."""
    assert crowded(name, 20, 60).num_preemptions < 0.3 * crowded("fifo", 20, 60).num_preemptions


def test_beyond_the_stable_range_of_fifo_it_is_faster() -> None:
    """Measured: mean latency of 0.7 s instead of 2.0 s, with pages for ten full requests."""
    assert crowded("wait", 48, 30).mean_latency_s < 0.6 * crowded("fifo", 48, 30).mean_latency_s


@pytest.mark.parametrize("name", ["wait", "wait-nested"])
def test_at_low_load_each_wait_is_bounded(name: str) -> None:
    arrivals = [Arrival(2.0 * n, 16, 20, prediction=predict(20)) for n in range(4)]
    world = World(make_batch_policy(name), arrivals).run()
    assert world.longest_idle_s <= 0.05 + 1e-9
    assert world.mean_latency_s < 0.3
