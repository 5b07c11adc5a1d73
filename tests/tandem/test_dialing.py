"""When a link dials anew, and what it says is wrong."""

from tandem.dialing import FIRST_PAUSE_S, LAST_PAUSE_S, Dialing, LinkEvent


def with_keys() -> Dialing:
    return Dialing("tcp://h:1", "node/a", "node/b")


def test_a_broken_connection_is_dialled_after_a_pause_with_keys_only() -> None:
    keyed, bare = with_keys(), Dialing("tcp://h:1", None, None)
    for dialing in (keyed, bare):
        dialing.take(LinkEvent.SUCCEEDED, 1.0)
        dialing.take(LinkEvent.DISCONNECTED, 2.0)
        assert dialing.num_disconnections == 1 and dialing.trouble is None
    assert not keyed.is_due(2.0) and keyed.is_due(2.0 + FIRST_PAUSE_S)
    keyed.dialled()
    assert not keyed.is_due(100.0)
    assert not bare.is_due(100.0)  # libzmq does it
    bare.take(LinkEvent.BROKEN, 3.0)
    assert bare.is_due(4.0)  # libzmq never would


def test_pauses_grow_to_a_second_until_a_handshake_succeeds() -> None:
    dialing, pauses, now = with_keys(), [], 0.0
    for _ in range(8):
        dialing.take(LinkEvent.HUNG_UP, now)
        dialing.take(LinkEvent.DISCONNECTED, now)  # the same end
        assert dialing.due_at is not None
        pauses.append(dialing.due_at - now)
        now = dialing.due_at
        dialing.dialled()
    assert pauses[0] == FIRST_PAUSE_S and max(pauses) == LAST_PAUSE_S == pauses[-1]
    assert dialing.num_failures == 8 and dialing.num_disconnections == 0
    dialing.take(LinkEvent.SUCCEEDED, now)
    dialing.take(LinkEvent.DISCONNECTED, now)
    assert dialing.due_at == now + FIRST_PAUSE_S and dialing.num_failures == 0


def test_trouble_needs_two_failures_and_ends_with_a_success() -> None:
    dialing = with_keys()
    dialing.take(LinkEvent.REFUSED, 0.0)
    assert dialing.trouble is None
    dialing.take(LinkEvent.REFUSED, 1.0)
    assert "does not accept the key of node/a" in str(dialing.trouble)
    dialing.take(LinkEvent.HUNG_UP, 2.0)
    assert "not those of node/b" in str(dialing.trouble)
    dialing.take(LinkEvent.SUCCEEDED, 3.0)
    assert dialing.trouble is None
    bare = Dialing("tcp://h:1", None, None)
    for now in (0.0, 1.0):
        bare.take(LinkEvent.BROKEN, now)
    assert "requires keys: pass --keys" in str(bare.trouble)
