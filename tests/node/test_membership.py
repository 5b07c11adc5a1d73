"""Joining, leases counted from the send time, rejoining, cache deltas, drain."""

import msgspec
import pytest

from node.actions import CacheChanged
from node.cache_feed import MAX_PREFIXES
from node.membership import (
    DrainWanted,
    Forgotten,
    Joined,
    Membership,
    SnapshotWanted,
    TurnedAway,
)
from tandem.codec import Decoder, encode
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity
from tandem.messages.membership import (
    CacheDelta,
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


WEDGED = msgspec.structs.replace(LOAD, has_work=True, step_age_s=3.1)


def welcome(epoch: int, coordinator: int = 1) -> NodeWelcome:
    return NodeWelcome(
        coordinator_incarnation=coordinator, epoch=epoch, lease_s=3.0, heartbeat_s=0.5
    )


def ack(sequence: int, *, wants_snapshot: bool = False, drain: bool = False) -> HeartbeatAck:
    return HeartbeatAck(epoch=1, sequence=sequence, wants_snapshot=wants_snapshot, drain=drain)


def admitted() -> Membership:
    membership = Membership(HELLO)
    membership.handle(welcome(1), 0.0)
    return membership


def beat(membership: Membership, now: float, *, draining: bool = False) -> Heartbeat:
    membership.hurry(now)
    message = membership.due(now, LOAD, draining=draining)
    assert isinstance(message, Heartbeat)
    return message


def prefixes(*numbers: int) -> tuple[bytes, ...]:
    return tuple(n.to_bytes(8, "big") for n in numbers)


def all_of(*numbers: int) -> CacheChanged:
    return CacheChanged(True, prefixes(*numbers), ())


def change(added: tuple[bytes, ...], removed: tuple[bytes, ...] = ()) -> CacheChanged:
    return CacheChanged(False, added, removed)


def told(delta: CacheDelta | None) -> tuple[int, bool, bytes, bytes]:
    assert delta is not None
    return delta.number, delta.is_snapshot, delta.added.data, delta.removed.data


def test_hello_is_repeated_until_admitted_then_heartbeats_follow() -> None:
    membership = Membership(HELLO)
    assert membership.due(0.0, LOAD, draining=False) is HELLO
    assert membership.due(0.5, LOAD, draining=False) is None
    assert membership.due(1.0, LOAD, draining=False) is HELLO
    assert membership.handle(welcome(7), 1.1) == [Joined(7)]
    beat = membership.due(1.1, LOAD, draining=True)
    assert isinstance(beat, Heartbeat)
    assert (beat.epoch, beat.sequence, beat.draining) == (7, 1, True)
    assert membership.handle(welcome(7), 1.2) == []


def test_the_lease_counts_from_when_the_acknowledged_beat_was_sent() -> None:
    membership = admitted()
    beat(membership, 1.0)
    membership.handle(ack(1), 2.9)
    assert not membership.is_lapsed(3.9)
    assert membership.is_lapsed(4.1)
    membership.handle(ack(1), 4.2)
    assert membership.is_lapsed(4.3), "a repeated acknowledgement renews nothing"
    beat(membership, 5.0)
    beat(membership, 6.0)
    membership.handle(ack(2), 6.5)
    assert membership.is_lapsed(8.1), "the later beat was not acknowledged"


def test_an_acknowledgement_of_another_epoch_renews_nothing() -> None:
    membership = admitted()
    beat(membership, 1.0)
    assert membership.handle(msgspec.structs.replace(ack(1), epoch=2), 1.1) == []
    assert membership.num_dropped == 1
    assert membership.is_lapsed(3.1)
    assert membership.num_dropped == 1


def test_a_lapsed_node_beats_on_and_an_answer_renews_its_lease() -> None:
    membership = admitted()
    assert membership.is_lapsed(10.0)
    late = beat(membership, 10.0)
    assert (late.epoch, membership.epoch) == (1, 1)
    membership.handle(ack(late.sequence), 10.1)
    assert not membership.is_lapsed(12.9)


def test_rejoin_says_hello_again_and_takes_a_higher_epoch() -> None:
    membership = admitted()
    assert membership.handle(Rejoin(reason="who are you?"), 1.0) == [Forgotten("who are you?")]
    assert membership.handle(Rejoin(reason="who are you?"), 1.0) == []
    assert membership.due(1.0, LOAD, draining=False) is HELLO
    assert membership.handle(welcome(2), 1.1) == [Joined(2)]


def test_no_welcome_lowers_the_epoch_or_comes_from_an_older_coordinator() -> None:
    membership = Membership(HELLO)
    assert membership.handle(welcome(5, coordinator=10), 0.0) == [Joined(5)]
    assert membership.handle(welcome(4, coordinator=10), 0.1) == []
    assert membership.handle(welcome(6, coordinator=9), 0.1) == []
    membership.handle(Rejoin(reason="?"), 0.2)
    assert membership.handle(welcome(4, coordinator=11), 0.3) == []
    assert membership.handle(welcome(6, coordinator=9), 0.3) == []
    assert membership.epoch == 0 and membership.num_dropped == 4
    assert membership.handle(welcome(5, coordinator=10), 0.4) == [Joined(5)]
    assert membership.handle(welcome(6, coordinator=11), 0.5) == [Joined(6)]


def test_a_wedged_node_does_not_ask_to_come_back() -> None:
    membership = admitted()
    assert isinstance(membership.due(0.0, WEDGED, draining=False), Heartbeat)
    membership.handle(Rejoin(reason="wedged"), 1.0)
    assert membership.due(1.0, WEDGED, draining=False) is None
    slow = msgspec.structs.replace(WEDGED, predicted_step_s=1.0)
    assert membership.due(2.0, slow, draining=False) is HELLO, "its steps are known to be long"
    idle = msgspec.structs.replace(WEDGED, has_work=False)
    assert membership.due(3.0, idle, draining=False) is HELLO


def test_refusal_ends_a_node_unless_it_is_a_member() -> None:
    assert Membership(HELLO).handle(NodeRefused(reason="other weights"), 0.0) == [
        TurnedAway("other weights")
    ]
    member = admitted()
    assert member.handle(NodeRefused(reason="a late one"), 1.0) == []
    assert member.num_dropped == 1


def test_cache_deltas_follow_a_snapshot_and_are_numbered() -> None:
    membership = admitted()
    membership.cache_changed(change(prefixes(9)))
    assert beat(membership, 0.1).cache is None, "a delta without its snapshot says nothing"
    membership.cache_changed(all_of(1, 2))
    membership.cache_changed(change(prefixes(3), prefixes(1)))
    assert told(beat(membership, 0.2).cache) == (1, True, b"".join(prefixes(2, 3)), b"")
    assert beat(membership, 0.3).cache is None
    membership.cache_changed(change(prefixes(4, 5), prefixes(2)))
    membership.cache_changed(change(prefixes(2), prefixes(4)))
    number, is_snapshot, added, removed = told(beat(membership, 0.4).cache)
    assert (number, is_snapshot) == (2, False)
    assert added == b"".join(prefixes(5, 2)) and removed == b"".join(prefixes(4))


def test_a_missed_delta_is_healed_by_one_snapshot() -> None:
    membership = admitted()
    membership.cache_changed(all_of(1))
    first, second = beat(membership, 0.1), beat(membership, 0.2)
    assert membership.handle(ack(second.sequence, wants_snapshot=True), 0.3) == [SnapshotWanted()]
    third = beat(membership, 0.4)
    assert membership.handle(ack(third.sequence, wants_snapshot=True), 0.5) == [], "on its way"
    fourth = beat(membership, 0.6)
    membership.cache_changed(all_of(1, 2))
    assert told(beat(membership, 0.7).cache)[1]
    assert membership.handle(ack(fourth.sequence, wants_snapshot=True), 0.8) == [], "was sent since"
    assert first.cache is not None and fourth.cache is None


def test_every_admission_begins_with_a_snapshot_and_a_lapsed_node_keeps_its_news() -> None:
    membership = admitted()
    membership.cache_changed(all_of(1))
    assert beat(membership, 5.0).cache is None, "nobody answers: messages may queue up"
    membership.handle(Rejoin(reason="?"), 6.0)
    membership.handle(welcome(2), 6.1)
    membership.cache_changed(change(prefixes(2)))
    assert beat(membership, 6.2).cache is None
    membership.cache_changed(all_of(1, 2))
    assert told(beat(membership, 6.3).cache)[1:3] == (True, b"".join(prefixes(1, 2)))


@pytest.mark.parametrize("num_prefixes", [MAX_PREFIXES, MAX_PREFIXES + 3])
def test_the_largest_snapshot_fits_a_message(num_prefixes: int) -> None:
    membership = admitted()
    membership.cache_changed(all_of(*range(num_prefixes)))
    message = beat(membership, 0.1)
    assert message.cache is not None and len(message.cache.added) == 8 * MAX_PREFIXES
    assert Decoder[Heartbeat](Heartbeat).decode(encode(message)) == message


def test_the_coordinator_asks_for_a_drain_and_hears_of_it() -> None:
    membership = admitted()
    early = beat(membership, 0.1)
    assert membership.handle(ack(early.sequence, drain=True), 0.2) == [DrainWanted()]
    plain = beat(membership, 0.3)
    draining = beat(membership, 0.4, draining=True)
    assert draining.draining
    membership.handle(ack(plain.sequence), 0.5)
    assert not membership.is_drain_known(0.5)
    membership.handle(ack(draining.sequence), 0.6)
    assert membership.is_drain_known(0.6)


def test_who_drains_without_a_coordinator_does_not_wait_for_it() -> None:
    assert Membership(HELLO).is_drain_known(0.0)
    assert not admitted().is_drain_known(2.9)
    assert admitted().is_drain_known(3.1)
