"""Pages of one simulated node by count, and which prefix blocks it has cached. Pure.

What `node.page_pool` does page by page, in steps of a trace's blocks: a block is taken, shared and
evicted as a whole. Pages of outputs and of prompt ends are free again when their request ends.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence


class BlockPages:
    """`num_pages` pages; blocks of `block_pages` pages, least recently used evicted first.

    Held, cached and free pages add up to the pool; `num_promised` of those that are not held are
    set aside for growth. `changed(block, is_here)` is told what enters and leaves the cache.
    """

    def __init__(
        self, num_pages: int, block_pages: int, changed: Callable[[int, bool], None]
    ) -> None:
        self.num_pages = num_pages
        self.block_pages = block_pages
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
    def num_cached(self) -> int:
        """Pages that only the cache has."""
        return len(self._cached) * self.block_pages

    def match(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are here."""
        for number, block in enumerate(blocks):
            if block not in self._holders and block not in self._cached:
                return number
        return len(blocks)

    def claim(self, blocks: Sequence[int], num_fresh: int, num_promised: int) -> bool:
        """Hold cached blocks, take fresh pages and set others aside; False, and nothing, if full.

        `blocks` are here, as `match` said.
        """
        num_idle = sum(block not in self._holders for block in blocks) * self.block_pages
        if num_idle + num_fresh + num_promised > self.num_available:
            return False
        for block in blocks:
            if block in self._cached:
                del self._cached[block]
                self.num_held += self.block_pages
            self._holders[block] = self._holders.get(block, 0) + 1
        self.num_held += num_fresh
        self.num_promised += num_promised
        self._evict()
        return True

    def publish(self, blocks: Sequence[int]) -> list[int]:
        """Computed blocks of a request that holds their pages enter the cache; which were new.

        The pages of the others stay its own: another request was faster.
        """
        new = [b for b in blocks if b not in self._holders and b not in self._cached]
        for block in new:
            self._holders[block] = 1
            self._changed(block, True)
        return new

    def grow(self, num_pages: int, *, promised: bool) -> None:
        """Pages for new tokens, out of what was promised or of what is free."""
        if promised:
            self.num_promised -= num_pages
            assert self.num_promised >= 0, "grown past the promise"
        self.num_held += num_pages
        assert self.num_held <= self.num_pages, "more pages than there are"
        self._evict()

    def release(self, blocks: Sequence[int], num_own: int, num_promised: int) -> None:
        """Give back shared blocks (cached from then on), own pages and promises.

        The last blocks are evicted first: without its head a prefix is lost.
        """
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
        while self.num_cached + self.num_held > self.num_pages:
            block, _ = self._cached.popitem(last=False)
            self.num_evicted += 1
            self._changed(block, False)
