"""Frames that were heard before, are of another time, or jump: W18 of the wire attacks."""

import msgspec
import pytest

from tandem.frames import Blob
from tandem.messages.membership import CacheDelta, Goodbye, HeartbeatAck, Rejoin


def active_pages(cluster) -> int:
    (node,) = cluster.status().nodes
    return node.load.pages.active


def test_w18_a_replayed_heartbeat_brings_no_old_news(cluster) -> None:
    cluster.join("n0", "mixed")
    old = cluster.heartbeat("n0", counts={"used": 1})
    cluster.send("n0", old)
    cluster.beat("n0", used=9)
    for _ in range(3):
        cluster.send("n0", old)
    assert active_pages(cluster) == 9
    cluster.beat("n0", used=10)
    assert active_pages(cluster) == 10


def test_w18_an_old_epoch_is_sent_away(cluster) -> None:
    cluster.join("n0", "mixed", incarnation=1)
    stale = cluster.heartbeat("n0", counts={"used": 1})
    goodbye = Goodbye(node_id="n0", incarnation=1, epoch=cluster.epochs["n0"])
    cluster.join("n0", "mixed", incarnation=2)
    cluster.beat("n0", incarnation=2, used=7)
    num_before = cluster.core.num_dropped
    answers = [message for _, message in cluster.send("n0", stale)]
    assert [type(message) for message in answers] == [Rejoin]
    cluster.send("n0", goodbye)
    assert cluster.core.num_dropped == num_before + 1
    assert active_pages(cluster) == 7


@pytest.mark.parametrize("sequence", [2**40, 2**63 - 1])
def test_w18_a_leap_of_the_sequence_does_not_silence_its_node(cluster, sequence: int) -> None:
    cluster.join("n0", "mixed")
    cluster.beat("n0", used=1)
    forged = msgspec.structs.replace(cluster.heartbeat("n0"), sequence=sequence)
    cluster.send("n0", forged)
    for used in (3, 4):
        assert isinstance(cluster.beat("n0", used=used), HeartbeatAck)
        assert active_pages(cluster) == used


def test_w18_a_gap_in_the_cache_deltas_asks_for_a_snapshot(cluster) -> None:
    cluster.join("n0", "mixed")

    def delta(number: int, *, snapshot: bool = False) -> CacheDelta:
        prefix = number.to_bytes(8, "big")
        return CacheDelta(number=number, is_snapshot=snapshot, added=Blob(prefix), removed=Blob())

    assert not cluster.beat("n0", cache=delta(1, snapshot=True)).wants_snapshot
    assert cluster.beat("n0", cache=delta(5)).wants_snapshot
    assert not cluster.beat("n0", cache=delta(6, snapshot=True)).wants_snapshot


def test_w18_a_heartbeat_of_a_stranger_is_asked_to_join(cluster) -> None:
    cluster.join("n0", "mixed")
    stranger = msgspec.structs.replace(cluster.heartbeat("n0"), node_id="n9")
    (answer,) = [message for _, message in cluster.send("n9", stranger)]
    assert isinstance(answer, Rejoin)
    assert len(cluster.status().nodes) == 1
