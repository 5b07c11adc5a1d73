"""A node's roles change while it runs: what is new is refused, what is here goes on."""

from types import SimpleNamespace

import msgspec
import pytest

from node.core import RolesChanged
from node.membership import Joined, Membership, RolesOrdered
from tandem.frames import TokenIds
from tandem.messages.membership import HeartbeatAck, Rejoin, RoleOrder, RoleWeights
from tandem.messages.serving import Decode, Prefill
from tests.node.test_membership import HELLO, LOAD, admitted, beat, welcome

PREFILL, DECODE = RoleWeights(prefill=1, decode=0), RoleWeights(prefill=0, decode=1)


def ordered(
    number: int, weights: RoleWeights, *, coordinator: int = 1, sequence: int = 99
) -> HeartbeatAck:
    order = RoleOrder(coordinator_incarnation=coordinator, number=number, weights=weights)
    return HeartbeatAck(epoch=1, sequence=sequence, roles=order)


@pytest.mark.parametrize(("node", "weights"), [("p", DECODE), ("d", PREFILL)])
def test_new_work_of_a_closed_role_is_refused(
    pair: SimpleNamespace, node: str, weights: RoleWeights
) -> None:
    world = pair.World()
    world.tell(node, RolesChanged(weights))
    world.submit(1, 40, 5)
    world.run_until(lambda: bool(world.refusals))
    (refused,) = world.refusals
    assert refused.code == "not_serving"
    assert refused.command == ("prefill" if node == "p" else "decode")
    world.cancel(refused.request_id)
    world.run()
    world.assert_no_leak()


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3, 5, 8])
def test_what_is_here_goes_on_when_both_roles_turn_round(
    pair: SimpleNamespace, num_turns: int
) -> None:
    """Prompts in the queue, under way, granted, and decoding."""
    world = pair.World(loss=0.1)
    ids = [world.submit(n, 60 + 20 * n, 12) for n in range(1, 5)]
    world.run_until(lambda: not world.unanswered)
    for _ in range(num_turns):
        world.turn()
    world.tell("p", RolesChanged(DECODE))
    world.tell("d", RolesChanged(PREFILL))
    world.run()
    assert world.refusals == []
    for n, request_id in enumerate(ids, start=1):
        assert pair.stream(world, request_id) == list(pair.expected(n, 60 + 20 * n, 12))
    world.assert_no_leak()


def test_a_grant_before_its_command_is_honoured(pair: SimpleNamespace) -> None:
    world = pair.World()
    request_id = world.submit(1, 60, 5, with_decode=False)
    (prefill,) = [m for m in world.unanswered.values() if isinstance(m, Prefill)]
    world.run_until(lambda: world.d.core.load(0.0).num_requests > 0)
    world.tell("d", RolesChanged(PREFILL))
    world.command("d", Decode(spec=prefill.spec, prefill=world.p.ref), "decode", request_id)
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 60, 5))


def test_a_decode_node_computes_its_own_prompts_without_the_prefill_role(
    pair: SimpleNamespace,
) -> None:
    world = pair.World()
    world.tell("d", RolesChanged(DECODE))
    request_id = world.submit(1, 60, 5, local=True)
    world.run()
    assert pair.stream(world, request_id) == list(pair.expected(1, 60, 5))


@pytest.mark.parametrize("weights", [PREFILL, DECODE])
def test_requests_move_away_from_a_node_that_turned_to_prefill_or_has_only_decode(
    pair: SimpleNamespace, weights: RoleWeights
) -> None:
    world = pair.World()
    request_id = world.submit(1, 50, 40)
    (first,) = [m for m in world.unanswered.values() if isinstance(m, Prefill)]
    world.run_until(lambda: len(world.tokens.get(request_id, {})) >= 20)
    world.tell("d", RolesChanged(weights))
    ids = [world.tokens[request_id][i] for i in range(20)]
    spec = msgspec.structs.replace(first.spec, attempt=2, output_ids=TokenIds(ids))
    world.command("d", Prefill(spec=spec, decode=world.p.ref), "prefill", request_id)
    world.command("p", Decode(spec=spec, prefill=world.d.ref), "decode", request_id)
    world.run()
    assert world.refusals == []
    assert pair.stream(world, request_id) == list(pair.expected(1, 50, 40))
    assert world.decode_reports[request_id].node_id == "p"


def test_pool_and_prefix_cache_outlive_a_closed_role(pair: SimpleNamespace) -> None:
    world = pair.World()
    world.submit(1, 64, 2)
    world.run()
    num_cached = world.p.ledger.counts().cached
    assert num_cached >= 4
    world.tell("p", RolesChanged(DECODE))
    world.turn()
    assert world.p.ledger.counts().cached == num_cached
    world.tell("p", RolesChanged(PREFILL))
    again = world.submit(2, 64, 2, same_prompt_as=1)
    world.run()
    assert world.prefill_reports[again].num_cached_tokens == 48
    assert pair.stream(world, again) == list(pair.expected(1, 64, 2))


# --- orders -----------------------------------------------------------------------------------


def test_an_order_is_obeyed_once_and_told_at_once() -> None:
    membership = admitted()
    assert beat(membership, 0.1).weights == HELLO.weights
    assert membership.handle(ordered(1, DECODE, sequence=1), 0.2) == [RolesOrdered(DECODE)]
    told = membership.due(0.2, LOAD, draining=False)
    assert told is not None and told.weights == DECODE  # type: ignore[attr-defined]
    assert membership.handle(ordered(1, DECODE), 0.3) == []
    assert membership.num_dropped == 1, "it had no news, and no heartbeat waited for it"


def test_a_stale_order_changes_nothing_and_a_later_coordinators_order_does() -> None:
    membership = admitted()
    assert membership.handle(ordered(5, DECODE), 0.1) == [RolesOrdered(DECODE)]
    assert membership.handle(ordered(4, PREFILL), 0.2) == []
    assert membership.handle(ordered(1, PREFILL, coordinator=2), 0.3) == [RolesOrdered(PREFILL)]
    assert membership.handle(ordered(9, DECODE), 0.4) == [], "of the coordinator before it"
    assert beat(membership, 0.5).weights == PREFILL


def test_roles_in_force_outlive_an_epoch() -> None:
    membership = Membership(HELLO)
    membership.handle(welcome(1), 0.0)
    membership.handle(ordered(1, DECODE), 0.1)
    membership.handle(msgspec.structs.replace(ordered(2, PREFILL), epoch=7), 0.2)
    membership.handle(Rejoin(reason="who?"), 0.3)
    hello = membership.due(0.3, LOAD, draining=False)
    assert hello == msgspec.structs.replace(HELLO, weights=DECODE)
    assert membership.handle(welcome(2), 0.4) == [Joined(2)]


def test_an_order_to_close_everything_is_none() -> None:
    membership = admitted()
    assert membership.handle(ordered(1, RoleWeights(prefill=0, decode=0)), 0.1) == []
    assert beat(membership, 0.2).weights == HELLO.weights
