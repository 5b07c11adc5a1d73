"""Pages of one simulated node by count, and which prefix blocks it has cached. Pure.

What `node.page_pool` does page by page, in steps of a trace's blocks: a block is taken, shared and
evicted as a whole. Pages of outputs and of prompt ends are free again when their request ends.
What is kept for growth is the node's own `GrowthBook`.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from node.growth import Grower, GrowthBook, Overcommit
from scheduling.views import RequestKey


class BlockPages:
    """`num_pages` pages; blocks of `block_pages` pages, least recently used evicted first.

    Held, cached and free pages add up to the pool; `num_promised` of those that are not held are
    set aside for growth, and evict what is cached when they are promised (a node evicts later, when
    they are taken). `changed(block, is_here)` is told what enters and leaves the cache.
    """

    def __init__(
        self,
        num_pages: int,
        block_pages: int,
        overcommit: Overcommit,
        changed: Callable[[int, bool], None],
    ) -> None:
        self.num_pages = num_pages
        self.block_pages = block_pages
        self.growth = GrowthBook(overcommit)
        self.num_promised = 0
        self.num_held = 0  # by requests, shared blocks once
        self.num_evicted = 0
        self._holders: dict[int, int] = {}  # blocks that requests hold
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._changed = changed

    @property
    def num_available(self) -> int:
        """Pages that a new claim may take: free or cached, and promised to nobody."""
        return self.num_pages - self.num_held - self.num_promised

    @property
    def num_free(self) -> int:
        """Pages that residents may grow into now, beyond promises and what the oldest may need."""
        return max(0, self.num_available - self.growth.num_kept)

    @property
    def num_cached(self) -> int:
        """Pages that only the cache has."""
        return len(self._cached) * self.block_pages

    def match(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are here."""
        for number, block in enumerate(blocks):
            if block not in self._holders and block not in self._cached:
                return number
        return len(blocks)

    def claim(self, blocks: Sequence[int], num_pages: int, grower: Grower | None) -> int | None:
        """Hold `num_pages` pages, the cached `blocks` among them; how many more were promised.

        `blocks` are here, as `match` said. None, and nothing changed, where there is not enough.
        """
        num_fresh = num_pages - len(blocks) * self.block_pages
        num_idle = sum(block not in self._holders for block in blocks) * self.block_pages
        num_promised = 0 if grower is None else self.growth.promise(grower, num_pages)
        num_needed = num_idle + num_fresh + num_promised
        if num_needed + self.growth.margin(grower, num_promised) > self.num_available:
            return None
        for block in blocks:
            if block in self._cached:
                del self._cached[block]
                self.num_held += self.block_pages
            self._holders[block] = self._holders.get(block, 0) + 1
        self.num_held += num_fresh
        self.num_promised += num_promised
        if grower is not None:
            self.growth.enter(grower, num_promised)
        self._evict()
        return num_promised

    def publish(self, blocks: Sequence[int]) -> list[int]:
        """Computed blocks of a request that holds their pages enter the cache; which were new.

        The pages of the others stay its own: another request was faster.
        """
        new = [b for b in blocks if b not in self._holders and b not in self._cached]
        for block in new:
            self._holders[block] = 1
            self._changed(block, True)
        return new

    def grow(self, key: RequestKey, num_pages: int, num_promised: int) -> bool:
        """Pages for new tokens, out of its promise first; False where the rest is not there."""
        num_due = min(num_pages, num_promised)
        num_rest = num_pages - num_due
        if num_rest:
            if not self.growth.may_grow(key, num_rest, self.num_available):
                return False
            self.growth.grew(key, num_rest)
        self.num_promised -= num_due
        self.num_held += num_pages
        self._evict()
        return True

    def release(
        self, key: RequestKey, blocks: Sequence[int], num_own: int, num_promised: int
    ) -> None:
        """Give back shared blocks (cached from then on), own pages and promises.

        The last blocks are evicted first: without its head a prefix is lost.
        """
        self.growth.leave(key)
        self.num_held -= num_own
        self.num_promised -= num_promised
        for block in reversed(blocks):
            left = self._holders[block] - 1
            if left:
                self._holders[block] = left
                continue
            del self._holders[block]
            self._cached[block] = None
            self.num_held -= self.block_pages
        assert self.num_held >= 0 and self.num_promised >= 0, (self.num_held, self.num_promised)

    def _evict(self) -> None:
        while self.num_cached + self.num_held + self.num_promised > self.num_pages:
            block, _ = self._cached.popitem(last=False)
            self.num_evicted += 1
            self._changed(block, False)
