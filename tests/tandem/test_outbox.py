"""Resends go on until acknowledged, slow down, and never outlive their key."""

import pytest

from tandem.messages.handoff import Drained, Revoke
from tandem.outbox import Outbox

DRAINED = Drained(request_id=b"r" * 16, attempt=1)
REVOKE = Revoke(request_id=b"r" * 16, attempt=1)


def test_sends_at_once_then_slower_and_slower_until_acknowledged() -> None:
    outbox: Outbox[str, str] = Outbox()
    outbox.send("k", "peer", DRAINED, 10.0)
    sent_at = [t / 4 for t in range(40, 80) if outbox.due(t / 4)]
    assert sent_at == [10.0, 10.5, 11.5, 13.5, 15.5, 17.5, 19.5]
    assert outbox.num_resent == 6
    assert outbox.acknowledge("k")
    assert outbox.due(1000.0) == []
    assert len(outbox) == 0


def test_a_second_acknowledgement_is_told_apart() -> None:
    outbox: Outbox[str, str] = Outbox()
    outbox.send("k", "peer", DRAINED, 0.0)
    assert (outbox.acknowledge("k"), outbox.acknowledge("k")) == (True, False)


def test_a_late_caller_gets_each_message_once() -> None:
    outbox: Outbox[int, str] = Outbox()
    outbox.send(1, "a", DRAINED, 0.0)
    outbox.send(2, "b", REVOKE, 0.0)
    assert outbox.due(0.0) == [("a", DRAINED), ("b", REVOKE)]
    assert outbox.due(500.0) == [("a", DRAINED), ("b", REVOKE)]


def test_sending_under_the_same_key_replaces_and_restarts() -> None:
    outbox: Outbox[str, str] = Outbox()
    outbox.send("k", "old", DRAINED, 0.0)
    outbox.due(0.0)
    outbox.send("k", "new", REVOKE, 0.1)
    assert outbox.due(0.1) == [("new", REVOKE)]
    assert outbox.due(0.5) == []
    assert outbox.due(0.6) == [("new", REVOKE)]
    assert len(outbox) == 1


def test_a_lost_peer_is_forgotten_alone() -> None:
    outbox: Outbox[int, str] = Outbox()
    for key, peer in enumerate(["a", "b", "a"]):
        outbox.send(key, peer, DRAINED, 0.0)
    assert outbox.drop_destination("a") == [0, 2]
    assert outbox.due(0.0) == [("b", DRAINED)]
    assert 1 in outbox
    assert 0 not in outbox


def test_next_due_skips_what_was_acknowledged() -> None:
    outbox: Outbox[str, str] = Outbox(first_s=1.0, longest_s=1.0)
    assert outbox.next_due() is None
    outbox.send("a", "peer", DRAINED, 0.0)
    outbox.send("b", "peer", DRAINED, 0.25)
    outbox.acknowledge("a")
    assert outbox.next_due() == 0.25
    outbox.due(0.25)
    assert outbox.next_due() == 1.25
    outbox.acknowledge("b")
    assert outbox.next_due() is None


def test_memory_does_not_grow_with_acknowledged_messages() -> None:
    outbox: Outbox[int, str] = Outbox()
    for key in range(1000):
        outbox.send(key, "peer", DRAINED, key * 0.01)
        outbox.due(key * 0.01)
        outbox.acknowledge(key)
    assert outbox.due(1e9) == []
    assert (len(outbox), outbox.next_due()) == (0, None)


def test_intervals_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="not ordered"):
        Outbox(first_s=3.0, longest_s=2.0)
