"""Claims of pages with a cached prefix: all that is needed, or nothing."""

from node.growth import Grower
from node.ledger import PageLedger, PageState
from node.page_pool import Claim, PagePool

KEY = (b"r", 1)
HASHES = [b"one", b"two"]


def cached_pool() -> PagePool:
    """Two pages are cached under HASHES and held by nobody, two are free."""
    pool = PagePool(PageLedger(4))
    pages = pool.ledger.take(2, PageState.ACTIVE)
    for page_hash, page in zip(HASHES, pages, strict=True):
        pool.index.insert(page_hash, page)
    pool.release(pages)
    return pool


def test_a_claim_takes_what_matches_and_fresh_pages_for_the_rest() -> None:
    pool = cached_pool()
    assert pool.claim(HASHES, 4, PageState.GRANTED) == Claim((0, 1), (2, 3))
    assert pool.ledger.num_available == 0


def test_pages_that_are_matched_are_not_there_for_growth() -> None:
    pool = cached_pool()
    assert pool.claim(HASHES, 4, PageState.GRANTED, Grower(KEY, 1, 1)) is None
    assert pool.ledger.num_available == 4
    counts = pool.ledger.counts()
    assert (counts.free, counts.cached) == (2, 2)


def test_what_is_evicted_for_a_claim_matches_no_more() -> None:
    pool = cached_pool()
    assert pool.claim([], 3, PageState.ACTIVE) == Claim((), (2, 3, 1))
    assert pool.index.match(HASHES) == [0]
    pool.ledger.check()


def test_a_prefix_is_evicted_from_its_end() -> None:
    pool = PagePool(PageLedger(10))
    hashes = [bytes([i]) * 16 for i in range(8)]
    claim = pool.claim(hashes, 8, PageState.ACTIVE)
    assert claim is not None
    for page_hash, page in zip(hashes, claim.fresh, strict=True):
        pool.index.insert(page_hash, page)
    pool.release(claim.fresh)
    other = pool.claim([], 3, PageState.ACTIVE)
    assert other is not None and pool.ledger.num_evicted == 1
    assert pool.index.match(hashes) == list(claim.fresh[:7])


def test_what_may_make_a_refused_claim_possible_is_counted() -> None:
    pool = cached_pool()
    held = pool.claim(HASHES, 4, PageState.ACTIVE)
    assert held is not None
    seen = [pool.num_changes]
    assert pool.claim([b"three"], 1, PageState.ACTIVE) is None
    assert pool.num_changes == seen[-1]
    pool.index.insert(b"three", held.fresh[0])  # now it needs no fresh page
    seen.append(pool.num_changes)
    assert pool.claim([b"three"], 1, PageState.ACTIVE) is not None
    pool.release(held.fresh)  # one has another holder
    seen.append(pool.num_changes)
    pool.ledger.promise(1)
    pool.ledger.unpromise(1)
    seen.append(pool.num_changes)
    assert seen == sorted(set(seen))
