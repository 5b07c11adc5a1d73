"""Who holds each KV page: eight states, reference counts, LRU eviction of cached pages. Pure.

Conservation is asserted on every change: the eight counts sum to the pool. A page becomes FREE only
when nobody holds it. `promised` pages are free ones that residents may claim later to grow, so an
admitted request can always finish.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from enum import IntEnum

from tandem.messages.membership import PageCounts


class PageState(IntEnum):
    """Where a page is in its life (DESIGN section 4)."""

    FREE = 0
    GRANTED = 1
    FILLING = 2
    READY = 3
    ACTIVE = 4
    CACHED = 5
    DRAINING = 6
    QUARANTINED = 7


S = PageState
TRANSITIONS: frozenset[tuple[PageState, PageState]] = frozenset(
    {
        (S.FREE, S.ACTIVE),  # a local step will write it
        (S.FREE, S.GRANTED),  # promised to a remote writer
        (S.GRANTED, S.FILLING),  # the writer reported progress
        (S.GRANTED, S.READY),  # verified without a progress report
        (S.FILLING, S.READY),
        (S.READY, S.ACTIVE),
        (S.GRANTED, S.DRAINING),  # request ended, writer may still write
        (S.FILLING, S.DRAINING),
        (S.GRANTED, S.QUARANTINED),
        (S.FILLING, S.QUARANTINED),
        (S.READY, S.FREE),
        (S.ACTIVE, S.FREE),
        (S.ACTIVE, S.CACHED),
        (S.ACTIVE, S.DRAINING),  # request ended, a transfer still reads it
        (S.DRAINING, S.FREE),
        (S.DRAINING, S.CACHED),
        (S.CACHED, S.ACTIVE),  # a prefix hit
        (S.CACHED, S.FREE),  # evicted
        (S.QUARANTINED, S.FREE),
    }
)


class PageLedger:
    """States and holders of `num_pages` pages.

    `on_evict(page)` is called when a cached page is reclaimed, so the prefix index forgets it.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.num_promised = 0
        self.num_evicted = 0
        self.num_returned = 0  # grows whenever more may be available than before
        self._state = [PageState.FREE] * num_pages
        self._holders = [0] * num_pages
        self._free: deque[int] = deque(range(num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._counts = [0] * len(PageState)
        self._counts[PageState.FREE] = num_pages
        self._evicted: list[int] = []

    @property
    def num_available(self) -> int:
        """Pages that a new claim may take: free or cached, and promised to nobody."""
        return len(self._free) + len(self._cached) - self.num_promised

    def state(self, page: int) -> PageState:
        """State of one page."""
        return self._state[page]

    def is_shared(self, page: int) -> bool:
        """Whether more than one holds the page."""
        return self._holders[page] > 1

    def counts(self) -> PageCounts:
        """Pages by state."""
        return PageCounts(**{s.name.lower(): self._counts[s] for s in PageState})

    def promise(self, num_pages: int) -> None:
        """Set pages aside for growth; the caller has checked `num_available`."""
        assert 0 <= num_pages <= self.num_available, (num_pages, self.num_available)
        self.num_promised += num_pages

    def unpromise(self, num_pages: int) -> None:
        """Give promised pages back unused."""
        assert 0 <= num_pages <= self.num_promised, (num_pages, self.num_promised)
        self.num_promised -= num_pages
        self.num_returned += num_pages

    def take(self, num_pages: int, state: PageState, *, promised: bool = False) -> list[int]:
        """Claim pages (FREE -> ACTIVE or GRANTED) with one holder each.

        With `promised` they come out of an earlier promise. Least recently used cached pages are
        evicted when free ones run out; `take_evicted` tells which.
        """
        if promised:
            self.unpromise(num_pages)
        assert num_pages <= self.num_available, (num_pages, self.num_available)
        while len(self._free) < num_pages:
            page, _ = self._cached.popitem(last=False)
            self._set(page, PageState.FREE)
            self._free.append(page)
            self._evicted.append(page)
            self.num_evicted += 1
        pages = [self._free.popleft() for _ in range(num_pages)]
        for page in pages:
            self._set(page, state)
            self._holders[page] = 1
        return pages

    def take_evicted(self) -> list[int]:
        """Cached pages reclaimed since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def move(self, pages: Sequence[int], state: PageState) -> None:
        """Change the state of held pages (for example GRANTED -> READY -> ACTIVE)."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is held by nobody"
            self._set(page, state)

    def hold(self, pages: Iterable[int]) -> None:
        """Add a holder: a prefix hit on cached or active pages, or a transfer that reads them."""
        for page in pages:
            if self._state[page] is PageState.CACHED:
                del self._cached[page]
                self._set(page, PageState.ACTIVE)
            assert self._state[page] in (PageState.ACTIVE, PageState.DRAINING), self._state[page]
            self._holders[page] += 1

    def drain(self, pages: Iterable[int]) -> None:
        """Their request ended, its remote reader may not have: DRAINING where nobody else holds."""
        for page in pages:
            if self._holders[page] == 1 and self._state[page] is PageState.ACTIVE:
                self._set(page, PageState.DRAINING)

    def release(self, pages: Iterable[int], *, cache: frozenset[int] = frozenset()) -> None:
        """Drop a holder. Pages without one become CACHED where in `cache`, else FREE."""
        for page in pages:
            assert self._holders[page] > 0, f"page {page} is held by nobody"
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            self.num_returned += 1
            if page in cache and self._state[page] in (PageState.ACTIVE, PageState.DRAINING):
                self._set(page, PageState.CACHED)
                self._cached[page] = None
            else:
                self._set(page, PageState.FREE)
                self._free.append(page)

    def check(self) -> None:
        """Full audit: every count, list and holder agrees. For tests and debug builds."""
        for state in PageState:
            assert self._counts[state] == self._state.count(state), state
        assert sum(self._counts) == self.num_pages
        assert sorted(self._free) == [
            p for p, s in enumerate(self._state) if s is PageState.FREE
        ], "free list"
        assert set(self._cached) == {
            p for p, s in enumerate(self._state) if s is PageState.CACHED
        }, "cached pages"
        unheld = {PageState.FREE, PageState.CACHED}
        for page, state in enumerate(self._state):
            assert (self._holders[page] == 0) == (state in unheld), (page, state)
        assert 0 <= self.num_promised <= len(self._free) + len(self._cached)

    def _set(self, page: int, state: PageState) -> None:
        before = self._state[page]
        assert (before, state) in TRANSITIONS, f"page {page}: {before.name} -> {state.name}"
        self._state[page] = state
        self._counts[before] -= 1
        self._counts[state] += 1
        assert sum(self._counts) == self.num_pages
