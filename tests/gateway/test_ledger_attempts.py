"""The ledger when nodes die, refuse or fail: attempts of which the client sees nothing."""

import msgspec
import pytest

from tandem.messages.placement import NodeDown, Place
from tandem.messages.serving import Cancel, CommandRefused, Decode


def test_a_dead_decode_node_costs_nothing_but_an_attempt(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.run(2)
    num_before = len(world.ids())
    assert 0 < num_before < 6
    dead = world.lose("d0")
    assert ("d0", dead.ref.epoch) in {(c.node_id, c.epoch) for c in world.closed}
    place = world.question()
    assert (place.attempt, place.num_output_tokens) == (2, num_before)
    world.add_node("d0")
    world.run(20)
    assert world.ids() == expected
    done = world.done()
    assert (done.reason, done.timeline.num_attempts) == ("length", 2)
    assert done.usage.num_output_tokens == 6


def test_the_second_attempt_carries_what_was_delivered(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 0, [10, 11]), world.tokens(1, 3, [13]))
    world.lose("d0")
    world.add_node("d0")
    world.coordinate()
    specs = [m.spec for _, m in world.to_nodes if isinstance(m, Decode) and m.spec.attempt == 2]
    assert [s.output_ids.array.tolist() for s in specs] == [[10, 11]]
    assert [s.prompt_ids.array.tolist() for s in specs] == [[0, 1, 2, 3, 4]]
    assert ("p0", 1) in world.cancels()


def test_a_dead_prefill_node_is_irrelevant_once_decode_carries_on(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.run(2)
    world.lose("p0")
    world.run(12)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 1


def test_a_dead_prefill_node_before_that_starts_another_attempt(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.lose("p0")
    world.deliver()  # the decode node has nothing of it
    assert world.cancels() == {("p0", 1), ("d0", 1)}
    world.add_node("p0")
    world.run(20)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 2


def test_three_failed_attempts_are_the_end(world) -> None:
    world.submit()
    for attempt in (1, 2, 3):
        world.coordinate()
        world.emit(world.nodes["d0"], world.ending(attempt, 0, "failed", message=f"no {attempt}"))
    done = world.done()
    assert (done.code, done.reason, done.timeline.num_attempts) == ("unavailable", "failed", 3)
    assert done.message == "3 attempts failed: no 1; no 2; no 3"


def test_old_news_of_a_node_do_not_touch_its_new_epoch(world, expected) -> None:
    old = world.lose("d0")
    world.add_node("d0")
    world.submit()
    world.coordinate()
    world.hear(NodeDown(node_id="d0", epoch=old.ref.epoch, reason="again"))
    world.run(12)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 1


def test_a_node_that_comes_back_is_told_to_cancel_what_it_still_runs(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.run(2)
    node = world.lose("d0")
    key = ((1).to_bytes(16, "big"), 1)
    assert key in node.specs
    for _ in range(40):
        world.tick()
    world.closed.clear()
    node.ref = msgspec.structs.replace(node.ref, epoch=node.ref.epoch + 50)
    world.nodes["d0"] = node
    world.deliver()
    assert key not in node.specs
    world.run(12)
    assert world.ids() == expected
    assert not world.cancels()
    assert [(c.node_id, c.epoch) for c in world.closed] == [("d0", node.ref.epoch - 50)]


def test_a_dead_node_is_asked_to_cancel_for_a_minute_and_then_hung_up_on(world) -> None:
    world.submit()
    world.coordinate()
    world.deliver()
    dead = world.lose("d0")
    world.deliver()
    world.do(world.ledger.cancel(b"client", (1).to_bytes(16, "big"), world.now))
    assert len(world.ledger) == 0
    world.closed.clear()
    world.tick(59)
    assert [(ref, type(m)) for ref, m in world.to_nodes] == [(dead.ref, Cancel)]
    assert world.closed == []
    world.to_nodes.clear()
    world.tick(1)
    world.tick(10)
    assert world.to_nodes == []
    assert [(c.node_id, c.epoch) for c in world.closed] == [("d0", dead.ref.epoch)]


def test_a_dead_prefill_node_is_asked_nothing_once_decode_carries_on(world) -> None:
    world.submit()
    world.coordinate()
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10]))
    dead = world.lose("p0")  # it never answered its command
    world.to_nodes.clear()
    world.tick(5)
    assert dead.ref not in {ref for ref, _ in world.to_nodes}
    world.do(world.ledger.cancel(b"client", (1).to_bytes(16, "big"), world.now))
    world.tick(5)
    assert dead.ref not in {ref for ref, _ in world.to_nodes}
    assert world.cancels() == {("d0", 1)}


def test_a_placement_on_a_node_known_to_be_down_is_not_used(world) -> None:
    world.submit()
    place = world.question()
    answer = world.placed(place)
    world.lose("d0")
    world.to_coordinator.clear()
    world.hear(answer)
    assert world.question().attempt == 2
    assert not [m for _, m in world.to_nodes if isinstance(m, Decode)]


def refuse_decode(world, code: str) -> None:
    refused = CommandRefused(
        command="decode",
        request_id=(1).to_bytes(16, "big"),
        attempt=1,
        code=code,
        message="because",
    )
    world.submit()
    world.coordinate()
    world.say(world.nodes["d0"], refused)


def test_a_command_refused_for_now_is_tried_elsewhere(world) -> None:
    refuse_decode(world, "unavailable")
    assert world.question().attempt == 2
    assert ("p0", 1) in world.cancels()


def test_a_command_refused_for_good_ends_the_request(world) -> None:
    refuse_decode(world, "too_few_pages")
    assert world.done().code == "too_few_pages"
    assert "because" in world.done().message


@pytest.mark.parametrize("reason", ["failed", "cancelled"])
def test_a_node_that_gives_up_starts_another_attempt(world, expected, reason) -> None:
    world.submit()
    world.coordinate()
    world.deliver()
    node = world.nodes["d0"]
    world.emit(node, world.ending(1, 0, reason))
    node.specs.clear()
    world.run(20)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 2


def test_a_late_failure_of_prefill_does_not_disturb_decode(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.run(2)
    node = world.nodes["p0"]
    late = world.ending(1, 0, "failed", code="transfer_failed", message="late")
    world.emit(node, late)
    world.run(12)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 1


@pytest.mark.parametrize(("last", "reason"), [(3, "stop"), (15, "length")])
def test_a_node_that_dies_after_the_last_token_needs_no_successor(world, last, reason) -> None:
    world.submit(params={"max_tokens": 2 if reason == "length" else 9})
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 0, [10, last]))
    world.lose("d0")
    assert world.done().reason == reason
    assert world.ids() == [10, last]


def test_a_late_token_of_an_earlier_attempt_on_the_same_node_is_not_taken(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.ending(1, 0, "failed"))
    world.coordinate()
    world.emit(node, world.tokens(1, 0, [77]), world.ending(1, 1, "stop"))
    assert world.ids() == []
    assert [(t.attempt, t.next_index) for t in world.last_ack().taken] == [(1, 1)]
    world.emit(node, world.tokens(2, 0, [10]))
    assert world.ids() == [10]


def test_what_waited_behind_a_gap_is_void_in_the_next_attempt(world) -> None:
    world.submit()
    world.coordinate()
    node = world.nodes["d0"]
    world.emit(node, world.tokens(1, 1, [77]))
    world.emit(node, world.ending(1, 0, "failed"))
    world.coordinate()
    world.emit(node, world.tokens(2, 0, [10, 11]))
    assert world.ids() == [10, 11]
    assert world.ledger.num_dropped == 0


def test_a_request_that_lost_its_node_waits_for_a_new_one(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.run(2)
    world.lose("d0")
    for _ in range(10):
        for place in [m for m in world.to_coordinator if isinstance(m, Place)]:
            world.refuse(place, "no_decode_node", retry_after_s=5.0)
        world.to_coordinator.clear()
        world.tick(1.0)
    assert len(world.ledger) == 1
    world.add_node("d0")
    world.run(20)
    assert world.ids() == expected


def test_but_not_for_ever(world) -> None:
    world.submit()
    world.coordinate()
    world.lose("d0")
    place = world.question()
    world.now += 31
    world.refuse(place, "no_decode_node", retry_after_s=5.0)
    assert world.done().code == "no_decode_node"


def test_the_wait_for_a_new_node_ends_with_what_the_coordinator_said(world) -> None:
    """The tick that ends the wait comes before the coordinator's next answer."""
    world.submit()
    world.coordinate()
    world.lose("d0")
    for _ in range(301):
        for place in [m for m in world.to_coordinator if isinstance(m, Place)]:
            world.refuse(place, "no_decode_node", retry_after_s=5.0)
        world.to_coordinator.clear()
        world.tick()
    done = world.done()
    assert (done.code, done.message, done.retry_after_s) == ("no_decode_node", "why", 5.0)


def test_a_refusal_of_an_earlier_attempt_is_not_the_reason_of_a_later_one(world) -> None:
    world.submit()
    world.coordinate()
    world.lose("d0")
    world.refuse(world.question(), "no_decode_node")
    world.add_node("d0")
    world.coordinate()
    world.lose("d0")
    world.tick(31)
    assert world.done().code == "unavailable"
    assert "no coordinator has answered" in world.done().message


def test_late_answers_of_the_coordinator_are_dropped(world) -> None:
    world.submit()
    place = world.question()
    world.coordinate()
    num_sent = len(world.to_nodes)
    world.refuse(place, "no_decode_node")
    world.hear(world.placed(place))
    world.hear(world.placed(msgspec.structs.replace(place, attempt=2)))
    assert len(world.to_nodes) == num_sent
    assert len(world.ledger) == 1


def test_answers_to_an_earlier_question_are_none_to_the_present_one(world) -> None:
    world.submit()
    first = world.question()
    world.coordinate()
    world.lose("d0")
    world.add_node("d0")
    num_sent = len(world.commands(2))
    world.refuse(first, "context_too_long")
    world.hear(world.placed(first))
    assert len(world.ledger) == 1 and len(world.commands(2)) == num_sent == 0
    assert world.question().attempt == 2


@pytest.mark.parametrize("silent", ["p0", "d0"])
def test_a_node_out_of_reach_costs_the_attempt_and_the_client_reads_why(world, silent) -> None:
    """The coordinator hears the node; nothing that this gateway sends to it arrives."""
    world.submit()
    address = world.nodes[silent].ref.control_address
    for attempt in (1, 2, 3):
        assert world.question().attempt == attempt
        world.coordinate()
        for seconds in (0, 5, 4.9):
            world.tick(seconds)
            world.to_nodes = [(r, m) for r, m in world.to_nodes if r.node_id != silent]
            world.deliver()
        assert world.to_coordinator == []
        world.tick(0.2)
        world.deliver()  # the decode node has nothing of it
    done = world.done()
    assert (done.code, done.timeline.num_attempts) == ("node_failed", 3)
    assert f"node {silent} has not answered at {address} for 10 s" in done.message
    assert "--advertised-host" in done.message
    assert "firewall" in done.message


def test_of_two_nodes_out_of_reach_the_decode_node_is_named(world) -> None:
    world.submit()
    world.coordinate()
    world.tick(10.1)
    assert (world.question().attempt, world.question().avoid) == (2, ("d0",))


def test_a_node_that_dies_with_a_cancel_on_its_way_is_hung_up_on_in_the_end(world) -> None:
    world.submit()
    world.coordinate()
    world.do(world.ledger.cancel(b"client", (1).to_bytes(16, "big"), world.now))
    dead = world.lose("d0")
    world.closed.clear()
    world.tick(61)
    assert [(c.node_id, c.epoch) for c in world.closed] == [("d0", dead.ref.epoch)]


def test_nodes_that_answered_may_take_their_time(world) -> None:
    world.submit()
    world.coordinate()
    world.deliver()
    world.tick(60)
    assert world.to_coordinator == []
    assert len(world.ledger) == 1


def test_an_answer_that_comes_late_but_in_time_is_enough(world, expected) -> None:
    world.submit()
    world.coordinate()
    world.to_nodes.clear()
    world.tick(9.5)
    world.deliver()
    world.tick(1)
    world.run(12)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 1
