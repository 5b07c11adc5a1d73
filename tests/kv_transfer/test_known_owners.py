"""A writer's memory of page owners does not grow with every name that there ever was."""

import pytest

from kv_transfer import known_owners
from kv_transfer.actions import SendToOwner
from kv_transfer.outgoing import OutgoingTransfers
from tandem.messages.common import NodeRef
from tandem.messages.handoff import Drained, ReserveDenied, Revoke
from tests.kv_transfer.test_lost_owners import start


def owner(number: int, **changes: int) -> NodeRef:
    fields = {"incarnation": 1, "epoch": number + 1, **changes}
    return NodeRef(node_id=f"d{number}", control_address="tcp://d", **fields)


def key(number: int) -> tuple[bytes, int]:
    return number.to_bytes(16, "big"), 1


def deny(transfers: OutgoingTransfers, number: int) -> None:
    """The transfer's end, after which nothing is under way to its owner."""
    request_id, attempt = key(number)
    denied = ReserveDenied(
        request_id=request_id, attempt=attempt, code="overloaded", message="full"
    )
    transfers.handle(f"d{number}", denied, 0.0)


def test_owners_without_transfers_are_forgotten_the_oldest_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_owners, "MAX_OWNERS", 10)
    transfers = OutgoingTransfers(page_size=4)
    for number in range(40):
        start(transfers, key=key(number), owner=owner(number))
        if number != 3:  # its Reserve is still unanswered
            deny(transfers, number)
    known = transfers._owners
    assert len(known) == 10
    assert [number for number in range(40) if f"d{number}" in known] == [3, *range(31, 40)]
    assert transfers.live().keys() == {key(3)}


def test_many_busy_ones_are_all_kept_and_forgotten_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_owners, "MAX_OWNERS", 5)
    transfers = OutgoingTransfers(page_size=4)
    for number in range(20):
        start(transfers, key=key(number), owner=owner(number))
    assert len(transfers._owners) == 20
    for number in range(20):
        deny(transfers, number)
    start(transfers, key=key(20), owner=owner(20))
    assert len(transfers._owners) == 5


def test_one_that_comes_back_is_met_as_if_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_owners, "MAX_OWNERS", 1)
    transfers = OutgoingTransfers(page_size=4)
    start(transfers, key=key(0), owner=owner(0))
    deny(transfers, 0)
    start(transfers, key=key(1), owner=owner(1))
    request_id, attempt = key(0)
    revoke = Revoke(request_id=request_id, attempt=attempt)
    assert transfers.handle("d0", revoke, 0.0) == []
    (again,) = start(transfers, key=key(2), owner=owner(0, epoch=9))
    assert isinstance(again, SendToOwner) and again.owner == owner(0, epoch=9)
    (drained,) = transfers.handle("d0", revoke, 0.0)
    assert isinstance(drained.message, Drained)
