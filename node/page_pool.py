"""Pages and the index of their prefixes as one thing: claim with a cached prefix, give back. Pure.

Whoever takes or releases pages that may be indexed goes through here, so that the index never names
a page that was evicted or freed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from node.ledger import PageLedger, PageState
from node.prefix_index import PrefixIndex


@dataclass(frozen=True, slots=True)
class Claim:
    """Pages held for a request: `cached` hold its first tokens, `fresh` are to be filled."""

    cached: tuple[int, ...]
    fresh: tuple[int, ...]


class PagePool:
    """A ledger and its prefix index."""

    def __init__(self, ledger: PageLedger, index: PrefixIndex | None = None) -> None:
        self.ledger = ledger
        self.index = PrefixIndex() if index is None else index

    @property
    def num_changes(self) -> int:
        """While this stays the same, a claim that was refused is refused again."""
        return self.ledger.num_returned + self.index.num_inserted

    def claim(
        self, hashes: Sequence[bytes], num_pages: int, state: PageState, *, num_promised: int
    ) -> Claim | None:
        """`num_pages` pages, those that `hashes` match first, the others fresh and in `state`.

        `num_promised` further ones are promised for growth. None, and nothing changed, where there
        is not enough: cached pages that nobody holds stop being available when they are held.
        """
        self.forget_evicted()
        cached = self.index.match(hashes)
        num_fresh = num_pages - len(cached)
        num_idle = sum(self.ledger.state(page) is PageState.CACHED for page in cached)
        if num_fresh + num_idle + num_promised > self.ledger.num_available:
            return None
        self.ledger.hold(cached)
        fresh = self.ledger.take(num_fresh, state)
        self.ledger.promise(num_promised)
        self.forget_evicted()
        return Claim(tuple(cached), tuple(fresh))

    def release(self, pages: Sequence[int]) -> None:
        """Drop a holder; indexed pages that nobody holds any more stay cached.

        `pages` are in token order. The last are evicted first: without its head a prefix is lost.
        """
        self.ledger.release(reversed(pages), cache=self.index.indexed(pages))

    def forget_evicted(self) -> None:
        """Tell the index which cached pages were reclaimed."""
        self.index.forget(self.ledger.take_evicted())
