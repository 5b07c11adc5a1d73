"""Writers that an owner remembers are bounded; one with an open grant is never forgotten."""

from typing import Any

import pytest

from kv_transfer import pool_owner
from kv_transfer.actions import GrantClosed, OpenGrant
from kv_transfer.pool_owner import PoolOwner


class Receiver:
    """Notes the grants it was told to receive for."""

    def __init__(self) -> None:
        self.opened: list[int] = []

    def open_grant(self, grant: OpenGrant) -> None:
        self.opened.append(grant.grant_id)

    def close_grant(self, grant_id: int) -> None:
        self.opened.remove(grant_id)


def test_a_writer_with_an_open_grant_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_owner, "MAX_WRITERS", 3)
    receiver: Any = Receiver()
    told: list[Any] = []
    nothing: Any = None
    owner = PoolOwner(nothing, receiver, nothing, told.append)
    owner.admit(b"node/p0/1", "zmq")
    owner.open_grant(OpenGrant(1, b"node/p0/1", (1,)))
    for n in range(1, 10):
        owner.admit(b"node/p%d/1" % n, "zmq")
    owner.open_grant(OpenGrant(2, b"node/p0/1", (2,)))
    owner.open_grant(OpenGrant(3, b"node/p1/1", (3,)))  # forgotten: it has to choose again
    assert receiver.opened == [1, 2]
    owner.close_grant(1)
    assert told == [GrantClosed(1, remote_writer_stopped=True)]
