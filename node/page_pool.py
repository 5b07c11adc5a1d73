"""Pages and the index of their prefixes as one thing: claim with a cached prefix, give back. Pure.

Whoever takes or releases pages that may be indexed goes through here, so that the index never names
a page that was evicted or freed, and that no claim takes what residents need to finish.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.growth import Grower, GrowthBook, Overcommit
from node.ledger import PageLedger, PageState
from node.prefix_index import PrefixIndex
from scheduling.views import RequestKey


@dataclass(frozen=True, slots=True)
class Claim:
    """Pages held for a request: `cached` hold its first tokens, `fresh` are to be filled.

    `num_promised` further ones are set aside for its growth.
    """

    cached: tuple[int, ...]
    fresh: tuple[int, ...]
    num_promised: int = 0


class PagePool:
    """A ledger, its prefix index, and what is kept for growth."""

    def __init__(self, ledger: PageLedger, overcommit: Overcommit | None = None) -> None:
        self.ledger = ledger
        self.index = PrefixIndex()
        self.growth = GrowthBook(Overcommit() if overcommit is None else overcommit)

    @property
    def num_changes(self) -> int:
        """While this stays the same, a claim that was refused is refused again."""
        return self.ledger.num_returned + self.index.num_inserted + self.growth.num_changes

    @property
    def num_free(self) -> int:
        """Pages that residents may grow into now, beyond promises and what the oldest may need."""
        return max(0, self.ledger.num_available - self.growth.num_kept)

    @property
    def is_short(self) -> bool:
        """Whether a request whose pages were taken waits for others, or the oldest lacks some."""
        return self.growth.has_displaced or self.growth.num_kept > self.ledger.num_available

    @property
    def sets_aside(self) -> bool:
        """Whether `num_set_aside` can be above 0 for anybody."""
        return self.growth.num_kept > 0

    def num_set_aside(self, key: RequestKey) -> int:
        """Pages that nobody else may take and no promise counts: the oldest resident's."""
        if not self.growth.is_oldest(key):
            return 0
        return min(self.growth.num_kept, self.ledger.num_available)

    def claim(
        self,
        hashes: Sequence[bytes],
        num_pages: int,
        state: PageState,
        grower: Grower | None = None,
    ) -> Claim | None:
        """`num_pages` pages, those that `hashes` match first, the others fresh and in `state`.

        A `grower` is promised some of its growth as well. None, and nothing changed, where there is
        not enough: cached pages that nobody holds stop being available when they are held.
        """
        self.forget_evicted()
        cached = self.index.match(hashes)
        num_fresh = num_pages - len(cached)
        num_idle = sum(self.ledger.state(page) is PageState.CACHED for page in cached)
        num_promised = 0 if grower is None else self.growth.promise(grower, num_pages)
        num_needed = num_fresh + num_idle + num_promised
        if num_needed + self.growth.margin(grower, num_promised) > self.ledger.num_available:
            return None
        self.ledger.hold(cached)
        fresh = self.ledger.take(num_fresh, state)
        self.ledger.promise(num_promised)
        if grower is not None:
            self.growth.enter(grower, num_promised)
        self.forget_evicted()
        return Claim(tuple(cached), tuple(fresh), num_promised)

    def grow(self, key: RequestKey, num_pages: int, num_promised: int) -> list[int] | None:
        """Pages for a resident, out of its promise first; None where the rest is not there."""
        num_due = min(num_pages, num_promised)
        num_rest = num_pages - num_due
        if num_rest:
            if not self.growth.may_grow(key, num_rest, self.ledger.num_available):
                return None
            self.growth.grew(key, num_rest)
        pages = self.ledger.take(num_due, PageState.ACTIVE, promised=True)
        pages += self.ledger.take(num_rest, PageState.ACTIVE)
        self.forget_evicted()
        return pages

    def forgo(self, key: RequestKey, num_promised: int) -> None:
        """A request grows no more: its promise is free again, nothing is kept for it."""
        self.ledger.unpromise(num_promised)
        self.growth.leave(key)

    def release(self, pages: Sequence[int]) -> None:
        """Drop a holder; indexed pages that nobody holds any more stay cached.

        `pages` are in token order. The last are evicted first: without its head a prefix is lost.
        """
        self.ledger.release(reversed(pages), cache=self.index.indexed(pages))

    def forget_evicted(self) -> None:
        """Tell the index which cached pages were reclaimed."""
        self.index.forget(self.ledger.take_evicted())
