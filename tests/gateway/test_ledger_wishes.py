"""A node wishes that a request moved elsewhere: the gateway asks for a place, or drops the wish."""

from tandem.messages.placement import Place
from tandem.messages.serving import MoveWanted

REQUEST_ID = (1).to_bytes(16, "big")


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


def places(world) -> list[Place]:
    return [m for m in world.to_coordinator if isinstance(m, Place)]


def test_the_decode_node_of_an_attempt_may_wish_it_elsewhere(make_world) -> None:
    world = decoding(make_world)
    world.say(world.nodes["d0"], MoveWanted(request_id=REQUEST_ID, attempt=1))
    place = world.question()
    assert (place.attempt, place.move_from) == (2, "d0")
    world.emit(world.nodes["d0"], world.tokens(1, 1, [11]))
    assert world.ids() == [10, 11], "it runs where it is until it is placed"
    world.coordinate(decode="d1")
    commands = world.commands(2)
    assert commands["Decode"][0] == "d1"
    assert commands["Decode"][1].spec.output_ids.array.tolist() == [10, 11]


def test_wishes_of_strangers_and_of_late_attempts_are_dropped(make_world) -> None:
    world = decoding(make_world)
    asked = len(places(world))
    num_dropped = world.ledger.num_dropped
    world.say(world.nodes["d1"], MoveWanted(request_id=REQUEST_ID, attempt=1))
    world.say(world.nodes["d0"], MoveWanted(request_id=REQUEST_ID, attempt=2))
    world.say(world.nodes["d0"], MoveWanted(request_id=bytes(16), attempt=1))
    assert len(places(world)) == asked
    assert world.ledger.num_dropped == num_dropped + 3
