"""What nodes say of their links, as operators are told."""

import msgspec

from tandem.codec import MAX_CONTROL_BYTES, encode
from tandem.messages.membership import LinkReport


def link(name: str, transport: str | None = "zmq", speed: float = 1e9) -> LinkReport:
    return LinkReport(node_id=name, transport=transport, bytes_per_s=speed, explanation="so")


def test_links_are_kept_until_others_are_told_and_the_worst_are_shown(cluster) -> None:
    cluster.join("p0", "prefill")
    links = [link(f"d{i}", speed=i * 1e9) for i in range(1, 8)] + [link("d9", None, 0.0)]
    cluster.send("p0", cluster.heartbeat("p0", links=tuple(links)))
    cluster.send("p0", cluster.heartbeat("p0"))
    (node,) = cluster.status().nodes
    assert node.num_links == 8
    assert [each.node_id for each in node.links] == ["d9", "d1", "d2", "d3", "d4"]
    cluster.send("p0", cluster.heartbeat("p0", links=()))
    assert cluster.status().nodes[0].links == ()


def test_the_longest_links_fit_a_message(cluster) -> None:
    longest = msgspec.structs.replace(link("d" * 128), explanation="x" * 200)
    for number in range(40):
        name = f"{number:03}".ljust(128, "n")
        cluster.join(name, "prefill", control_address="a" * 256, device="d" * 128)
        counts = {"num_steps": 2**40, "num_tokens_out": 2**40, "num_decode_tokens": 2**40}
        links = tuple(msgspec.structs.replace(longest, bytes_per_s=float(i)) for i in range(64))
        heartbeat = cluster.heartbeat(name, counts=counts, links=links)
        assert sum(map(len, encode(heartbeat))) <= MAX_CONTROL_BYTES
        cluster.send(name, heartbeat)
    for number in range(40):
        cluster.greet(f"{number:03}".ljust(128, "g"), incarnation=number)
    status = cluster.status()
    assert status.has_more and len(status.nodes[0].links) == 5
    assert sum(map(len, encode(status))) <= MAX_CONTROL_BYTES
