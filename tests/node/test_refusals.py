"""A refusal is said as often as it is asked for; contradictory commands are refused."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.actions import Reply
from node.core import FromPeer
from node.resident import MAX_CLOSED
from tandem.messages.handoff import Drained
from tandem.messages.serving import Cancel, Decode, Prefill
from tests.node.node_world import GATEWAY, expected, stream


def tell(world: Any, name: str, message: msgspec.Struct) -> list[str]:
    """What the gateway is answered."""
    actions = world.node(name).core.handle(FromPeer(GATEWAY, message), world.now)
    world.execute(world.node(name), actions)
    return [type(a.message).__name__ for a in actions if isinstance(a, Reply) and a.peer == GATEWAY]


def withheld_decode(world: Any, n: int, **options: Any) -> Decode:
    """A request of which only the prefill node knows so far."""
    request_id = world.submit(n, 40, 20, **options)
    command: Decode = world.unanswered.pop(("d", "decode", request_id))
    return command


def test_a_refusal_that_was_lost_is_said_again(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.verify_error = "bits flipped"
    command = withheld_decode(world, 1)
    for _ in range(20):
        world.turn()
    assert tell(world, "d", command) == ["CommandRefused"]
    assert tell(world, "d", command) == ["CommandRefused"]
    world.run()
    world.assert_no_leak()


def test_no_number_of_refusals_turns_an_old_one_into_an_acknowledgement(
    pair: SimpleNamespace,
) -> None:
    world = pair.World()
    world.verify_error = "bits flipped"
    command = withheld_decode(world, 1)
    for _ in range(20):
        world.turn()
    for n in range(2, MAX_CLOSED):
        world.d.decode.local_failed((n.to_bytes(16, "big"), 1), "internal", "x", world.now)
    assert tell(world, "d", command) == ["CommandRefused"]


def as_local(command: Decode) -> Decode:
    return msgspec.structs.replace(command, prefill=None)


def test_a_reserve_for_an_attempt_that_is_prefilled_here_gets_nothing(
    pair: SimpleNamespace,
) -> None:
    """The attempt was placed on one node; another asks for pages for it all the same."""
    world = pair.World()
    command = withheld_decode(world, 1)
    assert tell(world, "d", as_local(command)) == ["CommandAck"]
    for _ in range(400):
        world.turn()
        assert not world.num_copied
    assert stream(world, command.spec.request_id) == list(expected(1, 40, 20))
    world.run()
    world.assert_no_leak()


@pytest.mark.parametrize("num_turns", range(1, 8))
def test_what_came_before_a_local_command_goes(pair: SimpleNamespace, num_turns: int) -> None:
    """Queued, granted, verified or arrived: the pages of the transfer come back."""
    world = pair.World()
    command = withheld_decode(world, 1)
    for _ in range(num_turns):
        world.turn()
    assert tell(world, "d", as_local(command)) == ["CommandAck"]
    world.run()
    assert stream(world, command.spec.request_id) == list(expected(1, 40, 20))
    world.assert_no_leak()


def test_a_strangers_withdrawal_does_not_touch_a_running_request(pair: SimpleNamespace) -> None:
    world = pair.World()
    request_id = world.submit(1, 40, 60, local=True)
    world.run_until(lambda: world.d.core.load(0).num_decode_running)
    reserve = world.reserve_of(b"node/x/1", n=1, num_tokens=40)
    world.tell("d", reserve)
    world.tell("d", FromPeer(b"node/x/1", Drained(request_id=request_id, attempt=1)))
    world.run()
    assert stream(world, request_id) == list(expected(1, 40, 60))
    world.assert_no_leak()


def test_a_prefill_of_what_is_decoded_here_is_refused(pair: SimpleNamespace) -> None:
    world = pair.World()
    decode = as_local(withheld_decode(world, 1))
    prefill = Prefill(spec=decode.spec, decode=world.p.ref)
    assert tell(world, "d", decode) == ["CommandAck"]
    assert tell(world, "d", prefill) == ["CommandRefused"]
    assert tell(world, "d", decode) == ["CommandAck"]
    world.run()
    assert stream(world, decode.spec.request_id) == list(expected(1, 40, 20))
    world.assert_no_leak()


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("make_local", [True, False])
def test_a_decode_of_what_is_prefilled_here_for_another_is_refused(
    pair: SimpleNamespace, num_turns: int, make_local: bool
) -> None:
    """From its command on, also when the prompt was handed over long ago."""
    world = pair.World()
    request_id = world.submit(1, 40, 20)
    prefill = world.unanswered[("p", "prefill", request_id)]
    decode = Decode(spec=prefill.spec, prefill=None if make_local else world.d.ref)
    assert tell(world, "p", prefill) == ["CommandAck"]
    for _ in range(num_turns):
        world.turn()
    assert tell(world, "p", decode) == ["CommandRefused"]
    assert tell(world, "p", prefill) == ["CommandAck"]
    world.run()
    assert stream(world, request_id) == list(expected(1, 40, 20))
    world.assert_no_leak()


def test_late_commands_of_a_cancelled_attempt_are_acknowledged(pair: SimpleNamespace) -> None:
    world = pair.World()
    decode = withheld_decode(world, 1)
    tell(world, "p", Cancel(request_id=decode.spec.request_id, attempt=1))
    prefill = Prefill(spec=decode.spec, decode=world.d.ref)
    assert tell(world, "p", prefill) == tell(world, "p", decode) == ["CommandAck"]
    world.run()
    world.assert_no_leak()
