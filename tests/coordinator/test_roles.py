"""Role orders: who may have which weights, when they count, and who hears of them."""

import pytest

from tandem.messages.membership import (
    Heartbeat,
    HeartbeatAck,
    Rejoin,
    RoleOrder,
    RoleWeights,
    SetWeights,
    WeightsAnswer,
)
from tandem.messages.placement import GatewayWelcome, Placed

PREFILL, DECODE = RoleWeights(prefill=1, decode=0), RoleWeights(prefill=0, decode=1)
MIXED, NOTHING = RoleWeights(prefill=1, decode=1), RoleWeights(prefill=0, decode=0)


def order(cluster, name: str, weights: RoleWeights, *, force: bool = False):
    """What an operator is answered, and what others hear."""
    sent = cluster.send("operator", SetWeights(name=name, weights=weights, force=force))
    answer = next(m for peer, m in sent if peer == "operator")
    assert isinstance(answer, WeightsAnswer)
    return answer, [(peer, m) for peer, m in sent if peer != "operator"]


def beat(cluster, name: str, weights: RoleWeights, **counts) -> HeartbeatAck:
    heartbeat: Heartbeat = cluster.heartbeat(name, counts=counts, weights=weights)
    return next(m for peer, m in cluster.send(name, heartbeat) if peer == name)


@pytest.fixture
def four(cluster):
    """p0, p1, d0, d1."""
    for name in ("p0", "p1"):
        cluster.join(name, "prefill")
    for name in ("d0", "d1"):
        cluster.join(name, "decode")
    return cluster


def decodes(cluster, first: int = 0) -> set[str]:
    answers = [cluster.place(i)[0] for i in range(first, first + 8)]
    return {a.decode.node_id if isinstance(a, Placed) else a.code for a in answers}


def prefills(cluster, first: int = 0) -> set[str | None]:
    answers = [cluster.place(i)[0] for i in range(first, first + 8)]
    return {a.prefill and a.prefill.node_id for a in answers}


def test_a_role_closes_with_the_order_and_opens_when_the_node_obeyed(four) -> None:
    answer, told = order(four, "d0", PREFILL)
    assert answer.accepted and answer.message == "node d0 turns from decode to prefill"
    assert decodes(four) == {"d1"} and prefills(four, 10) == {"p0", "p1"}
    (sent,) = [m for peer, m in told if peer == "d0"]
    assert sent.roles == RoleOrder(coordinator_incarnation=1_000_000, number=1, weights=PREFILL)
    assert beat(four, "d0", DECODE).roles == sent.roles, "repeated until it is obeyed"
    assert beat(four, "d0", PREFILL).roles is None
    assert decodes(four, 20) == {"d1"} and "d0" in prefills(four, 30)
    assert four.status().nodes[0].weights == PREFILL


def test_gateways_hear_of_closed_decodes_as_long_as_requests_are_there(four) -> None:
    beat(four, "d0", DECODE, num_decode_running=3)
    _, told = order(four, "d0", PREFILL)
    (welcome,) = [m for peer, m in told if peer == "gw"]
    assert isinstance(welcome, GatewayWelcome)
    assert (welcome.closed_decodes, welcome.draining_nodes) == (("d0",), ())
    assert (welcome.num_decode_nodes, welcome.num_prefill_nodes) == (1, 2)
    beat(four, "d0", PREFILL, num_decode_running=0)
    assert four.greet().closed_decodes == ()
    assert four.greet().num_prefill_nodes == 3


def test_the_last_node_of_a_role_keeps_it_whoever_asks(four) -> None:
    assert order(four, "d0", PREFILL)[0].accepted
    for force in (False, True):
        answer, told = order(four, "d1", PREFILL, force=force)
        assert not answer.accepted and told == []
        assert "d1 is the last healthy node that serves decode" in answer.message
        assert "launch_decode" in answer.message
    assert order(four, "d1", MIXED)[0].accepted, "it keeps the role"


def test_a_node_that_only_turns_to_the_role_counts_with_force(four) -> None:
    assert order(four, "p0", MIXED)[0].accepted
    assert order(four, "d0", PREFILL)[0].accepted
    answer, _ = order(four, "d1", PREFILL)
    assert not answer.accepted and "--force" in answer.message
    assert order(four, "d1", PREFILL, force=True)[0].accepted
    beat(four, "p0", MIXED)
    assert decodes(four) == {"p0"}


def test_draining_nodes_do_not_count(four) -> None:
    four.beat("d1", draining=True)
    assert not order(four, "d0", PREFILL, force=True)[0].accepted
    answer, _ = order(four, "d1", PREFILL)
    assert not answer.accepted and "drains" in answer.message


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("nobody", PREFILL, "tandem status"),
        ("d0", NOTHING, "tandem drain d0"),
        ("d0", RoleWeights(prefill=1e6, decode=0), "at most 1000"),
    ],
)
def test_refusals_say_what_to_do(four, name: str, weights: RoleWeights, words: str) -> None:
    answer, told = order(four, name, weights)
    assert not answer.accepted and words in answer.message and told == []


def test_the_same_order_twice_is_one(four) -> None:
    _, first = order(four, "d0", MIXED)
    answer, again = order(four, "d0", MIXED)
    assert answer.accepted
    assert [m.roles for p, m in again if p == "d0"] == [m.roles for p, m in first if p == "d0"]


def test_an_order_outlives_an_epoch_but_not_the_process(four) -> None:
    order(four, "d0", PREFILL)
    four.pass_time(4)  # all are lost
    assert isinstance(beat(four, "d0", DECODE), Rejoin)
    four.join("d0", "decode")
    number = beat(four, "d0", DECODE).roles.number
    assert number == 1, "the node may have obeyed it meanwhile"
    four.join("d0", "decode", incarnation=2)
    four.sequences.clear()
    ack = next(
        m
        for _, m in four.send("d0", four.heartbeat("d0", incarnation=2, weights=DECODE))
        if isinstance(m, HeartbeatAck)
    )
    assert ack.roles is None


def test_a_new_coordinator_believes_the_node_and_orders_higher(four) -> None:
    order(four, "d0", PREFILL)
    beat(four, "d0", PREFILL)
    fresh = four.restart()
    fresh.greet()
    for name, role in (("d0", "prefill"), ("p0", "prefill"), ("d1", "decode")):
        fresh.join(name, role)
    assert decodes(fresh) == {"d1"} and "d0" in prefills(fresh, 10)
    order(fresh, "d0", DECODE)
    told = beat(fresh, "d0", PREFILL).roles
    assert (told.coordinator_incarnation, told.number) > (1_000_000, 1)


def test_a_node_that_says_nothing_of_weights_has_those_of_its_hello(four) -> None:
    assert four.beat("d0").roles is None
    assert "d0" in decodes(four)
