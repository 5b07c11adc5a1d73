"""Members that died while there was no coordinator, and words of processes that are no more."""

import msgspec

from tandem.messages.membership import NodeWelcome
from tandem.messages.placement import GatewayWelcome, NodeDown


def hello_with(cluster, *placed):
    """The gateway's hello, naming the nodes of these placements."""
    nodes = tuple(ref for each in placed for ref in (each.prefill, each.decode) if ref is not None)
    return msgspec.structs.replace(cluster.gateway_hello(), nodes=nodes)


def test_a_node_that_died_without_a_coordinator_is_told_as_down(cluster) -> None:
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    cluster.greet()
    (placed,) = cluster.place(1)
    fresh = cluster.restart()
    fresh.join("p0", "prefill")  # d0 never comes back
    sent = fresh.send("gw", hello_with(cluster, placed))
    assert not [m for _, m in sent if isinstance(m, NodeDown)], "it may still come"
    for _ in range(8):
        fresh.beat("p0")
        fresh.pass_time(0.4)
    sent = [m for _, m in fresh.send("gw", hello_with(cluster, placed))]
    assert [(d.node_id, d.epoch) for d in sent if isinstance(d, NodeDown)] == [
        ("d0", placed.decode.epoch)
    ]


def test_its_successor_does_not_hide_a_dead_node(cluster) -> None:
    cluster.join("d0", "mixed")
    cluster.greet()
    (placed,) = cluster.place(1)
    fresh = cluster.restart()
    fresh.join("d0", "mixed", incarnation=2)
    for _ in range(8):
        fresh.beat("d0", incarnation=2)
        fresh.pass_time(0.4)
    sent = [m for _, m in fresh.send("gw", hello_with(cluster, placed))]
    assert [d.epoch for d in sent if isinstance(d, NodeDown)] == [placed.decode.epoch]


def test_a_node_that_came_back_by_itself_is_no_loss(cluster) -> None:
    cluster.join("d0", "mixed")
    cluster.greet()
    (placed,) = cluster.place(1)
    fresh = cluster.restart()
    fresh.join("d0", "mixed")
    for _ in range(8):
        fresh.beat("d0")
        fresh.pass_time(0.4)
    sent = [m for _, m in fresh.send("gw", hello_with(cluster, placed))]
    assert not [m for m in sent if isinstance(m, NodeDown)]


def test_a_late_hello_of_a_dead_process_does_not_take_the_name_back(cluster) -> None:
    cluster.join("d0", "mixed", incarnation=2)
    assert cluster.send("d0", cluster.node_hello("d0", "mixed", incarnation=1)) == []
    assert "--name" in cluster.notes[-1]
    assert isinstance(cluster.join("d0", "mixed", incarnation=2), NodeWelcome)
    assert isinstance(cluster.greet(incarnation=9), GatewayWelcome)
    assert cluster.send("gw", cluster.gateway_hello(incarnation=8)) == []
    assert isinstance(cluster.greet(incarnation=9), GatewayWelcome)


def test_the_older_process_is_heard_when_the_newer_is_gone(cluster) -> None:
    cluster.join("d0", "mixed", incarnation=2)
    cluster.pass_time(3.5)
    assert isinstance(cluster.join("d0", "mixed", incarnation=1), NodeWelcome)
