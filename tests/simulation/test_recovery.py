"""One fault at a time (I10): noticed within 3 virtual seconds, made good within 5 more."""

from collections.abc import Callable

import pytest

from simulator.node_process import NodeProcess
from simulator.oracle import Request
from simulator.run import Simulation

BEGIN = 2.0  # when every request has begun and none has ended
DETECTION_S = 3.0 + 0.5 + 0.2  # a lease, one heartbeat before it, one sweep after it
RECOVERY_S = 5.0


def finish(simulation: Simulation) -> None:
    """Every request ends, well; nothing stays behind."""
    world = simulation.world
    until = world.clock.now + 40.0
    while not all(request.is_over for request in world.requests):
        assert world.clock.now < until
        simulation.advance_to(world.clock.now + 0.5)
    for request in world.requests:
        assert request.done is not None
        assert request.done.reason in ("stop", "length"), request.done


def wait_for_progress(simulation: Simulation, requests: list[Request], limit_s: float) -> None:
    """Each of them gets another token, or ends."""
    before = {request.number: len(request.tokens) for request in requests}
    until = simulation.world.clock.now + limit_s
    waiting = list(requests)
    while waiting:
        assert simulation.world.clock.now < until, [request.number for request in waiting]
        simulation.advance_to(simulation.world.clock.now + 0.05)
        waiting = [r for r in waiting if not r.is_over and len(r.tokens) <= before[r.number]]


def begun(simulation: Simulation) -> list[Request]:
    """Requests in the middle of their answers."""
    simulation.advance_to(BEGIN)
    requests = [r for r in simulation.world.requests if r.tokens and not r.is_over]
    assert len(requests) > 4
    return requests


def node(simulation: Simulation, name: str) -> NodeProcess:
    return simulation.world.nodes[name]


@pytest.mark.parametrize("name", ["p0", "d2"])
@pytest.mark.parametrize("transport", ["shared_memory", "zmq"])
def test_a_killed_node(calm: Callable[..., Simulation], name: str, transport: str) -> None:
    """The first of two of its role; nobody restarts it."""
    simulation = calm(transport=transport)
    requests = begun(simulation)
    simulation.world.kill_node(node(simulation, name))
    wait_for_progress(simulation, requests, DETECTION_S + RECOVERY_S)
    finish(simulation)


def test_a_prefill_node_killed_while_it_computes(calm: Callable[..., Simulation]) -> None:
    """Requests that have no token yet get their first one from another node."""
    simulation = calm(max_num_batched_tokens=16, step_s=0.1, max_output=20)
    simulation.advance_to(1.3)
    requests = [r for r in simulation.world.requests if not r.tokens]
    assert requests
    simulation.world.kill_node(node(simulation, "p0"))
    wait_for_progress(simulation, requests, DETECTION_S + RECOVERY_S)
    finish(simulation)


def test_a_killed_coordinator_stalls_no_stream(calm: Callable[..., Simulation]) -> None:
    simulation = calm()
    requests = begun(simulation)
    simulation.world.coordinator.process.kill()
    wait_for_progress(simulation, requests, 0.5)
    simulation.advance_to(simulation.world.clock.now + 1.0)
    simulation.world.start_coordinator()
    wait_for_progress(simulation, requests, 0.5)
    finish(simulation)


def test_a_node_killed_while_there_is_no_coordinator(calm: Callable[..., Simulation]) -> None:
    """A new coordinator knows nothing of the dead node; its requests go on all the same."""
    simulation = calm()
    requests = begun(simulation)
    simulation.world.coordinator.process.kill()
    simulation.world.kill_node(node(simulation, "d2"))
    simulation.advance_to(simulation.world.clock.now + 1.0)
    simulation.world.start_coordinator()
    wait_for_progress(simulation, requests, DETECTION_S + RECOVERY_S)
    finish(simulation)


def test_a_killed_gateway_loses_no_token(calm: Callable[..., Simulation]) -> None:
    """Its clients go on at the other one, after the tokens that they have."""
    simulation = calm()
    requests = begun(simulation)
    gateway = simulation.world.gateways["g0"]
    gateway.process.kill()
    simulation.world.gateway_died(gateway)
    wait_for_progress(simulation, requests, RECOVERY_S)
    finish(simulation)


def test_a_frozen_node_that_comes_back_has_no_say(calm: Callable[..., Simulation]) -> None:
    """Its requests went elsewhere; what it still emits changes nothing (I11)."""
    simulation = calm()
    requests = begun(simulation)
    zombie = node(simulation, "d2")
    zombie.process.freeze()
    wait_for_progress(simulation, requests, DETECTION_S + RECOVERY_S)
    zombie.process.thaw()
    finish(simulation)


def test_a_wedged_node_is_replaced_by_its_peers(calm: Callable[..., Simulation]) -> None:
    """Its I/O side beats on; only its step hangs."""
    simulation = calm()
    requests = begun(simulation)
    node(simulation, "d2").wedged_until = 60.0
    wait_for_progress(simulation, requests, DETECTION_S + RECOVERY_S)
    finish(simulation)


def test_a_frozen_writer_is_fenced_when_its_pages_are_needed(
    calm: Callable[..., Simulation],
) -> None:
    """Its pages drain for ever otherwise: nobody else can prove that it has stopped."""
    simulation = calm(
        roles=((1.0, 0.0), (1.0, 0.0), (0.0, 1.0)),
        pages=(64, 64, 14),
        page_copy_s=0.4,
        transfer_lease_s=2.0,
        num_families=100,
    )
    world = simulation.world
    while not node(simulation, "p0").bulk.num_running:
        simulation.advance_to(world.clock.now + 0.05)
    writer = node(simulation, "p0")
    writer.process.freeze()
    until = world.clock.now + 60.0
    while not all(request.is_over for request in world.requests):
        assert world.clock.now < until
        simulation.advance_to(world.clock.now + 0.5)
    assert not writer.process.is_alive, "it was fenced"
    counts = node(simulation, "d2").ledger.counts()
    assert counts.draining == 0, counts


def test_a_drained_node_hands_its_requests_over_and_leaves(
    calm: Callable[..., Simulation],
) -> None:
    simulation = calm()
    requests = begun(simulation)
    leaving = node(simulation, "d2")
    leaving.start_drain()
    wait_for_progress(simulation, requests, 3.0)
    finish(simulation)
    simulation.advance_to(simulation.world.clock.now + 2.0)
    assert not leaving.process.is_alive, "it has left"
    assert simulation.world.clock.labels["move asked for"]
