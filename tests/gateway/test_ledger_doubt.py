"""A prefill node fails: before the ledger starts over it asks the decode node for the KV."""

import pytest

from tandem.messages.serving import Adopt, Adopted, AskAttempt, AttemptStatus, CommandRefused

REQUEST_ID = (1).to_bytes(16, "big")


def status(has_kv: bool, attempt: int = 1) -> AttemptStatus:
    return AttemptStatus(request_id=REQUEST_ID, attempt=attempt, has_kv=has_kv)


@pytest.fixture
def doubted(world):
    """Token 0 has come from the prefill node, which is dead now; nothing of the decode node."""
    world.submit()
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["p0"], world.tokens(1, 0, [10]))
    world.lose("p0")
    assert [name for name, _ in world.sent(AskAttempt)] == ["d0"]
    assert world.to_coordinator == []
    return world


def test_with_its_kv_at_the_decode_node_the_attempt_goes_on(doubted) -> None:
    doubted.say(doubted.nodes["d0"], status(has_kv=True))
    doubted.tick(9)
    assert doubted.to_coordinator == []
    doubted.emit(
        doubted.nodes["d0"], doubted.tokens(1, 0, [10, 11]), doubted.ending(1, 2, "length")
    )
    assert doubted.ids() == [10, 11]
    assert doubted.done().timeline.num_attempts == 1
    assert not doubted.cancels()


def test_tokens_of_the_decode_node_are_an_answer(doubted) -> None:
    doubted.emit(doubted.nodes["d0"], doubted.tokens(1, 0, [10]))
    doubted.to_nodes.clear()
    doubted.tick(2)
    assert doubted.sent(AskAttempt) == []
    assert doubted.to_coordinator == []


def test_the_answer_after_the_tokens_changes_nothing(doubted) -> None:
    doubted.emit(doubted.nodes["d0"], doubted.tokens(1, 0, [10]))
    num_dropped = doubted.ledger.num_dropped
    doubted.say(doubted.nodes["d0"], status(has_kv=False))
    assert doubted.ledger.num_dropped == num_dropped + 1
    assert doubted.to_coordinator == []


def test_without_its_kv_another_attempt_starts_at_once(doubted) -> None:
    doubted.say(doubted.nodes["d0"], status(has_kv=False))
    place = doubted.question()
    assert (place.attempt, place.num_output_tokens, place.num_deaths) == (2, 1, 1)
    assert place.avoid == ("p0",)
    assert doubted.cancels() == {("p0", 1), ("d0", 1)}


def test_tokens_after_the_answer_are_of_a_past_attempt(doubted) -> None:
    doubted.say(doubted.nodes["d0"], status(has_kv=False))
    doubted.emit(doubted.nodes["d0"], doubted.tokens(1, 1, [99]))
    assert doubted.ids() == [10]


def test_a_decode_node_is_asked_again_and_then_not_waited_for(doubted) -> None:
    doubted.to_nodes.clear()
    doubted.tick(0.6)
    assert [name for name, _ in doubted.sent(AskAttempt)] == ["d0"]
    doubted.tick(0.8)
    assert doubted.to_coordinator == []
    doubted.tick(0.2)
    assert doubted.question().attempt == 2
    doubted.to_nodes.clear()
    doubted.tick(5)
    assert doubted.sent(AskAttempt) == []


@pytest.mark.parametrize("is_first", [True, False])
def test_a_decode_node_that_dies_too_ends_the_attempt(doubted, is_first) -> None:
    if not is_first:
        doubted.say(doubted.nodes["d0"], status(has_kv=True))
    doubted.lose("d0")
    place = doubted.question()
    assert (place.attempt, place.num_deaths) == (2, 1)
    assert "d0" in place.avoid


def test_a_decode_node_that_fails_meanwhile_is_not_to_blame(doubted) -> None:
    doubted.emit(doubted.nodes["d0"], doubted.ending(1, 0, "failed", code="transfer_failed"))
    place = doubted.question()
    assert (place.avoid, place.num_deaths) == (("p0",), 1)


def test_the_deadline_ends_a_request_in_doubt(world) -> None:
    world.submit(deadline_s=1.0)
    world.coordinate()
    world.lose("p0")
    world.tick(1.1)
    assert world.done().code == "deadline_exceeded"


def test_a_stranger_or_the_prefill_node_cannot_answer(doubted) -> None:
    doubted.say(doubted.add_node("x0"), status(has_kv=False))
    doubted.say(doubted.add_node("p0"), status(has_kv=False))
    doubted.say(doubted.nodes["d0"], status(has_kv=False, attempt=2))
    assert doubted.to_coordinator == []


def test_a_prefill_node_that_gives_up_is_doubted_like_a_dead_one(world) -> None:
    world.submit()
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["p0"], world.ending(1, 0, "failed", code="transfer_failed"))
    assert [name for name, _ in world.sent(AskAttempt)] == ["d0"]
    world.say(world.nodes["p0"], status(has_kv=False))  # it was not asked
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10]))
    world.tick(60)
    assert world.to_coordinator == []


def test_a_prefill_node_that_never_began_is_not(world) -> None:
    world.submit()
    world.coordinate()
    refused = CommandRefused(
        command="prefill", request_id=REQUEST_ID, attempt=1, code="unavailable", message="no"
    )
    world.say(world.nodes["p0"], refused)
    assert world.sent(AskAttempt) == []
    assert world.question().attempt == 2


# --- decode nodes ask, too --------------------------------------------------------------------


def adopt(world, node, attempt: int = 1) -> bool:
    """What a node is told about an attempt that it has pages for."""
    world.say(node, Adopt(request_id=REQUEST_ID, attempt=attempt))
    name, answer = world.sent(Adopted)[-1]
    assert (name, answer.attempt) == (node.ref.node_id, attempt)
    return answer.is_wanted


def test_pages_are_wanted_by_the_current_attempt_at_its_decode_node(world) -> None:
    node = world.nodes["d0"]
    assert not adopt(world, node)
    world.submit()
    assert not adopt(world, node)
    world.coordinate()
    assert adopt(world, node)
    assert not adopt(world, node, attempt=2)
    assert not adopt(world, world.nodes["p0"])
    assert not adopt(world, world.add_node("x0"))
    world.run(12)
    assert world.done().reason == "length"
    assert not adopt(world, node)


def test_pages_of_a_past_attempt_or_a_past_process_are_not_wanted(world) -> None:
    world.submit()
    world.coordinate()
    dead = world.lose("d0")
    world.add_node("d0")
    world.coordinate()
    assert not adopt(world, dead)
    assert not adopt(world, dead, attempt=2)
    assert not adopt(world, world.nodes["d0"])
    assert adopt(world, world.nodes["d0"], attempt=2)


@pytest.fixture
def decoding(world):
    """Two tokens have come from the decode node; then it says nothing more."""
    world.submit()
    world.coordinate()
    world.deliver()
    world.emit(world.nodes["d0"], world.tokens(1, 0, [10, 11]))
    world.to_nodes.clear()
    world.tick(9)
    world.num_asked_early = len(world.sent(AskAttempt))
    world.tick(2)
    return world


def test_a_decode_node_that_says_nothing_is_asked(decoding) -> None:
    assert decoding.num_asked_early == 0
    assert [name for name, _ in decoding.sent(AskAttempt)] == ["d0"]


def test_a_silent_decode_node_that_has_the_request_is_waited_for(decoding) -> None:
    for _ in range(5):
        decoding.say(decoding.nodes["d0"], status(has_kv=True))
        decoding.tick(9)
        assert decoding.to_coordinator == []
        decoding.tick(2)
    decoding.emit(decoding.nodes["d0"], decoding.tokens(1, 2, [12]))
    assert decoding.ids() == [10, 11, 12]


def test_a_decode_node_that_forgot_a_request_loses_it(decoding) -> None:
    decoding.say(decoding.nodes["d0"], status(has_kv=False))
    place = decoding.question()
    assert (place.attempt, place.num_output_tokens, place.num_deaths) == (2, 2, 0)


def test_a_decode_node_that_never_answers_loses_the_request(decoding) -> None:
    decoding.tick(8)
    assert decoding.to_coordinator == []
    decoding.tick(2)
    assert decoding.question().attempt == 2
    assert ("d0", 1) in decoding.cancels()


def test_tokens_end_the_doubt_about_a_silent_node(decoding) -> None:
    decoding.emit(decoding.nodes["d0"], decoding.tokens(1, 2, [12]))
    decoding.tick(9.5)
    assert decoding.to_coordinator == []


@pytest.fixture
def queued(world):
    """Both nodes took their commands; nothing has been computed yet, and nobody says a word."""
    world.submit()
    world.coordinate()
    world.deliver()
    world.to_nodes.clear()
    world.tick(10)
    world.num_asked_early = len(world.sent(AskAttempt))
    world.tick(1)
    return world


def test_both_nodes_of_a_prompt_that_nobody_speaks_of_are_asked(queued) -> None:
    assert queued.num_asked_early == 0
    assert sorted(name for name, _ in queued.sent(AskAttempt)) == ["d0", "p0"]


def here(is_here: bool) -> AttemptStatus:
    return AttemptStatus(request_id=REQUEST_ID, attempt=1, has_kv=False, is_here=is_here)


def test_a_prompt_that_its_nodes_have_waits_on(queued) -> None:
    for _ in range(4):
        queued.say(queued.nodes["p0"], here(True))
        queued.say(queued.nodes["d0"], here(True))
        queued.tick(9)
        assert queued.to_coordinator == []
        queued.tick(2)
    assert queued.sent(AskAttempt)


@pytest.mark.parametrize("forgetful", ["p0", "d0"])
def test_a_prompt_that_one_of_its_nodes_forgot_starts_again(queued, forgetful) -> None:
    for name in ("p0", "d0"):
        assert queued.to_coordinator == []
        queued.say(queued.nodes[name], here(name != forgetful))
    assert queued.question().attempt == 2


def test_a_prefill_node_may_have_forgotten_what_it_handed_over(queued) -> None:
    queued.say(queued.nodes["p0"], here(False))
    queued.say(queued.nodes["d0"], status(has_kv=True))
    queued.tick(5)
    assert queued.to_coordinator == []


def test_a_silent_node_of_a_prompt_is_given_up(queued) -> None:
    queued.say(queued.nodes["d0"], here(True))
    queued.tick(11)
    place = queued.question()
    assert (place.attempt, place.avoid) == (2, ("p0",))
