"""Nodes that report what is not theirs to report: W23 of the wire attacks."""

from tandem.messages.serving import Emission


def test_w23_tokens_of_a_node_that_was_not_asked_are_dropped(world) -> None:
    stranger = world.add_node("x0")
    world.submit()
    world.coordinate()
    world.emit(stranger, world.tokens(1, 0, [10]), world.ending(1, 1, "stop"))
    assert world.ids() == [] and len(world.ledger) == 1
    world.run(12)
    assert world.done().reason in ("length", "stop")


def test_w23_tokens_after_the_end_change_nothing(world) -> None:
    world.submit(params={"max_tokens": 2})
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 0, [10, 11]), world.ending(1, 2, "length"))
    done, num_messages = world.done(), len(world.to_client)
    world.emit(node, world.tokens(1, 2, [12, 13]), world.ending(1, 4, "stop"))
    world.emit(node, world.tokens(1, 0, [77]))
    assert world.ids() == [10, 11] and world.done() == done
    assert len(world.to_client) == num_messages


def test_w23_a_jump_of_the_index_is_held_and_never_delivered_alone(world) -> None:
    world.submit(params={"max_tokens": 9})
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 2**62, [77]))
    world.emit(node, world.tokens(1, 3, [13]))
    assert world.ids() == []
    world.emit(node, world.tokens(1, 0, [10, 11, 12]))
    assert world.ids() == [10, 11, 12, 13]


def test_w23_tokens_of_an_attempt_that_is_over_or_to_come_are_dropped(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(2, 0, [77]))
    world.emit(node, world.ending(1, 0, "failed"))
    world.coordinate()
    world.emit(node, world.tokens(1, 0, [78]))
    assert world.ids() == []
    world.emit(node, world.tokens(2, 0, [10]))
    assert world.ids() == [10]


def test_w23_an_emission_in_another_nodes_name_is_counted(world) -> None:
    world.submit()
    world.coordinate()
    honest: Emission = world.nodes["d0"].message(world.tokens(1, 0, [10]))
    world.say(world.nodes["p0"], honest)
    assert world.ids() == [] and world.ledger.num_dropped == 1
