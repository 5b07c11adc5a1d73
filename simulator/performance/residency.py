"""Pages of requests on one node: claims with a cached prefix, growth, and giving back. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from node.growth import Grower
from simulator.performance.pages import BlockPages
from simulator.performance.requests import Resident


@dataclass(frozen=True, slots=True)
class Residency:
    """As `node.state.NodeState` does it, with blocks of `block_tokens` tokens (0: no prefixes)."""

    pages: BlockPages
    page_size: int
    block_tokens: int

    def num_pages(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-num_tokens // self.page_size)

    def num_held(self, resident: Resident) -> int:
        """Pages that it holds, shared ones included."""
        return resident.num_own + len(resident.blocks) * self.pages.block_pages

    def cached_blocks(self, resident: Resident) -> Sequence[int]:
        """The leading blocks of its prompt that are here; the last known token is never of them."""
        blocks = resident.request.blocks
        if not blocks:
            return blocks
        limit = (resident.num_tokens - 1) // self.block_tokens
        return blocks[: min(limit, self.pages.match(blocks))]

    def claim(self, resident: Resident, *, with_growth: bool) -> bool:
        """Give a request pages for its known tokens, cached ones first; False where too few.

        `with_growth`: it decodes here, and keeps its pages for that.
        """
        blocks = self.cached_blocks(resident)
        num_pages = self.num_pages(resident.num_tokens)
        grower = None
        if with_growth:
            final = self.num_pages(max(resident.num_tokens, resident.request.num_final_tokens - 1))
            grower = Grower(resident.key, resident.age, final - num_pages)
            self._expect(resident)
        num_promised = self.pages.claim(blocks, num_pages, grower)
        if num_promised is None:
            return False
        resident.blocks = list(blocks)
        resident.num_own = num_pages - len(blocks) * self.pages.block_pages
        resident.num_promised = num_promised
        resident.changed()
        return True

    def _expect(self, resident: Resident) -> None:
        request = resident.request
        if request.prediction is not None:
            num_tokens = request.num_prompt + round(request.prediction.q90)
            expected = self.num_pages(min(num_tokens, request.num_final_tokens))
            self.pages.growth.expect(resident.key, expected)

    def grow(self, resident: Resident, num_tokens: int) -> bool:
        """Pages until so many tokens have room; False where there are none to take."""
        num_new = self.num_pages(num_tokens) - self.num_held(resident)
        if num_new <= 0:
            return True
        if not self.pages.grow(resident.key, num_new, resident.num_promised):
            return False
        resident.num_own += num_new
        resident.num_promised = max(0, resident.num_promised - num_new)
        resident.changed()
        return True

    def publish(self, resident: Resident) -> None:
        """Its computed blocks enter the cache."""
        blocks = resident.request.blocks
        if blocks:
            num_full = min(len(blocks), resident.num_computed // self.block_tokens)
            new = self.pages.publish(blocks[len(resident.blocks) : num_full])
            resident.blocks += new
            resident.num_own -= len(new) * self.pages.block_pages

    def give_back(self, resident: Resident) -> None:
        """Release its pages and promises; blocks stay cached."""
        own, promised = resident.num_own, resident.num_promised
        self.pages.release(resident.key, resident.blocks, own, promised)
        resident.blocks, resident.num_own, resident.num_promised = [], 0, 0
        resident.changed()
