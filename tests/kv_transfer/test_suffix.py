"""The owner's machine and what its cache already has: matched, held, readable, never evicted."""

from typing import Any

import pytest

from kv_transfer.actions import (
    ArrivalFailed,
    Arrived,
    GrantClosed,
    OpenGrant,
    PagesVerified,
    ReplyToWriter,
    WriterGone,
)
from node.ledger import PageState
from tandem.frames import Blob
from tandem.messages.common import PrefillReport
from tandem.messages.handoff import (
    ChunkSum,
    Commit,
    Drained,
    Grant,
    Reserve,
    ReserveDenied,
    ReserveQueued,
)

KEY = (b"r" * 16, 1)
HASHES = [bytes([n]) * 16 for n in range(8)]
REPORT = PrefillReport(
    node_id="p0", started_after_s=0.0, first_token_after_s=0.1, num_cached_tokens=0
)


def reserve(
    num_tokens: int, hashes: list[bytes], *, total: int | None = None, request: bytes = KEY[0]
) -> Reserve:
    return Reserve(
        request_id=request,
        attempt=1,
        num_tokens=num_tokens,
        max_total_tokens=total or num_tokens,
        sequence=1,
        deadline_s=None,
        page_hashes=Blob(b"".join(hashes)),
        gateway=b"g",
        owner_incarnation=5,
    )


def commit(grant: Grant, num_tokens: int) -> Commit:
    num_pages = len(grant.page_indices)
    chunk = ChunkSum(first=0, num_pages=num_pages, checksum=b"c" * 8)
    return Commit(
        request_id=grant.request_id,
        attempt=1,
        grant_id=grant.grant_id,
        num_tokens=num_tokens,
        chunks=(chunk,) if num_pages else (),
        first_token_id=42,
        first_logprobs=None,
        report=REPORT,
    )


def cache(owner: Any, num_pages: int, first: int = 0) -> list[int]:
    """Pages that an earlier request left under HASHES."""
    pages = owner.ledger.take(num_pages, PageState.ACTIVE)
    for page_hash, page in zip(HASHES[first:], pages, strict=False):
        owner.pool.index.insert(page_hash, page)
    owner.pool.release(pages)
    return pages


def replies(actions: list) -> list:
    return [action.message for action in actions if isinstance(action, ReplyToWriter)]


def test_matched_pages_are_granted_to_read_and_only_the_rest_to_write(owner: Any) -> None:
    cached = cache(owner, 2)
    opened, reply = owner.hear(reserve(15, HASHES[:3], total=18))
    grant = reply.message
    assert grant.num_cached_tokens == 8
    assert grant.cached_page_indices.array.tolist() == cached
    assert len(grant.page_indices) == 2
    assert isinstance(opened, OpenGrant)
    assert opened.readable_pages == tuple(cached)
    assert not set(opened.pages) & set(cached)
    assert owner.ledger.num_promised == 1
    owner.hear(commit(grant, 15))
    arrived = owner.bulk(PagesVerified(KEY, grant.grant_id, None))[-1]
    assert isinstance(arrived, Arrived)
    assert arrived.pages == (*cached, *opened.pages)
    assert arrived.cached_hashes == tuple(HASHES[:2])
    assert (arrived.num_cached, arrived.num_bytes) == (2, 2 * 64)


def test_a_grant_for_what_is_all_cached_has_no_page_to_write(owner: Any) -> None:
    cached = cache(owner, 2)
    (grant,) = replies(owner.hear(reserve(8, HASHES[:2], total=12)))
    assert (len(grant.page_indices), grant.num_cached_tokens) == (0, 8)
    assert owner.ledger.num_promised == 1
    owner.hear(commit(grant, 8))
    arrived = owner.bulk(PagesVerified(KEY, grant.grant_id, None))[-1]
    assert (arrived.pages, arrived.num_promised, arrived.num_bytes) == (tuple(cached), 1, 0)


def test_matched_pages_are_not_evicted_and_count_as_taken(owner: Any) -> None:
    cached = cache(owner, 3)
    owner.hear(reserve(13, HASHES[:3]))
    assert owner.ledger.num_available == 4  # eight, less three matched and one to write
    owner.ledger.take(4, PageState.ACTIVE)
    assert owner.ledger.take_evicted() == []
    assert owner.pool.index.match(HASHES[:3]) == cached


def test_idle_matched_pages_are_not_counted_twice(owner: Any) -> None:
    """Eight pages, all cached: a request that matches four may have the other four, not more."""
    cache(owner, 8)
    assert isinstance(replies(owner.hear(reserve(32, HASHES[:4])))[0], Grant)
    (queued,) = replies(owner.hear(reserve(4, [], request=b"s" * 16)))
    assert isinstance(queued, ReserveQueued)


@pytest.mark.parametrize("proof", ["drained", "receiver", "death"])
def test_matched_pages_stay_held_until_the_drain_proof(owner: Any, proof: str) -> None:
    cached = cache(owner, 2)
    (grant,) = replies(owner.hear(reserve(12, HASHES[:2])))
    owner.cancel(KEY)
    assert {owner.ledger.state(page) for page in cached} == {PageState.DRAINING}
    assert owner.ledger.counts().draining == 3
    if proof == "receiver":
        owner.bulk(GrantClosed(grant.grant_id, True))
    else:
        owner.bulk(GrantClosed(grant.grant_id, False))
        assert owner.ledger.counts().draining == 3
        if proof == "drained":
            owner.hear(Drained(request_id=KEY[0], attempt=1))
        else:
            owner.bulk(WriterGone(b"node/p0/1"))
    assert {owner.ledger.state(page) for page in cached} == {PageState.CACHED}
    assert (owner.ledger.counts().free, owner.ledger.num_promised) == (6, 0)
    assert owner.pool.index.match(HASHES[:2]) == cached


def test_pages_that_others_use_as_well_stay_theirs(owner: Any) -> None:
    cached = cache(owner, 2)
    owner.hear(reserve(12, HASHES[:2]))
    (other,) = replies(owner.hear(reserve(12, HASHES[:2], request=b"s" * 16)))
    assert other.cached_page_indices.array.tolist() == cached
    owner.cancel(KEY)
    assert {owner.ledger.state(page) for page in cached} == {PageState.ACTIVE}
    owner.hear(Drained(request_id=KEY[0], attempt=1))
    assert {owner.ledger.state(page) for page in cached} == {PageState.ACTIVE}


def test_a_commit_that_does_not_verify_leaves_matched_pages_cached(owner: Any) -> None:
    cached = cache(owner, 2)
    (grant,) = replies(owner.hear(reserve(12, HASHES[:2])))
    owner.hear(commit(grant, 12))
    owner.bulk(PagesVerified(KEY, grant.grant_id, "checksums differ"))
    counts = owner.ledger.counts()
    assert (counts.quarantined, counts.draining) == (1, 2)
    owner.bulk(GrantClosed(grant.grant_id, False))
    owner.hear(Drained(request_id=KEY[0], attempt=1))
    assert (owner.ledger.counts().free, owner.ledger.counts().cached) == (6, 2)
    assert owner.pool.index.match(HASHES[:2]) == cached


@pytest.mark.parametrize("data", [b"x" * 15, b"x" * 17, b"x" * 48])
def test_hashes_that_cannot_be_are_denied(owner: Any, data: bytes) -> None:
    message = Reserve(
        request_id=KEY[0],
        attempt=1,
        num_tokens=11,
        max_total_tokens=11,
        sequence=1,
        deadline_s=None,
        page_hashes=Blob(data),
        gateway=b"g",
        owner_incarnation=5,
    )
    reply, failed = owner.hear(message)
    assert isinstance(reply.message, ReserveDenied)
    assert isinstance(failed, ArrivalFailed)
    assert failed.code == "invalid_request"
