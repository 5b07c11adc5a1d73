"""The writer's machine, phase by phase."""

from collections.abc import Sequence

import pytest

from kv_transfer.actions import (
    Committed,
    FirstToken,
    Granted,
    OutgoingAction,
    PagesWritten,
    Parked,
    SendToOwner,
    SourceReleased,
    StopWriting,
    TransferFailed,
    WriteFailed,
    WritePages,
)
from kv_transfer.departures import OutgoingPhase
from kv_transfer.outgoing import MAX_CHUNKS, OutgoingTransfers
from tandem.frames import TokenIds
from tandem.messages.common import NodeRef, PrefillReport
from tandem.messages.handoff import (
    ChunkSum,
    Commit,
    CommitAck,
    Drained,
    DrainedAck,
    Grant,
    Progress,
    Reserve,
    ReserveDenied,
    ReserveQueued,
    Revoke,
)

PAGE = 4
KEY = (b"r" * 16, 1)
IDS = {"request_id": KEY[0], "attempt": KEY[1]}
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=3, control_address="tcp://d0")
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)
FIRST = FirstToken(42, None, REPORT)
DRAINED = SendToOwner(OWNER, Drained(**IDS))
REVOKE = Revoke(**IDS)


def start(
    transfers: OutgoingTransfers, *, num_tokens: int = 10, deadline_s: float | None = None
) -> list[OutgoingAction]:
    return transfers.start(
        KEY,
        OWNER,
        num_tokens=num_tokens,
        max_total_tokens=num_tokens + 8,
        sequence=5,
        deadline_s=deadline_s,
        page_hashes=b"h",
        gateway=b"g",
        now=0.0,
    )


def grant(
    pages: Sequence[int], *, num_cached: int = 0, cached: Sequence[int] = (), grant_id: int = 9
) -> Grant:
    return Grant(
        **IDS,
        grant_id=grant_id,
        page_indices=TokenIds(pages),
        num_cached_tokens=num_cached,
        cached_page_indices=TokenIds(cached),
    )


def written(write: WritePages, byte: bytes = b"x") -> PagesWritten:
    chunk = ChunkSum(first=write.first, num_pages=len(write.source_pages), checksum=byte * 8)
    return PagesWritten(write.key, chunk)


def of_type(actions: list[OutgoingAction], kind: type) -> list:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[OutgoingAction]) -> list:
    return [action.message for action in actions if isinstance(action, SendToOwner)]


@pytest.fixture
def transfers() -> OutgoingTransfers:
    return OutgoingTransfers(PAGE)


@pytest.fixture
def writing(transfers: OutgoingTransfers) -> WritePages:
    """A granted transfer of three pages with the first two being written."""
    start(transfers)
    transfers.handle("d0", grant([70, 71, 72]), 0.1)
    (write,) = of_type(transfers.pages_computed(KEY, [5, 6], 0.2), WritePages)
    return write


@pytest.fixture
def committing(transfers: OutgoingTransfers, writing: WritePages) -> Commit:
    """The same, with everything written and the Commit sent."""
    transfers.bulk_event(written(writing), 0.3)
    (last,) = of_type(transfers.finish(KEY, [5, 6, 7], FIRST, 0.4), WritePages)
    (commit,) = sent(transfers.bulk_event(written(last, b"y"), 0.5))
    return commit


def test_the_happy_path_overlaps_writing_with_computing(transfers: OutgoingTransfers) -> None:
    (reserve,) = sent(start(transfers))
    assert isinstance(reserve, Reserve)
    assert (reserve.num_tokens, reserve.max_total_tokens, reserve.sequence) == (10, 18, 5)
    assert transfers.handle("d0", grant([70, 71, 72]), 0.1) == [Granted(KEY)]
    actions = transfers.pages_computed(KEY, [5], 0.2)
    assert of_type(actions, WritePages) == [WritePages(KEY, OWNER, 9, 0, (5,), (70,))]
    assert [type(message) for message in sent(actions)] == [Progress]
    assert transfers.pages_computed(KEY, [5], 0.3) == []
    (second,) = transfers.finish(KEY, [5, 6, 7], FIRST, 0.4)
    assert second == WritePages(KEY, OWNER, 9, 1, (6, 7), (71, 72))
    assert transfers.bulk_event(written(second, b"b"), 0.5) == []
    first = WritePages(KEY, OWNER, 9, 0, (5,), (70,))
    released, commit = transfers.bulk_event(written(first, b"a"), 0.6)
    assert released == SourceReleased(KEY)
    assert isinstance(commit, SendToOwner)
    assert isinstance(commit.message, Commit)
    assert [chunk.first for chunk in commit.message.chunks] == [0, 1]
    assert (commit.message.first_token_id, commit.message.num_tokens) == (42, 10)
    assert transfers.handle("d0", CommitAck(**IDS, grant_id=9), 0.7) == [Committed(KEY, 3)]
    assert transfers.live() == {}
    assert transfers.num_unacknowledged == 0
    assert transfers.num_ignored == 0


def test_pages_computed_before_the_grant_are_written_with_it(transfers) -> None:
    start(transfers)
    assert transfers.finish(KEY, [5, 6, 7], FIRST, 0.1) == []
    actions = transfers.handle("d0", grant([70, 71, 72]), 0.2)
    assert of_type(actions, WritePages) == [WritePages(KEY, OWNER, 9, 0, (5, 6, 7), (70, 71, 72))]


def test_only_the_suffix_that_the_owner_lacks_is_written(transfers) -> None:
    start(transfers)
    transfers.handle("d0", grant([71, 72], num_cached=4, cached=[70]), 0.1)
    assert transfers.pages_computed(KEY, [5], 0.2) == []
    (write,) = of_type(transfers.finish(KEY, [5, 6, 7], FIRST, 0.3), WritePages)
    assert (write.first, write.source_pages, write.target_pages) == (0, (6, 7), (71, 72))


def test_an_owner_that_has_everything_gets_a_commit_without_chunks(transfers) -> None:
    start(transfers, num_tokens=8)
    transfers.handle("d0", grant([], num_cached=8, cached=[70, 71]), 0.1)
    (commit,) = sent(transfers.finish(KEY, [5, 6], FIRST, 0.2))
    assert commit.chunks == ()


@pytest.mark.parametrize(
    "unsound",
    [
        grant([70, 71]),
        grant([70, 71, 71]),
        grant([70, 71, -1]),
        grant([70, 71], num_cached=3),
        grant([70, 71, 72], num_cached=4),
        grant([], num_cached=400),
        grant([70, 71], num_cached=4),
        grant([70, 71], num_cached=4, cached=[71]),
        grant([70, 71], num_cached=4, cached=[-1]),
        grant([70, 71], num_cached=8, cached=[72]),
        grant([], num_cached=12, cached=[70, 71, 72]),
    ],
)
def test_an_unsound_grant_fails_and_is_drained(transfers, unsound: Grant) -> None:
    start(transfers)
    failed, released, drained = transfers.handle("d0", unsound, 0.1)
    assert isinstance(failed, TransferFailed)
    assert "granted" in failed.message
    assert (released, drained) == (SourceReleased(KEY), DRAINED)


def test_a_reserve_is_repeated_until_granted_also_while_queued(transfers) -> None:
    start(transfers)
    assert [type(m) for m in sent(transfers.tick(0.5))] == [Reserve]
    assert transfers.handle("d0", ReserveQueued(**IDS), 0.6) == [Parked(KEY)]
    assert [type(m) for m in sent(transfers.tick(1.5))] == [Reserve]
    transfers.handle("d0", grant([70, 71, 72]), 1.6)
    assert Reserve not in [type(m) for m in sent(transfers.tick(60.0))]


def test_a_denied_reserve_ends_without_drained(transfers) -> None:
    start(transfers)
    denied = ReserveDenied(**IDS, code="too_few_pages", message="needs 9, has 4")
    assert transfers.handle("d0", denied, 0.1) == [
        TransferFailed(KEY, "too_few_pages", "needs 9, has 4"),
        SourceReleased(KEY),
    ]
    assert (transfers.live(), transfers.num_unacknowledged) == ({}, 0)


def test_beats_renew_the_lease_while_the_prompt_computes(transfers, writing) -> None:
    beats = [t for t in range(10) if sent(transfers.tick(float(t)))]
    assert beats == [2, 3, 4, 5, 6, 7, 8, 9]  # the last one went with the pages at 0.2


def test_cancel_before_the_grant_drains_at_once(transfers) -> None:
    start(transfers)
    assert transfers.cancel(KEY, 0.1) == [SourceReleased(KEY), DRAINED]
    assert transfers.handle("d0", DrainedAck(**IDS), 0.2) == []
    assert transfers.num_unacknowledged == 0


def test_a_grant_that_comes_after_cancel_is_answered_drained(transfers) -> None:
    start(transfers)
    transfers.cancel(KEY, 0.1)
    transfers.handle("d0", DrainedAck(**IDS), 0.2)
    assert transfers.handle("d0", grant([70, 71, 72]), 0.3) == [DRAINED]
    assert transfers.num_ignored == 1
    assert transfers.tick(0.8) == [DRAINED]  # until it is noted
    transfers.handle("d0", DrainedAck(**IDS), 0.9)
    assert transfers.tick(60.0) == []


def test_cancel_while_writing_waits_for_the_copy(transfers, writing: WritePages) -> None:
    assert transfers.cancel(KEY, 0.3) == [StopWriting(KEY)]
    assert transfers.cancel(KEY, 0.4) == []
    assert transfers.live() == {KEY: OutgoingPhase.STOPPING}
    assert transfers.pages_computed(KEY, [5, 6, 7], 0.5) == []
    stopped = WriteFailed(KEY, 0, "stopped")
    assert transfers.bulk_event(stopped, 0.6) == [SourceReleased(KEY), DRAINED]
    assert transfers.bulk_event(stopped, 0.7) == []
    assert transfers.num_ignored == 1


def test_cancel_after_commit_says_drained_and_releases_once(transfers, committing) -> None:
    assert transfers.cancel(KEY, 0.6) == [DRAINED]
    assert transfers.handle("d0", CommitAck(**IDS, grant_id=9), 0.7) == []
    assert transfers.num_ignored == 1


def test_cancel_before_start_lets_nothing_begin(transfers) -> None:
    assert transfers.cancel(KEY, 0.0) == []
    failed, released = start(transfers)
    assert isinstance(failed, TransferFailed)
    assert failed.code == "cancelled"
    assert released == SourceReleased(KEY)
    assert transfers.live() == {}


def test_drained_is_repeated_until_acknowledged(transfers) -> None:
    start(transfers)
    transfers.cancel(KEY, 0.0)
    assert transfers.tick(0.5) == [DRAINED]
    assert transfers.tick(1.5) == [DRAINED]
    transfers.handle("d0", DrainedAck(**IDS), 1.6)
    assert transfers.tick(60.0) == []


def test_revoke_in_every_phase(transfers, writing: WritePages) -> None:
    failed, stop = transfers.handle("d0", REVOKE, 0.3)
    assert isinstance(failed, TransferFailed)
    assert stop == StopWriting(KEY)
    assert transfers.handle("d0", REVOKE, 0.4) == []
    assert transfers.bulk_event(written(writing), 0.5) == [SourceReleased(KEY), DRAINED]
    assert transfers.handle("d0", REVOKE, 0.6) == [DRAINED]


def test_revoke_of_a_reserve_and_of_a_commit(committing, transfers) -> None:
    failed, drained = transfers.handle("d0", REVOKE, 0.6)
    assert isinstance(failed, TransferFailed)
    assert drained == DRAINED
    others = OutgoingTransfers(PAGE)
    start(others)
    failed, released, drained = others.handle("d0", REVOKE, 0.6)
    assert isinstance(failed, TransferFailed)
    assert (released, drained) == (SourceReleased(KEY), DRAINED)


def test_a_failed_write_fails_the_transfer_with_its_reason(transfers, writing) -> None:
    actions = transfers.bulk_event(WriteFailed(KEY, 0, "link broke"), 0.3)
    assert actions == [
        TransferFailed(KEY, "transfer_failed", "link broke"),
        SourceReleased(KEY),
        DRAINED,
    ]


def test_a_refused_commit_is_drained(transfers, committing) -> None:
    refused = CommitAck(**IDS, grant_id=9, error="checksums differ")
    assert transfers.handle("d0", refused, 0.6) == [
        TransferFailed(KEY, "transfer_failed", "checksums differ"),
        DRAINED,
    ]


def test_a_commit_is_repeated_until_acknowledged(transfers, committing) -> None:
    assert sent(transfers.tick(1.0)) == [committing]
    transfers.handle("d0", CommitAck(**IDS, grant_id=9), 1.1)
    assert transfers.tick(60.0) == []


@pytest.mark.parametrize("computed", [0, 2])
def test_the_deadline_ends_a_transfer(transfers, computed: int) -> None:
    start(transfers, deadline_s=3.0)
    transfers.handle("d0", grant([70, 71, 72]), 0.1)
    transfers.pages_computed(KEY, [5, 6][:computed], 0.2)
    assert of_type(transfers.tick(2.9), TransferFailed) == []
    (failed,) = of_type(transfers.tick(3.0), TransferFailed)
    assert failed.code == "deadline_exceeded"
    assert transfers.live() == ({KEY: OutgoingPhase.STOPPING} if computed else {})


def test_repeated_stale_and_foreign_messages_are_counted(transfers, writing) -> None:
    for message in (
        grant([70, 71, 72]),
        grant([1, 2, 3], grant_id=8),
        CommitAck(**IDS, grant_id=9),
        DrainedAck(**IDS),
        ReserveQueued(**IDS),
    ):
        assert transfers.handle("d0", message, 0.3) == []
    assert transfers.handle("d7", REVOKE, 0.3) == []
    assert transfers.handle("d7", Revoke(request_id=b"u" * 16, attempt=1), 0.3) == []
    assert transfers.num_ignored == 7
    assert transfers.live() == {KEY: OutgoingPhase.WRITING}


def test_a_commit_never_lists_more_chunks_than_the_wire_takes(transfers) -> None:
    num_pages = MAX_CHUNKS + 50
    start(transfers, num_tokens=num_pages * PAGE)
    transfers.handle("d0", grant(range(num_pages)), 0.1)
    sources = list(range(num_pages))
    for num_computed in range(1, num_pages):
        for write in of_type(
            transfers.pages_computed(KEY, sources[:num_computed], 0.2), WritePages
        ):
            transfers.bulk_event(written(write), 0.2)
    (last,) = of_type(transfers.finish(KEY, sources, FIRST, 0.3), WritePages)
    (commit,) = sent(transfers.bulk_event(written(last), 0.4))
    assert len(commit.chunks) == MAX_CHUNKS
    assert sum(chunk.num_pages for chunk in commit.chunks) == num_pages
