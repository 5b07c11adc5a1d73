"""What no honest member says: it is refused, or ignored and counted, and attracts no requests.

W22 of the wire attacks.
"""

import msgspec
import pytest

from coordinator.core import FromPeer
from tandem.codec import Decoder, ProtocolError, encode
from tandem.messages.membership import HeartbeatAck, NodeRefused, NodeWelcome, RoleWeights
from tandem.messages.placement import PlaceRefused


@pytest.fixture
def honest(cluster):
    """A small deployment without faults."""
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    return cluster


@pytest.mark.parametrize(
    ("changes", "claimed"),
    [
        ({"num_pages": 2**40}, "num_pages"),
        ({"num_pages": 0}, "num_pages"),
        ({"max_num_seqs": 2**40}, "max_num_seqs"),
        ({"max_num_batched_tokens": 2**62}, "max_num_batched_tokens"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ({"weights": RoleWeights(prefill=0.0, decode=1e9)}, "role weight"),
        ({"weights": RoleWeights(prefill=0.0, decode=0.0)}, "role weight"),
    ],
)
def test_w22_absurd_hellos_are_refused(honest, changes, claimed) -> None:
    answer = honest.join("liar", "decode", **changes)
    assert isinstance(answer, NodeRefused)
    assert claimed in answer.reason
    assert "liar" not in {n.node_id for n in honest.status().nodes}


@pytest.mark.parametrize(
    ("field", "value"),
    [("page_size", 2**40), ("page_size", -16), ("num_layers", -2), ("head_dim", 2**50)],
)
def test_the_first_node_cannot_found_a_deployment_with_an_absurd_layout(
    make_cluster, field, value
) -> None:
    cluster = make_cluster()
    layout = msgspec.structs.replace(cluster.node_hello("d0", "decode").layout, **{field: value})
    assert isinstance(cluster.join("d0", "decode", layout=layout), NodeRefused)
    assert isinstance(cluster.join("d1", "decode"), NodeWelcome)


def test_a_node_of_large_weights_is_still_one_node(honest) -> None:
    honest.join("d1", "decode", weights=RoleWeights(prefill=0.0, decode=900.0))
    chosen = [honest.place(i, num_prompt_tokens=1)[0].decode.node_id for i in range(8)]
    assert chosen.count("d1") == 4


@pytest.mark.parametrize(
    "pages",
    [
        {"free": 2**40},
        {"free": 65},  # more than all
        {"free": 0},  # some are nowhere
        {"cached": 64},
        {"free": 2**63 - 1, "active": 2**63 - 1},
    ],
)
def test_w22_a_load_whose_pages_do_not_sum_to_the_pool_is_ignored_and_counted(
    honest, pages
) -> None:
    honest.join("d1", "decode")
    honest.beat("d0", num_decode_running=2)
    honest.beat("d1", num_decode_running=5, used=40)
    load = honest.heartbeat("d1").load
    lie = msgspec.structs.replace(load, pages=msgspec.structs.replace(load.pages, **pages))
    sent = honest.send("d1", honest.heartbeat("d1", load=lie))
    assert isinstance(dict(sent)["d1"], HeartbeatAck)  # it lives, whatever it says
    status = honest.status()
    assert status.num_dropped_messages == 1
    assert next(n for n in status.nodes if n.node_id == "d1").load.num_decode_running == 5
    assert honest.place(1)[0].decode.node_id == "d0"


@pytest.mark.parametrize(
    "field", ["num_steps", "num_prefill_tokens_waiting", "num_decode_running", "step_age_s"]
)
@pytest.mark.parametrize("value", [-1, -(2**63), 2**64 - 1, float("nan"), float("-inf")])
def test_w22_crafted_loads_are_no_messages(honest, field, value) -> None:
    honest.beat("d0")
    raw = msgspec.to_builtins(honest.heartbeat("d0"))
    raw["load"][field] = value
    frames = encode(honest.heartbeat("d0"))
    with pytest.raises(ProtocolError):
        Decoder[FromPeer](FromPeer).decode([frames[0], msgspec.msgpack.encode(raw)])


def test_w22_a_node_that_always_says_that_it_is_idle_is_still_charged_for_what_it_was_given(
    honest,
) -> None:
    honest.join("liar", "decode")
    names = []
    for i in range(12):
        names.append(honest.place(i, num_prompt_tokens=1)[0].decode.node_id)
        honest.pass_time(0.6)
        honest.greet()
        honest.beat("p0")
        honest.beat("liar")
        honest.beat("d0", num_decode_running=names.count("d0"), used=2 * names.count("d0"))
    assert names.count("liar") <= 7


def test_w22_a_sequence_from_the_future_does_not_freeze_the_node(honest) -> None:
    honest.beat("d0")
    honest.send("d0", honest.heartbeat("d0", sequence=2**62))
    honest.beat("d0", num_decode_running=3)
    status = honest.status()
    assert next(n for n in status.nodes if n.node_id == "d0").load.num_decode_running == 3
    assert status.num_dropped_messages == 1


def test_a_node_that_has_beaten_for_weeks_may_join_a_new_coordinator(honest) -> None:
    honest.sequences["d0"] = 10_000_000
    honest.beat("d0", num_decode_running=3)
    assert honest.status().nodes[0].load.num_decode_running == 3
    assert honest.status().num_dropped_messages == 0


def test_absurd_demands_are_refused(honest) -> None:
    for number, changes in enumerate(
        [
            {"num_prompt_tokens": 2**63 - 1},
            {"max_output_tokens": 2**63 - 1},
            {"num_prompt_tokens": 2**62, "num_output_tokens": 2**62, "attempt": 2},
        ]
    ):
        (answer,) = honest.place(number, **changes)
        assert isinstance(answer, PlaceRefused)
        assert answer.code == "context_too_long"
    assert honest.status().num_live_requests == 0
