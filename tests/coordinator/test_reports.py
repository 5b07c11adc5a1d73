"""Status of deployments that do not fit one message, and the welcomes of gateways."""

import msgspec

from coordinator.core import FromPeer
from tandem.codec import MAX_CONTROL_BYTES, Decoder, encode
from tandem.messages.membership import Goodbye, NodeHello, NodeLoad
from tandem.messages.placement import GatewayWelcome, NodeDown


def all_pieces(cluster):
    """Every piece of a status, as an operator asks for them."""
    pieces, names = [], {}
    while not pieces or pieces[-1].has_more:
        pieces.append(cluster.status(**names))
        assert sum(len(frame) for frame in encode(pieces[-1])) <= MAX_CONTROL_BYTES
        if pieces[-1].nodes:
            names["after_node"] = pieces[-1].nodes[-1].node_id
        if pieces[-1].gateways:
            names["after_gateway"] = pieces[-1].gateways[-1].gateway_id
        assert len(pieces) < 100
    return pieces


def test_two_hundred_nodes_with_the_longest_names_are_told_in_pieces(cluster) -> None:
    names = [f"{i:03}".ljust(128, "n") for i in range(200)]
    for name in reversed(names):
        cluster.join(name, "decode", control_address="a" * 256, device="d" * 128)
        cluster.beat(name, **{f: 2**40 for f in NodeLoad.__struct_fields__ if "num_" in f
                              and f != "num_pages"})  # fmt: skip
    gateways = [f"{i:03}".ljust(128, "g") for i in range(100)]
    for number, name in enumerate(gateways):
        cluster.greet(name, incarnation=number)
    pieces = all_pieces(cluster)
    assert [n.node_id for p in pieces for n in p.nodes] == names
    assert [g.gateway_id for p in pieces for g in p.gateways] == [*gateways, "gw"]
    assert all(n.load.num_steps == 2**40 for p in pieces for n in p.nodes)


def test_a_small_deployment_needs_one_piece(cluster) -> None:
    cluster.join("d0", "decode")
    assert len(all_pieces(cluster)) == 1


def test_welcomes_fit_a_message_whatever_happened(cluster) -> None:
    names = [f"{i:03}".ljust(128, "n") for i in range(300)]
    for name in names:
        cluster.join(name, "decode")
        cluster.beat(name, draining=True)
    for name in names[250:]:
        cluster.send(name, Goodbye(node_id=name, incarnation=1, epoch=cluster.epochs[name]))
    welcome = cluster.greet()
    assert len(welcome.draining_nodes) == 250
    assert len(welcome.recent_downs) == 32
    assert len(encode(welcome)[1]) <= MAX_CONTROL_BYTES


def test_gateways_learn_the_page_layout_from_the_nodes(cluster) -> None:
    welcome = cluster.greet()
    assert (welcome.page_size, welcome.kv_dtype, welcome.max_model_len) == (None, None, None)
    cluster.join("d0", "decode")
    welcome = cluster.greet()
    assert (welcome.page_size, welcome.kv_dtype, welcome.max_model_len) == (16, "float32", 4096)


def test_all_gateways_hear_that_a_node_is_down(cluster) -> None:
    cluster.greet("gw2", incarnation=4)
    cluster.join("d0", "decode")
    sent = cluster.pass_time(2.9)
    cluster.greet()
    cluster.greet("gw2", incarnation=4)
    sent += cluster.pass_time(0.5)
    assert sorted(peer for peer, m in sent if isinstance(m, NodeDown)) == ["gw", "gw2"]


def test_a_gateway_that_lapsed_is_forgotten_with_its_requests_and_no_others(cluster) -> None:
    cluster.greet("gw2", incarnation=4)
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    cluster.place(1)
    cluster.place(1, gateway_id="gw2", incarnation=4)  # the same id, but another gateway's
    for _ in range(8):
        cluster.pass_time(0.5)
        cluster.greet()
        cluster.beat("p0")
        cluster.beat("d0")
    status = cluster.status()
    assert [g.gateway_id for g in status.gateways] == ["gw"]
    assert status.num_live_requests == 1
    assert any("gw2 is silent" in note for note in cluster.notes)
    assert isinstance(cluster.greet("gw2", incarnation=4), GatewayWelcome)


def test_a_query_for_a_piece_passes_the_wire(cluster) -> None:
    hello = cluster.node_hello("d0", "decode")
    assert isinstance(Decoder[FromPeer](FromPeer).decode(encode(hello)), NodeHello)
    raw = msgspec.msgpack.encode({"type": "StatusQuery", "after_node": "d0"})
    query = Decoder[FromPeer](FromPeer).decode([encode(hello)[0], raw])
    ((_, status),) = cluster.send("operator", query)
    assert status.nodes == ()
