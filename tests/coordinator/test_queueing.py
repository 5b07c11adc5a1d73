"""Questions that wait at the coordinator: in order, bounded, each answered once or let go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.queueing import HeldPlaces
from tandem.messages.placement import Placed, PlaceRefused
from tests.coordinator.conftest import Cluster, make_core


@pytest.fixture
def full(make_cluster) -> Cluster:
    """One slot and no queue on the decode node, taken by request 0; a request ends every second."""
    return fill(make_cluster(max_queued_requests_per_node=1, max_held_requests=4))


def fill(cluster: Cluster) -> Cluster:
    cluster.greet()
    cluster.join("p0", "prefill", num_pages=1000)
    cluster.join("d0", "decode", num_pages=1000, max_num_seqs=1)
    for number in range(100, 110):
        cluster.place(number)
        cluster.end(number)
    cluster.place(0)
    cluster.place(1)
    return cluster


def end(cluster: Cluster, number: int) -> list[int]:
    """A request ends; who was placed then."""
    sent = [message for _, message in cluster.send("gw", cluster.report(number))]
    return [number_of(each) for each in sent if isinstance(each, Placed)]


def number_of(message) -> int:
    return int.from_bytes(message.request_id, "big")


def test_who_can_wait_waits_and_is_placed_when_another_ends(full) -> None:
    assert full.place(2) == []
    assert full.status().num_queued == 1
    assert full.place(2) == []  # asked again
    assert full.status().num_queued == 1
    assert end(full, 0) == [2]
    assert full.status().num_queued == 0
    ((answer,)) = full.place(2)  # the answer got lost
    assert isinstance(answer, Placed)


def test_the_turn_goes_by_priority_then_deadline_then_arrival(full) -> None:
    full.place(2, sla_class="batch")
    full.place(3)
    full.place(4)
    full.place(5, sla_class="batch", priority=7)
    placed = []
    for number in (0, 1, 5, 3):
        placed += end(full, number)
    assert placed == [5, 3, 4, 2]


def test_who_asks_again_keeps_its_turn(full) -> None:
    full.place(2)
    full.place(3)
    assert full.place(2) == []
    assert end(full, 0) == [2]


def test_a_tenant_below_its_share_comes_first(full) -> None:
    full.place(2, tenant="greedy")
    full.place(3, tenant="modest")
    full.core.admission._placements._tenants.add("greedy", 1.0)
    assert end(full, 0)[0] == 3


def test_nobody_passes_those_that_wait(full) -> None:
    assert full.place(2) == []
    full.join("d1", "decode", num_pages=1000, max_num_seqs=1)
    answers = full.place(3)
    assert [number_of(each) for each in answers] == [2, 3]


def test_who_can_no_longer_make_it_is_refused_with_a_time(full) -> None:
    assert full.place(2) == []
    sent = full.pass_time(2.5)
    (refusal,) = [m for _, m in sent if isinstance(m, PlaceRefused)]
    assert (number_of(refusal), refusal.code) == (2, "overloaded")
    assert refusal.retry_after_s is not None and refusal.retry_after_s > 0
    assert full.status().num_queued == 0


def test_who_cannot_make_it_does_not_wait_at_all(make_cluster) -> None:
    """Ten ended in a second, so twenty-one ahead take longer than the two seconds promised."""
    cluster = fill(make_cluster(max_queued_requests_per_node=1))
    answers = [cluster.place(number) for number in range(2, 40)]
    assert answers[:15] == [[]] * 15
    assert all(each[0].code == "overloaded" for each in answers[25:])


def test_the_queue_is_bounded(full) -> None:
    answers = [full.place(number) for number in range(2, 9)]
    assert [len(each) for each in answers] == [0, 0, 0, 0, 1, 1, 1]


def test_without_endings_nobody_knows_how_long_so_nobody_waits(make_cluster) -> None:
    cluster = make_cluster(max_queued_requests_per_node=1)
    cluster.greet()
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode", max_num_seqs=1)
    answers = [cluster.place(number)[0] for number in range(3)]
    assert [type(each).__name__ for each in answers] == ["Placed", "Placed", "PlaceRefused"]


def test_a_later_attempt_a_cancel_and_a_dead_gateway_take_the_question_back(full) -> None:
    full.place(2)
    (answer,) = full.place(2, attempt=2)  # begun work is never shed
    assert answer.attempt == 2
    full.place(3)
    full.end(3)
    assert full.status().num_queued == 0
    full.place(4)
    full.greet(incarnation=10)
    assert full.status().num_queued == 0


def test_a_coordinator_that_restarts_is_asked_again(full) -> None:
    full.place(2)
    fresh = full.restart()
    assert fresh.status().num_queued == 0
    fresh.greet()
    fresh.join("p0", "prefill")
    fresh.join("d0", "decode")
    (answer,) = fresh.place(2)
    assert isinstance(answer, Placed)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 11), st.sampled_from([None, "batch"])),
        st.tuples(st.just("end"), st.integers(0, 11)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 3.0])),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_question_is_lost_or_answered_twice_and_few_wait(steps) -> None:
    cluster = make_core(max_queued_requests_per_node=1, max_held_requests=3)
    fill(cluster)
    open_questions: set[int] = set()
    placed, over = {0, 1}, set()

    def hear(messages) -> None:
        for message in messages:
            if isinstance(message, Placed | PlaceRefused):
                number = number_of(message)
                assert number in open_questions, "nobody asks, or it was answered"
                open_questions.remove(number)
                if isinstance(message, Placed):
                    placed.add(number)

    for step, *what in steps:
        if step == "ask" and what[0] not in over | placed:
            open_questions.add(what[0])
            hear(cluster.place(what[0], sla_class=what[1]))
        elif step == "end" and what[0] not in over:
            open_questions.discard(what[0])  # cancelled, where it was not placed
            placed.discard(what[0])
            over.add(what[0])
            hear(m for _, m in cluster.send("gw", cluster.report(what[0])))
        elif step == "wait":
            hear(m for _, m in cluster.pass_time(what[0]))
            cluster.greet()
        assert cluster.status().num_queued == len(open_questions) <= 3
        assert len(placed) <= 2
    cluster.pass_time(1.0)


@given(st.lists(st.tuples(st.integers(-2, 2), st.floats(0, 9)), max_size=20))
def test_the_order_is_total_and_by_turn(entries) -> None:
    cluster = make_core()
    held = HeldPlaces(100)
    for number, (priority, due_at) in enumerate(entries):
        held.add(cluster.question(number, priority=priority), due_at)
    order = []
    while (first := held.first(lambda request: False)) is not None:
        order.append((-first.request.priority, first.due_at, first.number))
        assert held.remove((9, first.request.request_id)) is first
    assert order == sorted(order)
    assert len(order) == len(entries)
