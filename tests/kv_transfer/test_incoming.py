"""The owner's machine, phase by phase; the ledger is audited after every event."""

from typing import Any

import msgspec
import pytest

from kv_transfer.actions import (
    ArrivalFailed,
    Arrived,
    CloseGrant,
    GrantClosed,
    IncomingAction,
    Notice,
    OpenGrant,
    PagesVerified,
    ReplyToWriter,
    VerifyPages,
)
from kv_transfer.arrivals import ArrivalPhase
from node.ledger import PageState
from tandem.frames import Blob
from tandem.messages.common import PrefillReport
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

WRITER, OTHER = b"node/p0/1", b"node/p1/1"
KEY = (b"r" * 16, 2)
IDS = {"request_id": KEY[0], "attempt": KEY[1]}
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)
LEASE_S = 10.0


def reserve(
    num_tokens: int = 10,
    total: int = 18,
    *,
    request: bytes = KEY[0],
    attempt: int = KEY[1],
    sequence: int = 1,
    deadline_s: float | None = None,
) -> Reserve:
    return Reserve(
        request_id=request,
        attempt=attempt,
        num_tokens=num_tokens,
        max_total_tokens=total,
        sequence=sequence,
        deadline_s=deadline_s,
        page_hashes=Blob(),
        gateway=b"g",
        owner_incarnation=5,
    )


def commit(grant_id: int, *, num_tokens: int = 10, chunks=((0, 2), (2, 1))) -> Commit:
    return Commit(
        **IDS,
        grant_id=grant_id,
        num_tokens=num_tokens,
        chunks=tuple(ChunkSum(first=f, num_pages=n, checksum=b"c" * 8) for f, n in chunks),
        first_token_id=42,
        first_logprobs=None,
        report=REPORT,
    )


def replies(actions: list[IncomingAction]) -> list:
    return [action.message for action in actions if isinstance(action, ReplyToWriter)]


def kinds(actions: list[IncomingAction]) -> list[type]:
    """What was asked for, but for lines of the log (tests/kv_transfer/test_fencing.py)."""
    return [
        type(a.message) if isinstance(a, ReplyToWriter) else type(a)
        for a in actions
        if not isinstance(a, Notice)
    ]


def granted(owner: Any) -> Grant:
    (grant,) = replies(owner.hear(reserve()))
    assert isinstance(grant, Grant)
    return grant


def committed(owner: Any) -> Grant:
    grant = granted(owner)
    (verify,) = owner.hear(commit(grant.grant_id))
    assert isinstance(verify, VerifyPages)
    return grant


def test_the_happy_path(owner: Any) -> None:
    opened, reply = owner.hear(reserve(), 1.0)
    assert isinstance(opened, OpenGrant)
    grant = reply.message
    assert (opened.writer, opened.pages) == (WRITER, tuple(grant.page_indices.array.tolist()))
    assert (len(opened.pages), owner.ledger.num_promised) == (3, 2)
    assert owner.ledger.counts().granted == 3
    progress = Progress(**IDS, grant_id=grant.grant_id, num_pages_written=1)
    assert owner.hear(progress, 1.1) == []
    assert owner.ledger.counts().filling == 3
    message = commit(grant.grant_id)
    (verify,) = owner.hear(message, 1.2)
    assert verify == VerifyPages(KEY, grant.grant_id, opened.pages, message.chunks)
    close, ack, arrived = owner.bulk(PagesVerified(KEY, grant.grant_id, None), 1.3)
    assert close == CloseGrant(grant.grant_id)
    assert ack == ReplyToWriter(WRITER, CommitAck(**IDS, grant_id=grant.grant_id))
    assert isinstance(arrived, Arrived)
    assert (arrived.pages, arrived.num_promised, arrived.num_tokens) == (opened.pages, 2, 10)
    assert arrived.num_bytes == 3 * 64
    assert (arrived.first_token.token_id, arrived.first_token.report) == (42, REPORT)
    assert owner.ledger.counts().ready == 3
    assert owner.bulk(GrantClosed(grant.grant_id, False)) == []
    assert owner.machine.live() == {}
    assert owner.machine.num_ignored == 0


def test_a_repeated_reserve_gets_the_same_grant(owner: Any) -> None:
    grant = granted(owner)
    assert replies(owner.hear(reserve())) == [grant]
    assert owner.ledger.counts().granted == 3


def test_grant_ids_of_two_incarnations_differ(owner: Any, make_owner) -> None:
    later = make_owner(incarnation=2**61 + 6)
    asked = msgspec.structs.replace(reserve(), owner_incarnation=2**61 + 6)
    assert granted(owner).grant_id != replies(later.hear(asked))[0].grant_id < 2**63


def test_a_reserve_for_a_predecessor_at_the_same_address_is_not_taken(owner: Any) -> None:
    """The writer has lost the process that it asks: it would never say Drained here."""
    assert owner.hear(msgspec.structs.replace(reserve(), owner_incarnation=4)) == []
    assert owner.machine.live() == {}


def test_a_full_pool_queues_by_age_and_grants_as_pages_return(owner: Any) -> None:
    taken = owner.ledger.take(6, PageState.ACTIVE)
    young, old = b"y" * 16, b"o" * 16
    assert kinds(owner.hear(reserve(request=young, sequence=9))) == [ReserveQueued]
    assert kinds(owner.hear(reserve(request=old, sequence=3), writer=OTHER)) == [ReserveQueued]
    assert kinds(owner.hear(reserve(request=young, sequence=9))) == [ReserveQueued]
    owner.ledger.release(taken[:4])
    opened, reply = owner.audited(owner.machine.pages_freed(1.0))
    assert (opened.writer, reply.message.request_id) == (OTHER, old)
    assert owner.machine.live()[(young, 2)] is ArrivalPhase.QUEUED
    owner.ledger.release(taken[4:])
    assert kinds(owner.tick(1.1)) == []  # 2 free of 5 needed: nobody overtakes
    assert replies(owner.hear(reserve(1, 1, request=b"n" * 16, sequence=99)))[0].attempt == 2
    assert owner.machine.live()[(b"n" * 16, 2)] is ArrivalPhase.QUEUED


def test_a_reserve_that_no_pool_can_hold_is_denied_with_numbers(owner: Any) -> None:
    reply, failed = owner.hear(reserve(10, 33))
    assert isinstance(reply.message, ReserveDenied)
    assert reply.message.code == failed.code == "too_few_pages"
    assert "33 tokens need 9 KV pages of 4 tokens, the decode node's pool has 8" in failed.message
    assert kinds(owner.hear(reserve(10, 33))) == [ReserveDenied]


@pytest.mark.parametrize(("num_tokens", "total"), [(0, 5), (6, 5), (2**62, 2**62)])
def test_nonsense_reserves_are_denied(owner: Any, num_tokens: int, total: int) -> None:
    assert kinds(owner.hear(reserve(num_tokens, total))) == [ReserveDenied, ArrivalFailed]


def test_a_queued_reserve_ends_at_its_deadline(owner: Any) -> None:
    owner.ledger.take(8, PageState.ACTIVE)
    owner.hear(reserve(deadline_s=2.0), 1.0)
    assert owner.tick(2.9) == []
    failed, reply = owner.tick(3.0)
    assert isinstance(failed, ArrivalFailed)
    assert failed.code == reply.message.code == "deadline_exceeded"
    assert owner.machine.live() == {}


def test_a_queued_reserve_that_nobody_repeats_is_dropped(owner: Any) -> None:
    owner.ledger.take(8, PageState.ACTIVE)
    owner.hear(reserve(), 0.0)
    owner.hear(reserve(), 9.0)
    assert owner.tick(18.0) == []
    assert ArrivalFailed in kinds(owner.tick(19.5))


def test_cancel_before_the_reserve_denies_it(owner: Any) -> None:
    assert owner.cancel() == []
    assert kinds(owner.hear(reserve())) == [ReserveDenied]
    assert kinds(owner.hear(reserve(attempt=1))) == [ReserveDenied]
    assert kinds(owner.hear(reserve(attempt=3))) == [OpenGrant, Grant]


def test_cancel_of_a_queued_reserve(owner: Any) -> None:
    owner.ledger.take(8, PageState.ACTIVE)
    owner.hear(reserve())
    assert kinds(owner.cancel()) == [ReserveDenied]
    assert owner.machine.live() == {}


@pytest.mark.parametrize("closed_first", [True, False])
def test_cancel_while_writing_frees_after_both_proofs(owner: Any, closed_first: bool) -> None:
    grant = granted(owner)
    assert kinds(owner.cancel()) == [CloseGrant, Revoke]
    assert owner.cancel() == []
    assert owner.ledger.counts().draining == 3
    assert owner.ledger.num_promised == 0
    proofs = [
        lambda: owner.bulk(GrantClosed(grant.grant_id, False)),
        lambda: owner.hear(Drained(**IDS)),
    ]
    for proof in proofs if closed_first else reversed(proofs):
        assert owner.ledger.counts().draining == 3
        proof()
    assert owner.ledger.counts().free == 8
    assert owner.machine.live() == {}
    assert owner.tick(60.0) == []


def test_no_time_frees_a_draining_page(owner: Any) -> None:
    grant = granted(owner)
    owner.cancel()
    owner.bulk(GrantClosed(grant.grant_id, False))
    for hour in range(1, 10):
        assert kinds(owner.tick(3600.0 * hour)) == [Revoke]
    assert owner.ledger.counts().draining == 3


def test_our_own_closed_receiver_is_proof_but_the_writer_is_still_told(owner: Any) -> None:
    grant = granted(owner)
    owner.cancel()
    owner.bulk(GrantClosed(grant.grant_id, True))
    assert owner.ledger.counts().free == 8
    assert kinds(owner.tick(1.0)) == [Revoke]
    assert kinds(owner.hear(Drained(**IDS))) == [DrainedAck]
    assert owner.tick(60.0) == []


def test_cancel_while_verifying(owner: Any) -> None:
    grant = committed(owner)
    assert kinds(owner.cancel()) == [CloseGrant, Revoke]
    assert owner.bulk(PagesVerified(KEY, grant.grant_id, None)) == []
    assert owner.ledger.counts().draining == 3
    owner.bulk(GrantClosed(grant.grant_id, False))  # with the Commit: the writer had stopped
    assert owner.ledger.counts().free == 8
    owner.hear(Drained(**IDS))
    assert owner.machine.live() == {}


def test_a_commit_that_crosses_a_revoke_is_proof_too(owner: Any) -> None:
    grant = granted(owner)
    owner.cancel()
    owner.bulk(GrantClosed(grant.grant_id, False))
    assert owner.hear(commit(grant.grant_id)) == []
    assert owner.ledger.counts().free == 8


def test_cancel_after_arrival_leaves_the_guest_its_pages(owner: Any) -> None:
    grant = committed(owner)
    owner.bulk(PagesVerified(KEY, grant.grant_id, None))
    assert owner.cancel() == []
    assert owner.ledger.counts().ready == 3


def test_a_repeated_commit_gets_the_same_answer(owner: Any) -> None:
    grant = committed(owner)
    assert owner.hear(commit(grant.grant_id)) == []
    owner.bulk(PagesVerified(KEY, grant.grant_id, None))
    assert owner.hear(commit(grant.grant_id)) == [
        ReplyToWriter(WRITER, CommitAck(**IDS, grant_id=grant.grant_id))
    ]


@pytest.mark.parametrize(
    ("num_tokens", "chunks"),
    [
        (9, ((0, 3),)),
        (10, ((0, 2),)),
        (10, ((0, 2), (1, 2))),
        (10, ((1, 2), (0, 1))),
        (10, ((0, 4),)),
        (10, ((0, 3), (3, 0))),
        (10, ()),
    ],
)
def test_a_commit_that_does_not_fit_its_grant(owner: Any, num_tokens: int, chunks) -> None:
    grant = granted(owner)
    actions = owner.hear(commit(grant.grant_id, num_tokens=num_tokens, chunks=chunks))
    assert kinds(actions) == [CommitAck, ArrivalFailed, CloseGrant, Revoke]
    assert replies(actions)[0].error
    assert owner.ledger.counts().quarantined == 3


def test_pages_that_do_not_verify_stay_out_of_use_until_drained(owner: Any) -> None:
    grant = committed(owner)
    actions = owner.bulk(PagesVerified(KEY, grant.grant_id, "checksums differ"))
    assert kinds(actions) == [CommitAck, ArrivalFailed, CloseGrant, Revoke]
    assert replies(actions)[0].error == "checksums differ"
    owner.bulk(GrantClosed(grant.grant_id, False))
    assert owner.ledger.counts().quarantined == 3
    owner.hear(Drained(**IDS))
    assert owner.ledger.counts().free == 8
    assert owner.ledger.num_promised == 0


def test_a_writer_that_gives_up_frees_its_grant(owner: Any) -> None:
    grant = granted(owner)
    actions = owner.hear(Drained(**IDS))
    assert kinds(actions) == [DrainedAck, ArrivalFailed, CloseGrant]
    assert owner.ledger.counts().draining == 3
    owner.bulk(GrantClosed(grant.grant_id, False))
    assert owner.ledger.counts().free == 8
    assert owner.machine.live() == {}


def test_drained_after_commit_does_not_undo_it(owner: Any) -> None:
    grant = committed(owner)
    assert kinds(owner.hear(Drained(**IDS))) == [DrainedAck]
    assert Arrived in kinds(owner.bulk(PagesVerified(KEY, grant.grant_id, None)))
    assert kinds(owner.hear(Drained(**IDS))) == [DrainedAck]


def test_silence_withdraws_a_grant_and_frees_nothing(owner: Any) -> None:
    grant = granted(owner)
    owner.hear(Progress(**IDS, grant_id=grant.grant_id, num_pages_written=0), 6.0)
    assert owner.tick(6.0 + LEASE_S) == []
    actions = owner.tick(6.1 + LEASE_S)
    assert kinds(actions) == [ArrivalFailed, CloseGrant, Revoke]
    assert owner.ledger.counts().draining == 3


def test_a_new_attempt_takes_the_place_of_an_old_one(owner: Any) -> None:
    granted(owner)
    actions = owner.hear(reserve(1, 1, attempt=3), writer=OTHER)
    assert kinds(actions) == [ArrivalFailed, CloseGrant, OpenGrant, Grant, Revoke]
    assert kinds(owner.hear(reserve())) == []  # of the old attempt, which drains
    assert owner.machine.live() == {
        KEY: ArrivalPhase.DRAINING,
        (KEY[0], 3): ArrivalPhase.OPEN,
    }


def test_a_writer_that_does_not_drain_gets_no_new_grants(make_owner) -> None:
    owner = make_owner(num_pages=12, max_draining_pages=2)
    granted(owner)
    owner.cancel()
    assert kinds(owner.hear(reserve(request=b"a" * 16))) == [ReserveQueued]
    assert kinds(owner.hear(reserve(request=b"b" * 16), writer=OTHER)) == [OpenGrant, Grant]
    owner.hear(Drained(**IDS))
    grant_id = 5 << 32
    assert kinds(owner.bulk(GrantClosed(grant_id, False))) == [OpenGrant, Grant]


def test_messages_of_another_writer_change_nothing(owner: Any) -> None:
    grant = granted(owner)
    progress = Progress(**IDS, grant_id=grant.grant_id, num_pages_written=2)
    for message in (progress, commit(grant.grant_id), reserve()):
        assert owner.hear(message, writer=OTHER) == []
    assert kinds(owner.hear(Drained(**IDS), writer=OTHER)) == [DrainedAck]
    assert owner.machine.live() == {KEY: ArrivalPhase.OPEN}
    assert owner.ledger.counts().granted == 3
    assert owner.machine.num_ignored == 4


def test_unknown_and_stale_messages_are_counted(owner: Any, make_owner) -> None:
    grant = granted(owner)
    assert owner.hear(commit(grant.grant_id + 1)) == []
    assert owner.hear(Progress(**IDS, grant_id=1, num_pages_written=1)) == []
    assert owner.bulk(PagesVerified(KEY, grant.grant_id, None)) == []
    assert owner.bulk(PagesVerified((b"u" * 16, 1), 3, None)) == []
    assert owner.bulk(GrantClosed(3, True)) == []
    assert owner.machine.num_ignored == 4
    fresh = make_owner()
    (answer,) = replies(fresh.hear(commit(77)))
    assert "unknown" in answer.error
