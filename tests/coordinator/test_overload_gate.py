"""The gateway's gate before the real coordinator: goodput stays, and little is asked in vain."""

from typing import Any

from gateway.gate import ASKS_PER_PLACED, OverloadGate
from tests.coordinator.overload_world import PROMPT_S, World

CAPACITY = 2 / PROMPT_S
SECONDS = 12.0


def test_goodput_stays_and_the_coordinator_is_asked_for_little_more_than_it_can_serve(
    make_cluster: Any,
) -> None:
    by_load, asked = {}, {}
    for load in (1.0, 2.0, 5.0, 10.0):
        cluster = make_cluster()
        cluster.greet()
        world = World(cluster, gate=OverloadGate())
        served = world.run(load * CAPACITY, SECONDS)
        by_load[load] = sum(each.is_good(2.0, 0.1) for each in served) / SECONDS
        asked[load] = world.num_asked / SECONDS / CAPACITY
    print("goodput by load:", by_load, "asks per second over the capacity:", asked)
    peak = max(by_load.values())
    assert peak > 0.9 * CAPACITY
    for load in (2.0, 5.0, 10.0):
        assert by_load[load] >= 0.8 * peak, by_load
        assert asked[load] <= ASKS_PER_PLACED + 1.0, asked


def test_a_tenant_that_floods_shuts_its_own_door_only(make_cluster: Any) -> None:
    cluster = make_cluster()
    cluster.greet()
    gate = OverloadGate()
    world = World(
        cluster, gate=gate, tenant_of=lambda number: "modest" if number % 20 == 0 else "greedy"
    )
    served = world.run(5 * CAPACITY, SECONDS)
    modest = [each for each in served if each.number % 20 == 0]
    assert sum(each.is_good(2.0, 0.1) for each in modest) >= 0.9 * len(modest)
    assert sum(gate.num_refused.values()) > 0
