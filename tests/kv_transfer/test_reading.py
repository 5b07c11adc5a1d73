"""The writer's machine reads what the owner has cached; pages are held until the read returned."""

import pytest

from kv_transfer.actions import (
    FirstToken,
    Granted,
    PagesRead,
    ReadEnded,
    ReadFailed,
    ReadPages,
    SendToOwner,
    SourceReleased,
    StopWriting,
    TransferFailed,
    WritePages,
)
from kv_transfer.departures import OutgoingPhase
from kv_transfer.outgoing import OutgoingTransfers
from tandem.frames import TokenIds
from tandem.messages.common import NodeRef, PrefillReport
from tandem.messages.handoff import Drained, Grant, Progress, Reserve, Revoke

KEY = (b"r" * 16, 1)
IDS = {"request_id": KEY[0], "attempt": KEY[1]}
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=3, control_address="tcp://d0")
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)
DRAINED = SendToOwner(OWNER, Drained(**IDS))
READ = ReadPages(KEY, OWNER, 9, (61, 62), (6, 7))
FAILED = ReadFailed(KEY, "stopped")


@pytest.fixture
def transfers() -> OutgoingTransfers:
    """A transfer of five pages whose first three the owner has; it reads the second and third."""
    transfers = OutgoingTransfers(4)
    (reserve,) = transfers.start(
        KEY,
        OWNER,
        num_tokens=18,
        max_total_tokens=26,
        sequence=5,
        deadline_s=30.0,
        page_hashes=b"h" * 64,
        gateway=b"g",
        now=0.0,
    )
    assert isinstance(reserve, SendToOwner)
    assert isinstance(reserve.message, Reserve)
    assert reserve.message.page_hashes.data == b"h" * 64
    grant = Grant(
        **IDS,
        grant_id=9,
        page_indices=TokenIds([70, 71]),
        num_cached_tokens=12,
        cached_page_indices=TokenIds([60, 61, 62]),
    )
    assert transfers.handle("d0", grant, 0.1) == [Granted(KEY, 12)]
    assert transfers.read(KEY, 1, [6, 7], 0.2) == [READ]
    return transfers


def test_a_read_ends_and_the_rest_is_written(transfers: OutgoingTransfers) -> None:
    assert transfers.bulk_event(PagesRead(KEY, 0.5), 0.7) == [ReadEnded(KEY, 0.5)]
    assert transfers.bulk_event(PagesRead(KEY, 0.5), 0.7) == []  # once
    assert transfers.num_ignored == 1
    first = FirstToken(42, None, REPORT)
    (write,) = [
        action
        for action in transfers.finish(KEY, [5, 6, 7, 8, 9], first, 0.8)
        if isinstance(action, WritePages)
    ]
    assert (write.source_pages, write.target_pages, write.first) == ((8, 9), (70, 71), 0)


def test_a_failed_read_fails_nothing_else(transfers: OutgoingTransfers) -> None:
    assert transfers.bulk_event(FAILED, 0.7) == [ReadEnded(KEY, None)]
    assert transfers.live() == {KEY: OutgoingPhase.WRITING}


def test_beats_go_on_while_reading(transfers: OutgoingTransfers) -> None:
    beats = [a for t in range(1, 5) for a in transfers.tick(float(t))]
    assert {type(a.message) for a in beats if isinstance(a, SendToOwner)} == {Progress}


@pytest.mark.parametrize("event", [FAILED, PagesRead(KEY, 0.5)])
def test_cancel_while_reading_holds_the_pages_until_the_read_returned(
    transfers: OutgoingTransfers, event: PagesRead | ReadFailed
) -> None:
    assert transfers.cancel(KEY, 0.3) == [StopWriting(KEY)]
    assert transfers.live() == {KEY: OutgoingPhase.STOPPING}
    assert transfers.tick(5.0) == []
    assert transfers.bulk_event(event, 5.1) == [SourceReleased(KEY), DRAINED]


@pytest.mark.parametrize("how", ["revoke", "deadline", "lost"])
def test_every_failure_while_reading_stops_the_read_first(
    transfers: OutgoingTransfers, how: str
) -> None:
    if how == "revoke":
        actions = transfers.handle("d0", Revoke(**IDS), 0.3)
    elif how == "deadline":
        actions = transfers.tick(30.0)
    else:
        actions = transfers.peer_lost("d0", 0.3)
    failed, stop = [a for a in actions if not isinstance(a, SendToOwner)]
    assert isinstance(failed, TransferFailed)
    assert stop == StopWriting(KEY)
    released, *rest = transfers.bulk_event(FAILED, 30.1)
    assert released == SourceReleased(KEY)
    assert rest == [DRAINED]
