"""Fair queueing of tenants: equal shares, weights, no credit for idling, nothing left idle."""

import pytest

from scheduling.batch.catalogue import make_batch_policy
from tests.scheduling.conformance.world import Arrival, Shape, World

# Four rows and six tokens of prompts in a step: prompts and answers take about as many steps.
SHAPE = Shape(num_pages=4000, max_num_seqs=4, max_num_batched_tokens=10, lookahead_tokens=100_000)


def backlog(tenant: str, num: int, *, at: float = 0.0, weight: float = 1.0) -> list[Arrival]:
    return [Arrival(at, 16, 12, max_answer=16, tenant=tenant, weight=weight) for _ in range(num)]


def served(world: World, until_s: float) -> dict[str, int]:
    """What each tenant got by then, as the paper counts it: prompt tokens, and answers twice."""
    while world.now < until_s:
        world.step()
    got: dict[str, int] = {}
    for job in world.jobs.values():
        view, tenant = job.view, job.arrival.tenant
        num_prompt = min(view.num_computed, view.num_prompt_tokens)
        got[tenant] = got.get(tenant, 0) + num_prompt + 2 * view.num_output_tokens
    return got


@pytest.mark.parametrize("name", ["fifo", "sjf", "sarathi", "niyama"])
def test_a_flood_does_not_starve_the_others(name: str) -> None:
    arrivals = backlog("flood", 80) + backlog("small", 40)
    fair = served(World(make_batch_policy(name, {"fair": "true"}), arrivals, SHAPE), 0.25)
    plain = served(World(make_batch_policy(name), arrivals, SHAPE), 0.25)
    assert plain["small"] < 0.1 * plain["flood"]
    assert fair["small"] == pytest.approx(fair["flood"], rel=0.25)
    assert sum(fair.values()) > 0.9 * sum(plain.values())


def test_weights_divide_the_service() -> None:
    arrivals = backlog("one", 80) + backlog("three", 80, weight=3.0)
    tokens = served(World(make_batch_policy("fifo", {"fair": "true"}), arrivals, SHAPE), 0.4)
    assert tokens["three"] == pytest.approx(3 * tokens["one"], rel=0.25)


def test_a_newcomer_starts_level_without_credit_for_its_absence() -> None:
    arrivals = backlog("old", 100) + backlog("new", 60, at=0.2)
    world = World(make_batch_policy("fifo", {"fair": "true"}), arrivals, SHAPE)
    before = served(world, 0.2)["old"]
    after = served(world, 0.4)
    assert after["old"] - before == pytest.approx(after["new"], rel=0.3)


def test_alone_a_tenant_gets_everything() -> None:
    plain = World(make_batch_policy("fifo"), backlog("only", 30), SHAPE).run()
    fair = World(make_batch_policy("fifo", {"fair": "true"}), backlog("only", 30), SHAPE).run()
    assert fair.plans == plain.plans
