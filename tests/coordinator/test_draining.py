"""An operator lets a node or gateway finish and leave."""

from tandem.messages.membership import DrainAnswer, DrainMember, Goodbye, HeartbeatAck, Rejoin
from tandem.messages.placement import GatewayWelcome


def drain(cluster, name: str, *, force: bool = False) -> DrainAnswer:
    sent = cluster.send("operator", DrainMember(name=name, force=force))
    return next(message for peer, message in sent if peer == "operator")


def test_a_draining_node_is_told_until_it_drains_and_gets_nothing_new_at_once(cluster) -> None:
    cluster.join("p0", "prefill")
    for name in ("d0", "d1"):
        cluster.join(name, "decode")
    assert drain(cluster, "d0").accepted
    assert {cluster.place(i)[0].decode.node_id for i in range(4)} == {"d1"}
    assert cluster.beat("d0").drain
    assert {cluster.place(i)[0].decode.node_id for i in range(4, 8)} == {"d1"}
    assert not cluster.beat("d0", draining=True).drain
    assert not cluster.beat("d1").drain
    assert cluster.status().nodes[0].draining


def test_gateways_hear_at_once_and_with_every_welcome(cluster) -> None:
    for name in ("d0", "d1"):
        cluster.join(name, "decode")
    sent = cluster.send("operator", DrainMember(name="d0"))
    told = [m for peer, m in sent if peer == "gw"]
    assert [type(m) for m in told] == [GatewayWelcome]
    for welcome in (told[0], cluster.greet()):
        assert welcome.draining_nodes == ("d0",)
        assert (welcome.num_decode_nodes, welcome.drain) == (1, False)


def test_the_last_node_of_a_role_stays_unless_forced(cluster) -> None:
    cluster.join("p0", "prefill")
    cluster.join("m0", "mixed")
    assert drain(cluster, "p0").accepted
    answer = drain(cluster, "m0")
    assert not answer.accepted
    for part in ("m0", "prefill and decode", "launch_prefill", "launch_decode", "--force"):
        assert part in answer.message
    assert not cluster.beat("m0").drain
    assert drain(cluster, "m0", force=True).accepted
    assert cluster.beat("m0").drain


def test_draining_twice_is_as_good_as_once(cluster) -> None:
    cluster.join("d0", "decode")
    assert drain(cluster, "d0", force=True).accepted
    assert drain(cluster, "d0").accepted
    assert drain(cluster, "d0").message == "node d0 drains already"


def test_a_gateway_is_told_with_its_welcome(cluster) -> None:
    cluster.greet("gw2", incarnation=3)
    sent = dict(cluster.send("operator", DrainMember(name="gw2")))
    assert sent["operator"].accepted
    assert (sent["gw"].drain, sent["gw2"].drain) == (False, True)
    assert cluster.greet("gw2", incarnation=3).drain
    assert [g.draining for g in cluster.status().gateways] == [False, True]


def test_nobody_of_that_name(cluster) -> None:
    answer = drain(cluster, "d7")
    assert not answer.accepted
    assert "tandem status" in answer.message


def test_the_order_outlives_the_epoch_but_not_the_process(cluster) -> None:
    for name in ("d0", "d1"):
        cluster.join(name, "decode")
    drain(cluster, "d0")
    cluster.send("d0", Goodbye(node_id="d0", incarnation=1, epoch=cluster.epochs["d0"]))
    assert isinstance(cluster.beat("d0"), Rejoin)
    cluster.join("d0", "decode")  # the same process: its lease had lapsed
    assert cluster.beat("d0").drain
    assert cluster.greet().draining_nodes == ("d0",)
    cluster.join("d0", "decode", incarnation=2)
    answer = cluster.beat("d0", incarnation=2)
    assert isinstance(answer, HeartbeatAck)
    assert not answer.drain
    assert cluster.greet().draining_nodes == ()
