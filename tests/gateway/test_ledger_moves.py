"""Running requests leave a draining node by a new attempt, once that is placed."""

import pytest

from tandem.messages.placement import NodeDown, Place
from tandem.messages.serving import AskAttempt, AttemptStatus, Cancel, CommandRefused

REQUEST_ID = (1).to_bytes(16, "big")


def questions(world) -> list[Place]:
    return [m for m in world.to_coordinator if isinstance(m, Place)]


@pytest.fixture
def leaving(world):
    """A request that runs on d0, which drains; d1 is there. The coordinator is asked."""
    world.submit()
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10]))
    world.to_nodes.clear()
    world.add_node("d1")
    world.welcome("d0")
    world.tick()
    return world


def test_a_running_request_asks_for_a_place_and_goes_on(leaving) -> None:
    place = leaving.question()
    assert (place.attempt, place.move_from, place.num_output_tokens) == (2, "d0", 1)
    assert (place.num_deaths, place.avoid) == (0, ())
    leaving.emit(leaving.nodes["d0"], leaving.tokens(1, 1, [11]))
    assert leaving.ids() == [10, 11]


def test_placed_the_new_attempt_takes_over_where_the_client_is(leaving) -> None:
    leaving.emit(leaving.nodes["d0"], leaving.tokens(1, 1, [11]))
    leaving.coordinate(decode="d1")
    commands = leaving.commands(2)
    assert commands["Prefill"][0] == "d0"
    assert commands["Prefill"][1].decode == leaving.nodes["d1"].ref
    assert commands["Decode"][0] == "d1"
    assert commands["Decode"][1].spec.output_ids.array.tolist() == [10, 11]
    assert leaving.sent(Cancel) == [], "its successor ends the old attempt"
    leaving.emit(leaving.nodes["d0"], leaving.tokens(1, 2, [77]), leaving.ending(1, 3, "stop"))
    assert leaving.ids() == [10, 11], "tokens of the old attempt are void"
    assert leaving.last_ack().ended == ((REQUEST_ID, 1), (REQUEST_ID, 1))
    leaving.emit(leaving.nodes["d0"], leaving.tokens(2, 2, [12]))
    leaving.emit(
        leaving.nodes["d1"], leaving.tokens(2, 2, [12, 13]), leaving.ending(2, 4, "length")
    )
    assert leaving.ids() == [10, 11, 12, 13]
    done = leaving.done()
    assert (done.timeline.num_attempts, done.timeline.decode_node) == (2, "d1")


def test_a_moved_stream_is_whole(make_world) -> None:
    world = make_world()
    world.submit(params={"max_tokens": 20})
    world.run(6)
    world.add_node("d1")
    world.welcome("d0")
    for _ in range(30):
        world.tick()
        world.coordinate(decode="d1")
        world.run(1)
    undisturbed = make_world()
    undisturbed.submit(params={"max_tokens": 20})
    undisturbed.run(30)
    assert world.ids() == undisturbed.ids()
    assert world.text() == undisturbed.text()
    assert world.done().timeline.num_attempts == 2
    assert not world.nodes["d0"].specs


def test_what_waited_behind_a_gap_is_void(leaving) -> None:
    leaving.emit(leaving.nodes["d0"], leaving.tokens(1, 2, [77]))
    leaving.coordinate(decode="d1")
    leaving.emit(leaving.nodes["d1"], leaving.tokens(2, 1, [11, 12]))
    assert leaving.ids() == [10, 11, 12]


def test_refused_it_stays_and_asks_again_later(leaving) -> None:
    leaving.refuse(leaving.question(), "no_decode_node")
    leaving.to_coordinator.clear()
    leaving.tick(2.9)
    assert questions(leaving) == []
    leaving.emit(leaving.nodes["d0"], leaving.tokens(1, 1, [11]))
    assert leaving.ids() == [10, 11]
    leaving.tick(0.2)
    place = leaving.question()
    assert (place.attempt, place.move_from) == (3, "d0")
    leaving.coordinate(decode="d1")
    assert leaving.commands(3)["Decode"][0] == "d1"


@pytest.mark.parametrize("is_placed", [True, False])
def test_late_answers_to_a_question_that_was_refused_are_dropped(leaving, is_placed) -> None:
    place = leaving.question()
    answer = leaving.placed(place, "d0", "d1")
    leaving.refuse(place, "no_decode_node")
    num_dropped = leaving.ledger.num_dropped
    if is_placed:
        leaving.hear(answer)
    else:
        leaving.refuse(place, "no_decode_node")
    assert leaving.ledger.num_dropped == num_dropped + 1
    assert leaving.to_nodes == []


def test_the_old_attempt_may_end_before_the_answer(leaving) -> None:
    answer = leaving.placed(leaving.question(), "d0", "d1")
    leaving.emit(leaving.nodes["d0"], leaving.ending(1, 1, "stop"))
    assert leaving.done().reason == "stop"
    num_sent, num_dropped = len(leaving.to_nodes), leaving.ledger.num_dropped
    leaving.hear(answer)
    assert (len(leaving.to_nodes), leaving.ledger.num_dropped) == (num_sent, num_dropped + 1)
    leaving.coordinate()
    leaving.to_coordinator.clear()
    leaving.tick(5)
    assert questions(leaving) == []


def test_an_end_that_misses_tokens_is_waited_for_where_it_is(leaving) -> None:
    """What is missing comes again from the old node only."""
    leaving.refuse(leaving.question(), "no_decode_node")
    leaving.to_coordinator.clear()
    leaving.emit(leaving.nodes["d0"], leaving.ending(1, 3, "stop"))
    leaving.tick(5)
    assert questions(leaving) == []


@pytest.mark.parametrize("how", ["dies", "fails"])
def test_the_old_attempt_may_fail_before_the_answer(leaving, how) -> None:
    answer = leaving.placed(leaving.question(), "d0", "d1")
    if how == "dies":
        leaving.lose("d0")
    else:
        leaving.emit(leaving.nodes["d0"], leaving.ending(1, 1, "failed"))
    place = questions(leaving)[-1]
    assert (place.attempt, place.move_from, place.num_deaths) == (3, None, 0)
    num_dropped = leaving.ledger.num_dropped
    leaving.hear(answer)
    assert leaving.ledger.num_dropped == num_dropped + 1
    assert leaving.commands(2) == {}
    leaving.to_coordinator = [place]
    leaving.coordinate(decode="d1")
    leaving.emit(leaving.nodes["d1"], leaving.tokens(3, 1, [11]), leaving.ending(3, 2, "stop"))
    assert leaving.ids() == [10, 11]
    assert leaving.done().timeline.num_attempts == 2


@pytest.mark.parametrize("how", ["dies", "fails", "refuses"])
def test_a_failed_move_fails_over_and_is_held_against_nobody(leaving, how) -> None:
    leaving.coordinate(decode="d1")
    node = leaving.nodes["d1"]
    match how:
        case "dies":
            leaving.deliver()
            leaving.lose("d1")
        case "fails":
            leaving.emit(node, leaving.ending(2, 1, "failed", code="incompatible_nodes"))
        case "refuses":
            refused = CommandRefused(
                command="decode",
                request_id=REQUEST_ID,
                attempt=2,
                code="too_few_pages",
                message="full",
            )
            leaving.say(node, refused)
    place = leaving.question()
    assert (place.attempt, place.move_from, place.num_deaths) == (3, None, 0)
    assert place.avoid == ("d1",)
    assert ("d0", 2) in leaving.cancels(), "the old attempt ends with the new one's cancel"
    for attempt in (3, 4, 5):
        leaving.coordinate()
        leaving.emit(leaving.nodes["p0"], leaving.ending(attempt, 1, "failed"))
        leaving.emit(leaving.nodes["d0"], leaving.ending(attempt, 1, "failed"))
        leaving.tick()
    assert leaving.done().timeline.num_attempts == 5


def test_a_draining_node_that_leaves_when_the_kv_is_handed_over_is_not_missed(leaving) -> None:
    leaving.coordinate(decode="d1")
    leaving.emit(leaving.nodes["d0"], leaving.tokens(2, 1, [11]))
    leaving.lose("d0")
    assert [name for name, _ in leaving.sent(AskAttempt)] == ["d1"]
    has_kv = AttemptStatus(request_id=REQUEST_ID, attempt=2, has_kv=True)
    leaving.say(leaving.nodes["d1"], has_kv)
    leaving.emit(leaving.nodes["d1"], leaving.tokens(2, 1, [11]), leaving.ending(2, 2, "stop"))
    assert leaving.done().timeline.num_attempts == 2


def test_a_place_on_a_node_that_is_down_or_the_draining_one_is_none(leaving) -> None:
    place = leaving.question()
    leaving.hear(leaving.placed(place, "p0", "d0"))
    assert leaving.to_nodes == []
    leaving.to_coordinator.clear()
    leaving.tick(3.1)
    answer = leaving.placed(leaving.question(), "d0", "d1")
    leaving.lose("d1")
    leaving.hear(answer)
    assert leaving.to_nodes == []
    leaving.emit(leaving.nodes["d0"], leaving.tokens(1, 1, [11]))
    assert leaving.ids() == [10, 11]


def test_placed_without_the_draining_node_that_is_told_to_stop(leaving) -> None:
    leaving.hear(leaving.placed(leaving.question(), None, "d1"))
    assert leaving.cancels() == {("d0", 1)}
    assert leaving.commands(2)["Decode"][0] == "d1"


def test_a_node_that_drains_no_more_keeps_its_requests(leaving) -> None:
    answer = leaving.placed(leaving.question(), "d0", "d1")
    leaving.welcome()
    leaving.tick()
    leaving.hear(answer)
    assert leaving.to_nodes == []
    leaving.to_coordinator.clear()
    leaving.tick(10)
    assert questions(leaving) == []


def test_only_requests_that_decode_there_are_moved(world) -> None:
    world.submit(1)
    world.coordinate()
    world.deliver()
    world.submit(2)
    world.add_node("d1")
    world.coordinate(decode="d1")
    world.emit(world.nodes["d1"], world.tokens(1, 0, [10], number=2))
    world.emit(world.nodes["p0"], world.tokens(1, 0, [10], number=1))
    world.welcome("d0", "p0")
    world.tick()
    assert questions(world) == []
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10], number=1))
    world.tick()
    assert [(p.request_id[-1], p.move_from) for p in questions(world)] == [(1, "d0")]


def test_four_move_at_once(world) -> None:
    for number in range(1, 8):
        world.submit(number)
    world.coordinate()
    world.deliver()
    for number in range(1, 8):
        world.emit(world.nodes["d0"], world.tokens(1, 0, [10], number=number))
    world.add_node("d1")
    world.welcome("d0")
    world.tick()
    asked = questions(world)
    assert [p.request_id[-1] for p in asked] == [1, 2, 3, 4]
    world.to_coordinator.clear()
    world.hear(world.placed(asked[0], "d0", "d1"))
    world.refuse(asked[1], "no_decode_node")
    world.tick()
    assert [p.request_id[-1] for p in questions(world)] == [5], "the placed one is on its way"
    world.to_coordinator.clear()
    world.emit(world.nodes["d1"], world.tokens(2, 1, [11], number=1))
    world.do(world.ledger.cancel(b"client", (3).to_bytes(16, "big"), world.now))
    world.to_coordinator.clear()
    world.tick()
    assert [p.request_id[-1] for p in questions(world)] == [6, 7]


def test_the_old_nodes_death_after_the_takeover_is_the_prefill_nodes(leaving) -> None:
    """And if the new decode node has nothing, that is no death of the request."""
    leaving.coordinate(decode="d1")
    leaving.deliver()
    epoch = leaving.nodes["d0"].ref.epoch
    leaving.welcome()
    leaving.hear(NodeDown(node_id="d0", epoch=epoch, reason="lost"))
    none = AttemptStatus(request_id=REQUEST_ID, attempt=2, has_kv=False)
    leaving.say(leaving.nodes["d1"], none)
    place = leaving.question()
    assert (place.attempt, place.num_deaths, place.avoid) == (3, 0, ("d0",))


def test_a_question_for_a_move_is_not_repeated_when_the_request_waits_for_its_turn(leaving) -> None:
    for number in (2, 3, 4):
        leaving.submit(number)
    leaving.to_coordinator = [m for m in questions(leaving) if m.move_from is None]
    leaving.coordinate()
    for number in (2, 3, 4):
        leaving.emit(leaving.nodes["d0"], leaving.ending(1, 0, "failed", number=number))
    leaving.emit(leaving.nodes["d0"], leaving.ending(1, 1, "failed", number=1))
    leaving.to_coordinator.clear()
    leaving.tick(5)
    assert {p.request_id[-1] for p in questions(leaving)} == {2, 3, 4}


def test_a_failed_move_waits_for_no_turn(leaving) -> None:
    leaving.coordinate(decode="d1")
    for number in range(2, 7):
        leaving.submit(number)
    leaving.coordinate()
    for number in range(2, 7):
        leaving.emit(leaving.nodes["d0"], leaving.ending(1, 0, "failed", number=number))
    leaving.emit(leaving.nodes["d1"], leaving.ending(2, 1, "failed"))
    assert {p.request_id[-1] for p in questions(leaving)} == {1, 2, 3, 4}
