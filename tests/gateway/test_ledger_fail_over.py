"""After failures: whom the coordinator is told to avoid, deaths, poison, turns, the deadline."""

import pytest

from tandem.messages.common import PrefillReport
from tandem.messages.placement import Place


def die(world, node_id: str = "d0") -> None:
    """A node dies with what it has, and starts again."""
    world.lose(node_id)
    world.add_node(node_id)


def test_a_first_attempt_avoids_nobody(world) -> None:
    world.submit(tenant="alice", tenant_weight=2.5)
    place = world.question()
    assert (place.avoid, place.num_deaths, place.move_from) == ((), 0, None)
    assert (place.tenant, place.tenant_weight) == ("alice", 2.5)
    world.coordinate()
    assert {m.spec.tenant for _, m in world.to_nodes} == {"alice"}


def test_a_fail_over_names_all_who_failed_once(world) -> None:
    world.submit()
    world.add_node("d1")
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["d0"], world.ending(1, 0, "failed"))
    assert (world.question().avoid, world.question().num_deaths) == (("d0",), 0)
    world.coordinate(decode="d1")
    world.deliver()
    world.lose("d1")
    assert (world.question().avoid, world.question().num_deaths) == (("d0", "d1"), 1)
    world.add_node("d1")
    world.coordinate(decode="d1")
    world.deliver()
    world.lose("d1")
    assert (world.question().avoid, world.question().num_deaths) == (("d0", "d1"), 2)


def test_what_is_avoided_is_bounded(world) -> None:
    world.submit()
    for number in range(20):
        name = f"n{number}"
        world.add_node(name)
        world.coordinate(decode=name)
        world.lose(name)  # it never took its command, so this was no death of the request
    place = world.question()
    assert place.avoid == tuple(f"n{number}" for number in range(4, 20))
    assert (place.attempt, place.num_deaths) == (21, 0)


def test_at_the_third_death_a_request_is_suspected(world) -> None:
    world.submit()
    for num_deaths in range(3):
        assert world.question().num_deaths == num_deaths
        world.coordinate()
        world.deliver()
        die(world)
    done = world.done()
    assert (done.code, done.reason, done.timeline.num_attempts) == ("suspected_poison", "failed", 3)
    assert "3 times" in done.message
    assert "alone" in done.message
    assert world.to_coordinator[-1].reason == "failed"


def test_deaths_do_not_use_up_the_three_failures(world, expected) -> None:
    world.submit()
    for attempt, kind in enumerate(("death", "failure", "death", "failure"), start=1):
        world.coordinate()
        world.deliver()
        if kind == "death":
            die(world)
        else:
            world.emit(world.nodes["d0"], world.ending(attempt, 0, "failed"))
    world.run(20)
    assert world.ids() == expected
    assert world.done().timeline.num_attempts == 5


def test_a_node_that_was_asked_to_leave_is_no_death(world) -> None:
    world.submit()
    for _ in range(4):
        world.coordinate()
        world.deliver()
        world.welcome("d0")
        die(world)
        world.welcome()
    assert (world.question().attempt, world.question().num_deaths) == (5, 0)


@pytest.mark.parametrize("code", ["no_decode_node", "overloaded", "rate_limited"])
def test_who_ran_once_is_not_turned_away_by_a_passing_refusal(world, expected, code) -> None:
    world.submit()
    world.coordinate()
    world.run(2)
    world.lose("d0")
    world.refuse(world.question(), code, retry_after_s=1.0)
    assert len(world.ledger) == 1
    world.add_node("d0")
    world.tick(2.5)
    world.run(20)
    assert world.ids() == expected


def test_but_who_did_not_is(world) -> None:
    world.submit()
    world.refuse(world.question(), "overloaded", retry_after_s=1.0)
    assert (world.done().code, world.done().retry_after_s) == ("overloaded", 1.0)


def test_a_death_after_the_deadline_is_the_deadlines_end(world) -> None:
    world.submit(deadline_s=5.0)
    world.coordinate()
    world.deliver()
    world.now += 5
    world.lose("d0")
    assert world.done().code == "deadline_exceeded"


def test_the_deadline_wins_over_suspicion(world) -> None:
    world.submit(deadline_s=5.0)
    for seconds in (1, 1, 4):
        world.coordinate()
        world.deliver()
        world.now += seconds
        die(world)
    assert world.done().code == "deadline_exceeded"


def test_what_the_first_attempt_found_cached_is_what_the_user_had(world) -> None:
    world.submit(params={"max_tokens": 4})
    world.coordinate()
    world.run(2)
    die(world)
    world.coordinate()
    world.deliver()
    node, start = world.nodes["d0"], len(world.ids())
    report = PrefillReport(
        node_id="p0", started_after_s=0, first_token_after_s=0, num_cached_tokens=5
    )
    end = world.ending(2, 4, "length", prefill=report)
    world.emit(node, world.tokens(2, start, [10] * (4 - start)), end)
    assert world.done().usage.num_cached_tokens == 2


def test_no_more_than_the_prompt_was_cached(world) -> None:
    world.submit(params={"max_tokens": 1})
    world.coordinate()
    report = PrefillReport(
        node_id="p0", started_after_s=0, first_token_after_s=0, num_cached_tokens=64
    )
    end = world.ending(1, 1, "length", prefill=report)
    world.emit(world.nodes["p0"], world.tokens(1, 0, [10]), end)
    assert world.done().usage.num_cached_tokens == 5


# --- turns ------------------------------------------------------------------------------------


def questions(world) -> set[int]:
    """Numbers of the requests that the coordinator is asked about."""
    places = [m for m in world.to_coordinator if isinstance(m, Place)]
    return {int.from_bytes(place.request_id, "big") for place in places}


def start(world, num_requests: int) -> None:
    for number in range(1, num_requests + 1):
        world.submit(number)
    world.coordinate()
    world.deliver()


def fail_all(world, num_requests: int) -> None:
    endings = [world.ending(1, 0, "failed", number=n + 1) for n in range(num_requests)]
    world.emit(world.nodes["d0"], *endings)


@pytest.mark.parametrize(("num_requests", "most"), [(10, 3), (30, 6)])
def test_retries_take_turns(world, num_requests, most) -> None:
    start(world, num_requests)
    fail_all(world, num_requests)
    assert questions(world) == set(range(1, most + 1))
    world.tick(20)
    assert questions(world) == set(range(1, most + 1))
    assert len(world.ledger) == num_requests, "they wait for their turn, and do not fail"
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["d0"], world.tokens(2, 0, [10], number=1))
    world.tick()
    assert questions(world) == {most + 1}
    world.run(80)
    assert all(world.done(n + 1).reason == "length" for n in range(num_requests))


def test_deaths_do_not_wait_for_turns(world) -> None:
    start(world, 10)
    world.lose("d0")
    assert questions(world) == set(range(1, 11))


def test_a_request_that_ends_leaves_its_turn_to_others(world) -> None:
    start(world, 5)
    fail_all(world, 5)
    for number in (2, 4):  # one in flight, one that waits
        world.do(world.ledger.cancel(b"client", number.to_bytes(16, "big"), world.now))
    world.to_coordinator.clear()
    world.tick()
    assert questions(world) == {5}


def test_the_deadline_ends_who_waits_for_a_turn(world) -> None:
    for number in range(1, 6):
        world.submit(number, deadline_s=2.0 if number == 5 else None)
    world.coordinate()
    world.deliver()
    fail_all(world, 5)
    world.tick(2.1)
    assert world.done(5).code == "deadline_exceeded"


def test_a_death_while_others_wait_their_turn_goes_first(world) -> None:
    start(world, 5)
    world.submit(6)
    world.add_node("d1")
    world.coordinate(decode="d1")
    world.deliver()
    fail_all(world, 5)
    world.lose("d1")
    assert questions(world) == {1, 2, 3, 6}


def test_an_answer_before_the_turn_is_dropped(world) -> None:
    start(world, 5)
    fail_all(world, 5)
    place = next(m for m in world.places if m.request_id == (5).to_bytes(16, "big"))
    num_sent = len(world.to_nodes)
    world.hear(world.placed(place))
    world.refuse(place, "no_decode_node")
    assert len(world.to_nodes) == num_sent
    assert len(world.ledger) == 5


def test_who_waits_for_a_turn_does_not_wait_for_the_coordinator(world) -> None:
    start(world, 5)
    fail_all(world, 5)
    world.coordinate()
    world.deliver()
    world.tick(40)
    assert questions(world) == set()
    assert len(world.ledger) == 5


def test_a_retry_that_fails_goes_to_the_end_of_the_queue(world) -> None:
    start(world, 4)
    fail_all(world, 4)
    world.coordinate()
    world.deliver()
    for number in (1, 2, 3):
        world.emit(world.nodes["d0"], world.ending(2, 0, "failed", number=number))
    assert questions(world) == {4, 1, 2}
