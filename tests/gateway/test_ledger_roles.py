"""Nodes that close a role, and requests that somebody wishes on another node."""

import pytest

from tandem.messages.placement import MoveRequest, Place
from tandem.messages.serving import CommandRefused

REQUEST_ID = (1).to_bytes(16, "big")


def questions(world) -> list[Place]:
    return [m for m in world.to_coordinator if isinstance(m, Place)]


def not_serving(attempt: int = 1, command: str = "decode") -> CommandRefused:
    return CommandRefused(
        command=command,
        request_id=REQUEST_ID,
        attempt=attempt,
        code="not_serving",
        message="the role is closed",
    )


def closed(world, *names: str) -> None:
    """The coordinator's next welcome: these take no new sequences."""
    world.welcome(closed_decodes=names)


@pytest.fixture
def decoding(make_world):
    """A request that runs on d0; d1 is there."""
    world = make_world()
    world.submit(params={"max_tokens": 20})
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10]))
    world.to_nodes.clear()
    world.add_node("d1")
    return world


@pytest.mark.parametrize(("node", "command"), [("d0", "decode"), ("p0", "prefill")])
def test_a_closed_role_is_placed_anew_at_once_and_held_against_nobody(
    make_world, node: str, command: str
) -> None:
    world = make_world()
    world.submit()
    world.coordinate()
    world.say(world.nodes[node], not_serving(command=command))
    place = world.question()
    assert (place.attempt, place.num_deaths, place.avoid) == (2, 0, (node,))
    world.add_node("p1")
    world.add_node("d1")
    world.coordinate(prefill="p1", decode="d1")
    world.run()
    assert world.done().reason == "length"


def test_who_is_placed_on_closed_nodes_again_and_again_waits_but_spends_no_retry(
    make_world,
) -> None:
    world = make_world()
    world.submit()
    for attempt in range(1, 9):
        world.coordinate()
        world.say(world.nodes["d0"], not_serving(attempt))
        assert len(questions(world)) == (attempt == 1), "no storm of questions"
        world.tick(0.6)
    world.run()
    assert world.done().reason == "length"


def test_nobody_else_serves_for_a_while(make_world) -> None:
    world = make_world()
    world.submit()
    world.coordinate()
    world.say(world.nodes["d0"], not_serving())
    world.refuse(world.question(), "no_decode_node")
    world.tick()
    world.run()
    assert world.done().reason == "length"


def test_requests_leave_a_node_that_takes_no_new_sequences(decoding) -> None:
    closed(decoding, "d0")
    decoding.tick()
    assert decoding.question().move_from == "d0"
    decoding.coordinate(decode="d1")
    assert decoding.commands(2)["Prefill"][0] == "d0"
    decoding.run()
    assert decoding.done().timeline.decode_node == "d1"


def test_a_node_that_opens_again_keeps_its_requests(decoding) -> None:
    closed(decoding, "d0")
    decoding.tick()
    closed(decoding)
    decoding.to_coordinator.clear()
    decoding.tick(5)
    assert questions(decoding) == []


def test_a_wish_moves_a_request_once_in_a_while(decoding) -> None:
    decoding.hear(MoveRequest(request_id=REQUEST_ID, attempt=1))
    assert decoding.question().move_from == "d0"
    decoding.tick()
    assert decoding.question().move_from == "d0", "it needs no node that leaves"
    decoding.coordinate(decode="d1")
    decoding.emit(decoding.nodes["d1"], decoding.tokens(2, 1, [11]))
    decoding.to_coordinator.clear()
    decoding.hear(MoveRequest(request_id=REQUEST_ID, attempt=2))
    assert questions(decoding) == [], "it moved just now"
    decoding.tick(10)
    decoding.hear(MoveRequest(request_id=REQUEST_ID, attempt=2))
    assert decoding.question().move_from == "d1"


def test_a_refused_wish_is_forgotten(decoding) -> None:
    decoding.hear(MoveRequest(request_id=REQUEST_ID, attempt=1))
    decoding.refuse(decoding.question(), "no_decode_node")
    decoding.to_coordinator.clear()
    decoding.tick(20)
    assert questions(decoding) == []


def test_wishes_for_what_is_gone_are_dropped(decoding) -> None:
    for attempt, request_id in ((2, REQUEST_ID), (1, bytes(16))):
        decoding.hear(MoveRequest(request_id=request_id, attempt=attempt))
    assert questions(decoding) == []
    assert decoding.ledger.num_dropped == 2
