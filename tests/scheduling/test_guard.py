"""The starvation guard: a bound for a long job among endless short ones, and what it costs them."""

import pytest

from scheduling.batch.catalogue import make_batch_policy
from tests.scheduling.conformance.traces import predict
from tests.scheduling.conformance.world import Arrival, Shape, World, key_of

# Rows of one server: short answers alone are more than it can serve.
SHAPE = Shape(num_pages=1000, max_num_seqs=4, max_num_batched_tokens=64, lookahead_tokens=10_000)
LONG = Arrival(at=0.05, num_prompt=64, num_answer=60, max_answer=64, prediction=predict(60))
NUM_SHORT = 600
BY_TIME = {"guard_ms": "100", "guard_factor": "0.5"}
# Above the longest step of this world: 2 ms, 64 tokens of prompts, 4 rows.
STEP_S = 4e-3


def storm() -> list[Arrival]:
    """Short answers every 2 ms, more than four rows serve; one long answer among them."""
    short = [
        Arrival(at=n * 2e-3, num_prompt=8, num_answer=6, max_answer=64, prediction=predict(6))
        for n in range(NUM_SHORT)
    ]
    return [LONG, *short]


def run(name: str, until_s: float, **options: str) -> World:
    world = World(make_batch_policy(name, options), storm(), SHAPE)
    while world.now < until_s:
        world.step()
    return world


@pytest.mark.parametrize("name", ["sjf", "srpt", "ltr"])
def test_without_the_guard_the_long_answer_waits_as_long_as_short_ones_come(name: str) -> None:
    assert run(name, 1.0).jobs[key_of(0)].view.num_output_tokens < 60


@pytest.mark.parametrize("name", ["sjf", "srpt", "ltr", "fifo", "niyama"])
@pytest.mark.parametrize("options", [BY_TIME, {"guard_steps": "40"}], ids=["ms", "steps"])
def test_with_it_the_long_answer_ends_within_the_bound(name: str, options: dict[str, str]) -> None:
    """Wait, then prompt at the boosted share, then a row when a short one ends, then its steps."""
    wait_s = 0.1 if "guard_ms" in options else 40 * STEP_S
    # The clock of waiting stands still while it is served, so prompt and answer come on top.
    prompt_s = STEP_S * 64 / (0.2 * 64)
    bound_s = 2 * wait_s + prompt_s + STEP_S * (6 + 60)
    world = run(name, LONG.at + bound_s + 0.1, **options)
    job = world.jobs[key_of(0)]
    assert job.ended_at - LONG.at <= bound_s, job


def test_short_ones_pay_at_most_the_share_for_it() -> None:
    """Without the guard against with it, over the same second."""
    plain, guarded = run("sjf", 1.0), run("sjf", 1.0, **BY_TIME)
    ended = [sum(j.state == "done" for j in w.jobs.values()) for w in (plain, guarded)]
    # One row of four for a seventh of the second, and prompts at a fifth of the tokens.
    assert ended[1] >= 0.85 * ended[0]


def test_many_boosted_ones_take_no_more_than_their_share() -> None:
    """Overload boosts nearly everybody; the policy inside still has the other rows."""
    policy = make_batch_policy("sjf", {"guard_steps": "1", "guard_share": "0.5"})
    world = World(policy, storm(), SHAPE)
    for _ in range(300):
        world.step()
    last = world.views[-1]
    oldest = sorted(last.running, key=lambda s: s.received_at)[:2]
    assert key_of(0) in {s.key for s in oldest} or world.jobs[key_of(0)].state == "done"
    assert len(last.running) == SHAPE.max_num_seqs


def test_a_long_predicted_service_waits_its_multiple_first() -> None:
    """60 tokens at 2.2 ms are 132 ms: with factor 3 the boost comes after 0.4 s, not 0.1 s."""
    late = run("sjf", 0.9, guard_ms="100", guard_factor="3").jobs[key_of(0)]
    soon = run("sjf", 0.9, guard_ms="100", guard_factor="0.5").jobs[key_of(0)]
    assert soon.ended_at + 0.2 < late.ended_at
