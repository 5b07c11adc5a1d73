"""Joining, leases counted from the send time, rejoining."""

from node.membership import Joined, Membership, TurnedAway
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.membership import (
    Heartbeat,
    HeartbeatAck,
    NodeHello,
    NodeLoad,
    NodeRefused,
    NodeWelcome,
    PageCounts,
    Rejoin,
    RoleWeights,
)

PAGES = PageCounts(
    free=1, granted=0, filling=0, ready=0, active=0, cached=0, draining=0, quarantined=0
)
LOAD = NodeLoad(
    num_steps=0,
    step_age_s=0,
    num_prefill_waiting=0,
    num_prefill_tokens_waiting=0,
    num_decode_running=0,
    num_decode_waiting=0,
    num_transfers=0,
    num_requests=0,
    num_tokens_out=0,
    pages=PAGES,
)
HELLO = NodeHello(
    node_id="n",
    incarnation=5,
    control_address="tcp://127.0.0.1:1",
    weights=RoleWeights(prefill=1, decode=1),
    model=ModelIdentity(
        served_name="m",
        weights_fingerprint="w",
        tokenizer_fingerprint="t",
        dtype="float32",
        max_model_len=64,
        vocab_size=9,
    ),
    layout=KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, page_size=16, dtype="float32"),
    num_pages=1,
    max_num_seqs=1,
    max_num_batched_tokens=1,
    device="cpu",
)


def welcome(epoch: int) -> NodeWelcome:
    return NodeWelcome(coordinator_incarnation=1, epoch=epoch, lease_s=3.0, heartbeat_s=0.5)


def test_hello_is_repeated_until_admitted_then_heartbeats_follow() -> None:
    membership = Membership(HELLO)
    assert membership.due(0.0, LOAD, draining=False) is HELLO
    assert membership.due(0.5, LOAD, draining=False) is None
    assert membership.due(1.0, LOAD, draining=False) is HELLO
    assert membership.handle(welcome(7), 1.1) == Joined(7)
    beat = membership.due(1.1, LOAD, draining=True)
    assert isinstance(beat, Heartbeat)
    assert (beat.epoch, beat.sequence, beat.draining) == (7, 1, True)
    assert membership.handle(welcome(7), 1.2) is None


def test_the_lease_counts_from_when_the_acknowledged_beat_was_sent() -> None:
    membership = Membership(HELLO)
    membership.handle(welcome(1), 0.0)
    membership.due(1.0, LOAD, draining=False)
    membership.handle(HeartbeatAck(epoch=1, sequence=1), 2.9)
    assert not membership.is_lapsed(3.9)
    assert membership.is_lapsed(4.1)
    membership.handle(HeartbeatAck(epoch=1, sequence=1), 4.2)
    assert membership.is_lapsed(4.3), "a repeated acknowledgement renews nothing"


def test_rejoin_says_hello_again_and_takes_a_higher_epoch() -> None:
    membership = Membership(HELLO)
    membership.handle(welcome(1), 0.0)
    membership.handle(Rejoin(reason="who are you?"), 1.0)
    assert membership.due(1.0, LOAD, draining=False) is HELLO
    assert membership.handle(welcome(2), 1.1) == Joined(2)


def test_refusal_is_final() -> None:
    assert Membership(HELLO).handle(NodeRefused(reason="other weights"), 0.0) == TurnedAway(
        "other weights"
    )
