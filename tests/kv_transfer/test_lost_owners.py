"""The writer's machine and owners that are silent, restarted, known anew, or lost."""

import msgspec
import pytest

from kv_transfer.actions import (
    FirstToken,
    Granted,
    OutgoingAction,
    PagesWritten,
    SendToOwner,
    SourceReleased,
    StopWriting,
    TransferFailed,
    WriteFailed,
    WritePages,
)
from kv_transfer.departures import OutgoingPhase
from kv_transfer.last_words import MAX_LOSSES
from kv_transfer.outgoing import ANSWER_S, OutgoingTransfers
from tandem.frames import TokenIds
from tandem.messages.common import NodeRef, PrefillReport
from tandem.messages.handoff import (
    ChunkSum,
    Commit,
    CommitAck,
    Drained,
    DrainedAck,
    Grant,
    Reserve,
    ReserveDenied,
    ReserveQueued,
    Revoke,
)

KEY, OTHER = (b"r" * 16, 1), (b"s" * 16, 1)
IDS = {"request_id": KEY[0], "attempt": KEY[1]}
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=3, control_address="tcp://d0")
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)
GRANT = Grant(**IDS, grant_id=9, page_indices=TokenIds([70, 71, 72]), num_cached_tokens=0)
DRAINED = SendToOwner(OWNER, Drained(**IDS))
REVOKE = Revoke(**IDS)


def start(
    transfers: OutgoingTransfers,
    *,
    key: tuple[bytes, int] = KEY,
    owner: NodeRef = OWNER,
    now: float = 0.0,
) -> list[OutgoingAction]:
    return transfers.start(
        key,
        owner,
        num_tokens=10,
        max_total_tokens=18,
        sequence=5,
        deadline_s=None,
        page_hashes=b"h",
        gateway=b"g",
        now=now,
    )


def of_type(actions: list[OutgoingAction], kind: type) -> list:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[OutgoingAction]) -> list:
    return [action.message for action in actions if isinstance(action, SendToOwner)]


def ticked(transfers: OutgoingTransfers, begin: float, end: float) -> list[OutgoingAction]:
    """Everything that ticks from `begin` to before `end` do, four per second."""
    times = [begin + i / 4 for i in range(int((end - begin) * 4))]
    return [action for at in times for action in transfers.tick(at)]


@pytest.fixture
def transfers() -> OutgoingTransfers:
    return OutgoingTransfers(4)


@pytest.fixture
def writing(transfers: OutgoingTransfers) -> WritePages:
    """A granted transfer of three pages with all of them being written."""
    start(transfers)
    transfers.handle("d0", GRANT, 0.1)
    first = FirstToken(42, None, REPORT)
    (write,) = of_type(transfers.finish(KEY, [5, 6, 7], first, 0.2), WritePages)
    return write


@pytest.fixture
def committing(transfers: OutgoingTransfers, writing: WritePages) -> Commit:
    """The same, with everything written and the Commit sent."""
    chunk = ChunkSum(first=0, num_pages=3, checksum=b"x" * 8)
    (commit,) = sent(transfers.bulk_event(PagesWritten(KEY, chunk), 0.5))
    return commit


def test_an_owner_that_never_answers_is_named_with_its_address(transfers) -> None:
    start(transfers)
    assert of_type(ticked(transfers, 0.0, ANSWER_S), TransferFailed) == []
    failed, released, last_word = transfers.tick(ANSWER_S)
    assert failed == TransferFailed(
        KEY,
        "node_failed",
        "d0 at tcp://d0 does not answer: check --advertised-host and the firewall",
    )
    assert released == SourceReleased(KEY)
    assert last_word == DRAINED  # it may have granted before it fell silent
    assert (transfers.live(), transfers.num_unacknowledged) == ({}, 0)
    assert DRAINED in transfers.handle("d0", GRANT, 30.0)  # it came very late


def test_a_queued_reserve_waits_as_long_as_the_owner_answers(transfers) -> None:
    start(transfers)
    for begin in (0.0, 8.0, 16.0):
        assert of_type(ticked(transfers, begin, begin + 8.0), TransferFailed) == []
        transfers.handle("d0", ReserveQueued(**IDS), begin + 8.0)
    assert of_type(ticked(transfers, 24.0, 34.5), TransferFailed)[0].code == "node_failed"


def test_a_long_step_of_this_node_is_no_silence_of_the_owner(transfers) -> None:
    """The tick right after the step precedes the messages that came meanwhile."""
    start(transfers)
    transfers.tick(0.1)
    assert of_type(transfers.tick(60.0), TransferFailed) == []
    assert transfers.handle("d0", GRANT, 60.0) == [Granted(KEY)]


def test_a_lost_peer_fails_after_its_copies_returned(transfers, writing) -> None:
    failed, stop = transfers.peer_lost("d0", 0.3)
    assert isinstance(failed, TransferFailed)
    assert failed.code == "node_failed"
    assert stop == StopWriting(KEY)
    actions = transfers.bulk_event(WriteFailed(KEY, 0, "stopped"), 0.4)
    assert actions == [SourceReleased(KEY), DRAINED]
    assert transfers.num_unacknowledged == 0  # a drain does not wait for the dead
    assert DRAINED in transfers.handle("d0", REVOKE, 9.0)  # it lived after all, and asks
    assert transfers.handle("d0", DrainedAck(**IDS), 9.1) == []
    assert transfers.num_ignored == 1  # the Revoke
    assert ticked(transfers, 9.1, 30.0) == []


def test_a_peer_that_is_not_lost_is_untouched(transfers, writing) -> None:
    assert transfers.peer_lost("d1", 0.3) == []
    assert transfers.live() == {KEY: OutgoingPhase.WRITING}


def test_another_process_under_the_name_ends_the_transfers_of_the_former(
    transfers, writing: WritePages
) -> None:
    newer = msgspec.structs.replace(OWNER, incarnation=2, epoch=4)
    actions = start(transfers, key=OTHER, owner=newer, now=0.3)
    (failed,) = of_type(actions, TransferFailed)
    assert (failed.key, failed.code) == (KEY, "node_failed")
    assert "another process took its place" in failed.message
    (reserve,) = of_type(actions, SendToOwner)
    assert (reserve.owner, reserve.message.request_id) == (newer, OTHER[0])
    failed, released = start(transfers, key=(b"t" * 16, 1), now=0.4)
    assert (failed.code, released) == ("node_failed", SourceReleased((b"t" * 16, 1)))


@pytest.mark.parametrize("epoch", [2, 4])
def test_another_epoch_of_the_same_process_ends_nothing(
    transfers, writing: WritePages, epoch: int
) -> None:
    """A restarted coordinator gives new epochs; commands that name the old one may come late."""
    named = msgspec.structs.replace(OWNER, epoch=epoch)
    (reserve,) = start(transfers, key=OTHER, owner=named, now=0.3)
    assert isinstance(reserve.message, Reserve)
    assert reserve.owner.epoch == max(epoch, OWNER.epoch)
    assert transfers.live() == {KEY: OutgoingPhase.WRITING, OTHER: OutgoingPhase.RESERVING}


def test_the_loss_of_a_predecessor_is_heard_of_late(transfers) -> None:
    start(transfers, owner=msgspec.structs.replace(OWNER, incarnation=2))
    assert transfers.peer_lost("d0", 0.1, "gone", incarnation=1) == []
    assert transfers.live() == {KEY: OutgoingPhase.RESERVING}
    failed, released, _ = transfers.peer_lost("d0", 0.1, "gone", incarnation=2)
    assert (failed.message, released) == ("lost d0: gone", SourceReleased(KEY))


def test_a_commit_to_a_lost_owner_ends_once_and_is_not_resent(transfers, committing) -> None:
    assert transfers.num_unacknowledged == 1
    actions = transfers.peer_lost("d0", 0.6, "its lease ran out")
    failed = TransferFailed(KEY, "node_failed", "lost d0: its lease ran out")
    assert actions == [failed, DRAINED]
    assert (transfers.live(), transfers.num_unacknowledged) == ({}, 0)
    assert transfers.peer_lost("d0", 0.7) == []
    assert transfers.handle("d0", CommitAck(**IDS, grant_id=9), 0.8) == []
    assert set(map(str, ticked(transfers, 0.8, 30.0))) == {str(DRAINED)}


def test_an_owner_that_is_lost_is_told_drained_when_it_is_back(transfers, committing) -> None:
    """It was frozen. Its Revoke cannot reach a writer that has given the link up."""
    assert transfers.cancel(KEY, 0.6) == [DRAINED]
    assert transfers.peer_lost("d0", 0.7) == [DRAINED]
    assert transfers.num_unacknowledged == 0
    assert DRAINED in ticked(transfers, 0.8, 15.0)
    transfers.peer_lost("d0", 15.0)  # dialled in vain
    assert DRAINED in ticked(transfers, 15.0, 30.0)
    transfers.handle("d0", DrainedAck(**IDS), 30.0)
    assert ticked(transfers, 30.0, 60.0) == []


def test_an_owner_is_not_dialled_for_ever(transfers, committing) -> None:
    transfers.cancel(KEY, 0.6)
    for n in range(MAX_LOSSES + 1):
        assert DRAINED in [*transfers.peer_lost("d0", 15.0 * n), *ticked(transfers, n, n + 3)]
    assert transfers.peer_lost("d0", 200.0) == []
    assert ticked(transfers, 200.0, 230.0) == []


def test_what_was_denied_and_what_a_former_process_granted_needs_no_last_word(
    transfers, writing
) -> None:
    start(transfers, key=OTHER, now=0.3)
    denied = ReserveDenied(request_id=OTHER[0], attempt=1, code="overloaded", message="x")
    transfers.handle("d0", denied, 0.4)
    newer = msgspec.structs.replace(OWNER, incarnation=2, epoch=4)
    start(transfers, key=(b"t" * 16, 1), owner=newer, now=0.5)
    transfers.bulk_event(WriteFailed(KEY, 0, "stopped"), 0.6)
    assert DRAINED not in ticked(transfers, 0.6, 5.0)


def test_a_cancelled_commit_is_resent_no_more_and_drained_is_until_answered(
    transfers, committing
) -> None:
    assert transfers.cancel(KEY, 0.6) == [DRAINED]
    assert transfers.live() == {}
    resent = ticked(transfers, 0.7, 6.0)
    assert len(resent) > 2
    assert set(map(str, resent)) == {str(DRAINED)}
    assert transfers.handle("d0", DrainedAck(**IDS), 6.0) == []
    assert ticked(transfers, 6.0, 30.0) == []
