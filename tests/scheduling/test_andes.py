"""Andes: rows go to whose readers run out first; a full stock gives way; no pressure, no change."""

import pytest
from msgspec import structs

from scheduling.batch.andes import AndesOptions, AndesPolicy
from scheduling.batch.catalogue import make_batch_policy
from scheduling.views import SequenceView, Services
from tandem.messages.common import NodeCosts
from tests.scheduling.conformance.world import COSTS, Arrival, Shape, World
from tests.scheduling.test_magnus import numbers
from tests.scheduling.test_wait import row, view

SERVICES = Services(COSTS)
# A step of 20 ms, and 20 ms more for each row.
SLOW = Services(
    NodeCosts(
        step_s=0.02,
        prefill_token_s=0.0,
        prefill_context_s=0.0,
        decode_row_s=0.02,
        decode_context_s=0.0,
    )
)


def reader(n: int, *, num_output: int, tpot_s: float = 0.1) -> SequenceView:
    return structs.replace(row(n, num_output=num_output), tpot_s=tpot_s, last_token_at=0.0)


def started(policy: AndesPolicy, *rows: SequenceView) -> AndesPolicy:
    """They all had their first token at 0."""
    first = [structs.replace(s, num_tokens=17, num_computed=16) for s in rows]
    policy.plan(view(0.0, waiting=[], running=first), SERVICES)
    return policy


def test_the_stock_is_what_is_left_to_read() -> None:
    policy = started(AndesPolicy(), one := reader(1, num_output=1), two := reader(2, num_output=30))
    assert policy.stock_s(one, 0.5) == pytest.approx(0.1 - 0.5)
    assert policy.stock_s(two, 0.5) == pytest.approx(3.0 - 0.5)


def test_without_pressure_all_run() -> None:
    rows = [reader(n, num_output=1 + 10 * n) for n in range(4)]
    plan = started(AndesPolicy(), *rows).plan(view(0.2, waiting=[], running=rows), SERVICES)
    assert len(plan.decode) == 4


def test_under_pressure_those_ahead_are_held() -> None:
    """A token takes 0.1 s to read: four rows, not eight, keep up with that."""
    rows = [reader(n, num_output=(1 if n % 2 else 30)) for n in range(8)]
    plan = started(AndesPolicy(), *rows).plan(view(0.5, waiting=[], running=rows), SLOW)
    assert numbers(plan.decode) == {1, 3, 5, 7}
    assert plan.preempt == ()


def test_of_two_that_starve_the_one_with_less_kv_is_cheaper() -> None:
    policy = AndesPolicy()
    short, long = reader(1, num_output=2), reader(2, num_output=2)
    long = structs.replace(
        long, num_prompt_tokens=900, num_tokens=902, num_computed=901, max_total_tokens=999
    )
    started(policy, short)
    now = view(1.0, waiting=[long, short], running=[], rows=1)
    assert numbers(policy.plan(now, SERVICES).admit) == {1}


def test_a_full_stock_gives_its_row_to_who_waits_once() -> None:
    policy = AndesPolicy(AndesOptions(horizon_s=1.0, max_preemptions=1))
    rich, poor = reader(1, num_output=50), reader(2, num_output=1)
    started(policy, rich)
    plan = policy.plan(view(0.5, waiting=[poor], running=[rich], rows=1), SERVICES)
    assert (plan.preempt, plan.admit) == (((rich.key, "auto"),), (poor.key,))
    again = structs.replace(rich, num_preemptions=1)
    plan = policy.plan(view(0.6, waiting=[poor], running=[again], rows=1), SERVICES)
    assert plan.preempt == ()


def late_tokens(name: str) -> float:
    """Share of tokens that came after their reader wanted them, at 8 tokens per second."""
    arrivals = [Arrival(0.02 * n, 16, 40, tpot_s=0.125, ttft_s=0.2) for n in range(24)]
    shape = Shape(num_pages=400, max_num_seqs=8, lookahead_tokens=10_000)
    costs = NodeCosts(
        step_s=0.01,
        prefill_token_s=1e-5,
        prefill_context_s=0.0,
        decode_row_s=0.002,
        decode_context_s=0.0,
    )
    world = World(make_batch_policy(name), arrivals, shape, costs).run()
    late = [
        at > job.arrival.at + 0.2 + 0.125 * n
        for job in world.jobs.values()
        for n, at in enumerate(job.token_times)
    ]
    return sum(late) / len(late)


def test_fewer_tokens_come_too_late_than_first_come_first_served() -> None:
    assert late_tokens("andes") < 0.7 * late_tokens("fifo")
