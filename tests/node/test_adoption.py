"""Grants without a command: their gateway is asked; and what a decode node answers in doubt."""

from types import SimpleNamespace
from typing import Any

import pytest

from decode_node.adoption import ASK_AFTER_S, ASK_AGAIN_S, PATIENCE_S, Adoptions
from kv_transfer.arrivals import ArrivalPhase
from node.core import FromPeer, GatewaySilent
from tandem.messages.serving import Adopt, Adopted, AskAttempt

GATEWAY, OTHER = b"gateway/g/1", b"gateway/h/1"
KEY = ((1).to_bytes(16, "big"), 1)


def ticked(
    adoptions: Adoptions, begin: float, end: float, *, is_here: bool = True
) -> tuple[list[tuple[bytes, Adopt]], list[tuple[bytes, int]]]:
    questions, silent = [], []
    for i in range(int((end - begin) * 10)):
        more, gone = adoptions.tick(begin + i / 10, lambda _: is_here)
        questions += more
        silent += gone
    return questions, silent


def test_nobody_is_asked_while_the_command_is_mostly_under_way() -> None:
    adoptions = Adoptions()
    adoptions.found(KEY, GATEWAY)
    assert ticked(adoptions, 0.0, ASK_AFTER_S) == ([], [])
    adoptions.settled(KEY)
    assert ticked(adoptions, 1.0, 60.0) == ([], [])


def test_a_silent_gateway_is_asked_again_and_then_given_up() -> None:
    adoptions = Adoptions()
    adoptions.found(KEY, GATEWAY)
    questions, silent = ticked(adoptions, 0.0, ASK_AFTER_S + PATIENCE_S - 0.5)
    assert {g for g, _ in questions} == {GATEWAY}
    assert len(questions) >= 4
    assert silent == []
    _, silent = ticked(adoptions, ASK_AFTER_S + PATIENCE_S - 0.5, 12.0)
    assert silent == [KEY]
    assert ticked(adoptions, 12.0, 60.0) == ([], [])


def test_a_wanted_attempt_is_asked_for_again_later() -> None:
    adoptions = Adoptions()
    adoptions.found(KEY, GATEWAY)
    ticked(adoptions, 0.0, 1.0)
    assert not adoptions.answered(GATEWAY, KEY, is_wanted=True)
    assert ticked(adoptions, 1.0, ASK_AGAIN_S) == ([], [])
    questions, silent = ticked(adoptions, ASK_AGAIN_S, ASK_AGAIN_S + 2.0)
    assert (len(questions) > 0, silent) == (True, [])


def test_answers_of_strangers_and_for_strangers_change_nothing() -> None:
    adoptions = Adoptions()
    adoptions.found(KEY, GATEWAY)
    assert not adoptions.answered(OTHER, KEY, is_wanted=False)
    assert not adoptions.answered(GATEWAY, (KEY[0], 2), is_wanted=False)
    assert adoptions.answered(GATEWAY, KEY, is_wanted=False)


def test_what_is_over_is_forgotten() -> None:
    adoptions = Adoptions()
    adoptions.found(KEY, GATEWAY)
    assert ticked(adoptions, 0.0, 30.0, is_here=False) == ([], [])
    assert len(adoptions) == 0


def orphan(pair: SimpleNamespace, **options: Any) -> tuple[Any, bytes]:
    """A world whose decode node never hears the command of a request."""
    world = pair.World(**options)
    return world, world.submit(1, 100, 30, with_decode=False)


def seconds(world: Any, duration_s: float) -> None:
    for _ in range(int(duration_s / 0.05)):
        world.turn()


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_kv_that_nobody_wants_is_given_up(pair: SimpleNamespace, loss: float) -> None:
    world, request_id = orphan(pair, loss=loss)
    world.unwanted.add(request_id)
    world.run_until(lambda: world.num_adopts)
    seconds(world, 10.0)
    assert world.d.core.load(0).num_requests == 0
    world.cancel(request_id)
    world.run()
    world.assert_no_leak()


def test_kv_of_a_wanted_attempt_waits_for_its_command(pair: SimpleNamespace) -> None:
    world, request_id = orphan(pair)
    seconds(world, 25.0)
    assert 2 <= world.num_adopts <= 4
    world.submit(1, 100, 30)
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 100, 30))
    world.assert_no_leak()


def test_a_silent_gateways_kv_goes_and_a_late_command_is_refused(pair: SimpleNamespace) -> None:
    world, _ = orphan(pair)
    world.answers_adopt = False
    seconds(world, 9.0)
    assert world.d.ledger.counts().ready == 7
    seconds(world, 3.0)
    assert world.d.ledger.counts().free == 64
    world.submit(1, 100, 30)
    seconds(world, 1.0)
    assert [(r.command, r.code) for r in world.refusals] == [("decode", "unavailable")]


def test_a_gateway_known_to_be_silent_is_not_waited_for(pair: SimpleNamespace) -> None:
    world, _ = orphan(pair)
    world.run_until(lambda: world.d.ledger.counts().ready)
    world.tell("d", GatewaySilent(GATEWAY, False))
    assert world.d.ledger.counts().free == 64
    assert world.d.ledger.num_promised == 0


def test_a_queued_reserve_that_nobody_wants_is_taken_back(pair: SimpleNamespace) -> None:
    world, request_id = orphan(pair, decode_pages=12)
    first = world.submit(2, 60, 120, local=True)
    world.unwanted.add(request_id)
    world.run_until(lambda: world.num_adopts)
    seconds(world, 1.0)
    assert world.d.decode._transfers.live() == {}
    world.cancel(request_id)
    world.run()
    assert pair.stream(world, first) == list(pair.expected(2, 60, 120))
    world.assert_no_leak()


def ask(world: Any, request_id: bytes) -> bool:
    world.tell("d", FromPeer(GATEWAY, AskAttempt(request_id=request_id, attempt=1)))
    has_kv: bool = world.statuses.pop().has_kv
    return has_kv


def test_in_doubt_a_decode_node_tells_whether_the_attempt_goes_on(pair: SimpleNamespace) -> None:
    world = pair.World(copy_chance=0.3)
    request_id = world.submit(1, 100, 30)
    phase = world.d.decode._transfers.phase
    assert not ask(world, request_id)
    world.run_until(lambda: phase((request_id, 1)) is ArrivalPhase.OPEN)
    assert not ask(world, request_id)
    world.run_until(lambda: phase((request_id, 1)) is ArrivalPhase.VERIFYING)
    assert ask(world, request_id)  # all of it is here
    world.run_until(lambda: world.d.core.load(0).num_decode_running)
    assert ask(world, request_id)
    assert not ask(world, b"x" * 16)
    world.run()
    assert not ask(world, request_id)  # the gateway has its end already


def test_an_end_that_the_gateway_has_not_heard_counts_as_kv(pair: SimpleNamespace) -> None:
    world = pair.World()
    request_id = world.submit(1, 40, 3)
    world.run_until(lambda: world.d.state.emitter.has_ending(GATEWAY, (request_id, 1)))
    assert ask(world, request_id)
    world.run()


def test_kv_without_a_command_counts_as_kv(pair: SimpleNamespace) -> None:
    world, request_id = orphan(pair)
    world.run_until(lambda: world.d.ledger.counts().ready)
    assert ask(world, request_id)
    world.tell("d", FromPeer(GATEWAY, Adopted(request_id=request_id, attempt=1, is_wanted=False)))
    assert not ask(world, request_id)
    assert world.d.ledger.counts().free == 64


def test_both_nodes_tell_whether_an_attempt_is_with_them(pair: SimpleNamespace) -> None:
    world = pair.World(copy_chance=0.3)
    request_id = world.submit(1, 100, 30)

    def is_here(name: str) -> bool:
        world.tell(name, FromPeer(GATEWAY, AskAttempt(request_id=request_id, attempt=1)))
        status: bool = world.statuses.pop().is_here
        return status

    assert not is_here("p") and not is_here("d")
    world.turn()
    assert is_here("p") and is_here("d")
    world.run()
    assert not is_here("p") and not is_here("d")
