"""The ledger and nodes whose epoch is over: they may forget, and are not believed."""

import msgspec

from tandem.messages.placement import NodeDown
from tandem.messages.serving import Cancel, CommandAck, CommandRefused

REQUEST_ID = (1).to_bytes(16, "big")


def rejoin(world, node_id: str) -> None:
    """The coordinator gives a node that it had lost a new epoch; the process is the same."""
    node = world.nodes[node_id]
    world.num_epochs += 1
    node.ref = msgspec.structs.replace(node.ref, epoch=world.num_epochs)


def test_tokens_under_an_epoch_that_is_down_are_forgotten_and_dropped(world) -> None:
    world.submit()
    world.coordinate()
    zombie = world.lose("d0")
    num_dropped = world.ledger.num_dropped
    world.emit(zombie, world.tokens(1, 0, [77, 78]), world.ending(1, 2, "stop"))
    ack = world.last_ack()
    assert [(t.attempt, t.next_index) for t in ack.taken] == [(1, 2)]
    assert set(ack.ended) == {(REQUEST_ID, 1)}
    assert world.ids() == []
    assert world.ledger.num_dropped == num_dropped + 1


def test_an_old_epoch_that_nobody_called_down_is_believed(world, expected) -> None:
    """After a restart the coordinator knows no node; streams in flight do not notice."""
    world.submit()
    world.coordinate()
    world.deliver()
    rejoin(world, "d0")
    rejoin(world, "p0")
    world.run(12)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 1


def test_tokens_of_a_new_attempt_before_the_node_knows_its_new_epoch_come_again(world) -> None:
    """Dropped, they must not be acknowledged: the node would never send them again."""
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.hear(NodeDown(node_id="d0", epoch=node.ref.epoch, reason="no heartbeat"))
    early = node.message(world.tokens(2, 0, [10, 11]), world.ending(2, 2, "stop"))
    rejoin(world, "d0")
    world.coordinate()
    world.say(node, early)
    assert world.ids() == []
    ack = world.last_ack()
    assert [(t.attempt, t.next_index) for t in ack.taken] == [(2, 0)]
    assert ack.ended == ()
    world.emit(node, world.tokens(2, 0, [10, 11]), world.ending(2, 2, "stop"))
    assert world.ids() == [10, 11]
    assert world.done().reason == "stop"


def test_reports_of_an_old_epoch_do_not_count(world) -> None:
    world.submit(params={"max_tokens": 2})
    world.coordinate()
    world.deliver()
    for node in world.nodes.values():
        node.step()
    (emission,) = world.nodes["p0"].emit()
    dead = world.lose("p0")
    world.say(dead, emission)
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10, 11]), world.ending(1, 2, "stop"))
    assert world.done().usage.num_cached_tokens == 0


def test_answers_under_a_down_epoch_settle_cancels_and_nothing_else(world) -> None:
    world.submit()
    world.coordinate()
    dead = world.lose("d0")
    num_dropped = world.ledger.num_dropped
    refused = CommandRefused(
        command="decode", request_id=REQUEST_ID, attempt=1, code="too_few_pages", message="late"
    )
    world.say(dead, refused)
    assert len(world.ledger) == 1
    world.say(dead, CommandAck(command="cancel", request_id=REQUEST_ID, attempt=1))
    assert world.ledger.num_dropped == num_dropped + 2
    world.to_nodes.clear()
    world.tick(5)
    assert "d0" not in {name for name, _ in world.sent(Cancel)}


def test_news_in_a_welcome_are_as_good_as_told_at_once(world) -> None:
    world.submit()
    world.coordinate()
    epoch = world.nodes["d0"].ref.epoch
    world.welcome(recent_downs=(NodeDown(node_id="d0", epoch=epoch, reason="lost"),))
    assert world.question().attempt == 2
    world.welcome(recent_downs=(NodeDown(node_id="d0", epoch=epoch, reason="lost"),))
    assert world.question().attempt == 2
