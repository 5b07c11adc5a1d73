"""The owner's machine and writers that fall silent or die: no page without proof."""

from typing import Any

import pytest

from kv_transfer.actions import (
    ArrivalFailed,
    Arrived,
    CloseGrant,
    GrantClosed,
    IncomingAction,
    Notice,
    PagesVerified,
    ReplyToWriter,
    WriterGone,
)
from kv_transfer.arrivals import ArrivalPhase
from tandem.frames import Blob
from tandem.messages.common import PrefillReport
from tandem.messages.handoff import (
    ChunkSum,
    Commit,
    CommitAck,
    Drained,
    DrainedAck,
    Grant,
    Reserve,
    ReserveDenied,
    Revoke,
)

KEY = (b"r" * 16, 2)
IDS = {"request_id": KEY[0], "attempt": KEY[1]}
RESERVE = Reserve(
    **IDS,
    num_tokens=10,
    max_total_tokens=18,
    sequence=1,
    deadline_s=None,
    page_hashes=Blob(),
    gateway=b"g",
    owner_incarnation=5,
)
WRITER = b"node/p0/1"
LEASE_S = 10.0


def replies(actions: list[IncomingAction]) -> list:
    return [action.message for action in actions if isinstance(action, ReplyToWriter)]


def kinds(actions: list[IncomingAction]) -> list[type]:
    """What was asked for, but for lines of the log."""
    return [
        type(a.message) if isinstance(a, ReplyToWriter) else type(a)
        for a in actions
        if not isinstance(a, Notice)
    ]


def granted(owner: Any) -> Grant:
    (grant,) = replies(owner.hear(RESERVE))
    return grant


def commit(grant: Grant) -> Commit:
    report = PrefillReport(
        node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
    )
    return Commit(
        **IDS,
        grant_id=grant.grant_id,
        num_tokens=10,
        chunks=(ChunkSum(first=0, num_pages=3, checksum=b"c" * 8),),
        first_token_id=42,
        first_logprobs=None,
        report=report,
    )


def test_over_our_receiver_nothing_is_left_of_a_silent_writer(owner: Any) -> None:
    grant = granted(owner)
    assert owner.machine.num_open == 1
    (failed,) = [a for a in owner.tick(LEASE_S + 0.1) if isinstance(a, ArrivalFailed)]
    assert failed.code == "node_failed"
    assert owner.ledger.counts().draining == 3  # until our receiver is closed
    assert owner.machine.num_open == 0
    owner.bulk(GrantClosed(grant.grant_id, True), LEASE_S + 0.2)
    assert (owner.ledger.counts().free, owner.machine.live()) == (8, {})
    assert owner.tick(60.0) == []


def test_what_a_forgotten_writer_says_does_no_harm(owner: Any) -> None:
    grant = granted(owner)
    owner.tick(LEASE_S + 0.1)
    owner.bulk(GrantClosed(grant.grant_id, True), LEASE_S + 0.2)
    (answer,) = replies(owner.hear(commit(grant), 11.0))
    assert isinstance(answer, CommitAck)
    assert "unknown" in answer.error  # type: ignore[operator]
    assert replies(owner.hear(Drained(**IDS), 11.1)) == [DrainedAck(**IDS)]
    (denied,) = replies(owner.hear(RESERVE, 11.2))
    assert isinstance(denied, ReserveDenied)
    assert (owner.ledger.counts().free, owner.machine.live()) == (8, {})


def test_mapped_pages_of_a_silent_writer_stay_but_no_drain_waits_for_them(owner: Any) -> None:
    grant = granted(owner)
    owner.tick(LEASE_S + 0.1)
    owner.bulk(GrantClosed(grant.grant_id, False), LEASE_S + 0.2)
    assert owner.machine.live() == {KEY: ArrivalPhase.DRAINING}
    assert (owner.ledger.counts().draining, owner.machine.num_open) == (3, 0)
    ticks = [owner.tick(20.0 + at / 10) for at in range(600)]
    asked = [message for actions in ticks for message in replies(actions)]
    assert set(map(type, asked)) == {Revoke}
    assert len(asked) <= 31  # one per two seconds
    owner.hear(Drained(**IDS), 90.0)
    assert (owner.ledger.counts().free, owner.machine.live()) == (8, {})


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_writer_that_does_not_answer_a_revoke_is_given_up(owner: Any, is_ours: bool) -> None:
    grant = granted(owner)
    owner.cancel(now=9.0)
    owner.bulk(GrantClosed(grant.grant_id, is_ours), 9.1)
    owner.tick(9.0 + LEASE_S)
    assert owner.machine.num_open == 1  # a lease of its own, from the cancel on
    owner.tick(9.1 + LEASE_S)
    assert owner.machine.num_open == 0
    assert len(owner.machine.live()) == (0 if is_ours else 1)
    assert owner.ledger.counts().draining == (0 if is_ours else 3)


def test_a_dead_writer_fails_what_was_not_committed_and_its_pages_are_free(owner: Any) -> None:
    grant = granted(owner)
    assert kinds(owner.bulk(WriterGone(WRITER), 1.0)) == [ArrivalFailed, CloseGrant]
    assert owner.ledger.counts().draining == 3  # our own receiver is not yet closed
    owner.bulk(GrantClosed(grant.grant_id, False))
    assert (owner.ledger.counts().free, owner.machine.live()) == (8, {})
    assert kinds(owner.tick(60.0)) == []


@pytest.mark.parametrize("is_suspect", [False, True])
def test_proof_of_death_frees_what_was_draining_or_quarantined(
    owner: Any, is_suspect: bool
) -> None:
    grant = granted(owner)
    if is_suspect:
        owner.hear(commit(grant))
        owner.bulk(PagesVerified(KEY, grant.grant_id, "checksums differ"))
    else:
        owner.cancel()
    owner.bulk(GrantClosed(grant.grant_id, False))
    counts = owner.ledger.counts()
    assert (counts.quarantined if is_suspect else counts.draining) == 3
    owner.bulk(WriterGone(b"node/p1/1"), 1.0)
    assert owner.ledger.counts().free == 5
    told = owner.bulk(WriterGone(WRITER), 1.1)
    assert ["3 pages" in a.text for a in told if isinstance(a, Notice)] == [True]
    assert (owner.ledger.counts().free, owner.machine.live()) == (8, {})
    assert kinds(owner.tick(60.0)) == []


def test_a_dead_writer_after_commit_is_irrelevant(owner: Any) -> None:
    grant = granted(owner)
    owner.hear(commit(grant))
    assert owner.bulk(WriterGone(WRITER), 1.0) == []
    assert Arrived in kinds(owner.bulk(PagesVerified(KEY, grant.grant_id, None)))


def test_a_dead_writer_whose_commit_does_not_verify_leaves_nothing(owner: Any) -> None:
    grant = granted(owner)
    owner.hear(commit(grant))
    owner.bulk(WriterGone(WRITER), 1.0)
    actions = owner.bulk(PagesVerified(KEY, grant.grant_id, "checksums differ"))
    assert kinds(actions) == [CommitAck, ArrivalFailed, CloseGrant]
    assert owner.ledger.counts().quarantined == 3
    owner.bulk(GrantClosed(grant.grant_id, False))
    assert (owner.ledger.counts().free, owner.machine.live()) == (8, {})
