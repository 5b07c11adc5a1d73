"""What both guests of a node share: pages, prefix index, emission, identity. Pure.

Owned by the step thread. Whoever takes pages goes through here, so that evicted pages are forgotten
by the prefix index before it is asked again.
"""

from dataclasses import dataclass, field

from node.emitter import Emitter
from node.growth import Grower, Overcommit
from node.ledger import PageLedger, PageState
from node.live_costs import LiveCosts
from node.page_pool import PagePool
from node.prefix_index import PrefixIndex
from node.resident import Resident
from scheduling.page_hash import PageHasher
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity

MAX_HASHERS = 1024  # tenants


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this process is, for as long as it lives.

    `prefix_key` keys page hashes; empty: the weights' fingerprint does, which is no secret.
    """

    node_id: str
    incarnation: int
    model: ModelIdentity
    layout: KVLayout
    eos_token_ids: tuple[int, ...]
    prefix_key: bytes = b""


@dataclass(slots=True)
class NodeState:
    """Pages and streams of a node. `epoch` is zero until the coordinator has admitted it.

    num_wasted_tokens: tokens whose KV was dropped by a preemption and computed again. Hand-offs
    that this node sent: `num_handoffs` with `num_handoff_pages` are there and verified. Of prompts
    it computed `num_prompt_tokens` and found `num_cached_tokens` in its cache.
    """

    identity: NodeIdentity
    ledger: PageLedger
    emitter: Emitter
    overcommit: Overcommit = field(default_factory=Overcommit)
    epoch: int = 0
    num_wasted_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_handoffs_failed: int = 0
    num_handoffs: int = 0
    num_handoff_pages: int = 0
    pool: PagePool = field(init=False)
    index: PrefixIndex = field(init=False)
    costs: LiveCosts = field(default_factory=LiveCosts)
    _hashers: dict[str, PageHasher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = PagePool(self.ledger, self.overcommit)
        self.index = self.pool.index

    def handed_over(self, num_pages: int) -> None:
        """Another node has a prompt's KV, so many pages of which were sent to it."""
        self.num_handoffs += 1
        self.num_handoff_pages += num_pages

    def hashes(self, resident: Resident, num_tokens: int) -> list[bytes]:
        """Hashes of the full pages within the first `num_tokens` tokens."""
        tenant = resident.spec.tenant
        if tenant not in self._hashers:
            if len(self._hashers) >= MAX_HASHERS:
                del self._hashers[next(iter(self._hashers))]  # made again when it is asked for
            fingerprint = self.identity.model.weights_fingerprint
            self._hashers[tenant] = PageHasher(
                key=self.identity.prefix_key or fingerprint.encode(),
                tenant=tenant,
                weights_fingerprint=fingerprint,
                dtype=self.identity.layout.dtype,
                page_size=self.identity.layout.page_size,
            )
        known = resident.page_hashes
        rest = resident.token_ids[len(known) * self.identity.layout.page_size : num_tokens]
        known += self._hashers[tenant].chain(rest, known[-1] if known else None)
        return known[: num_tokens // self.identity.layout.page_size]

    def take_prefix(self, resident: Resident, *, grows: bool) -> bool:
        """Give a prompt its pages: the cached prefix, then fresh ones; False where too few.

        The last known token is always computed, so it is never part of the cached prefix. One that
        `grows` decodes on this node, and keeps its pages for that.
        """
        hashes = self.hashes(resident, resident.num_tokens - 1)
        if not self.claim(resident, hashes, grows=grows):
            return False
        resident.num_computed = resident.num_matched
        self.num_cached_tokens += resident.num_matched
        self.num_wasted_tokens += max(0, resident.num_dropped - resident.num_matched)
        resident.num_dropped = 0
        return True

    def claim(self, resident: Resident, hashes: list[bytes], *, grows: bool) -> bool:
        """Pages for all known tokens of a request that has none; False where too few."""
        num_pages = resident.num_missing_pages
        grower = None
        if grows:
            num_growth = resident.num_final_pages - num_pages
            grower = Grower(resident.key, resident.spec.sequence, num_growth)
        claim = self.pool.claim(hashes, num_pages, PageState.ACTIVE, grower)
        if claim is None:
            return False
        resident.add_pages([*claim.cached, *claim.fresh])
        resident.num_promised = claim.num_promised
        resident.match(len(claim.cached))
        return True

    def grow(self, resident: Resident) -> bool:
        """Take pages until the next token has room; False where there are none to take."""
        num_pages = resident.num_missing_pages
        if num_pages <= 0:
            return True
        pages = self.pool.grow(resident.key, num_pages, resident.num_promised)
        if pages is None:
            return False
        resident.num_promised = max(0, resident.num_promised - num_pages)
        resident.add_pages(pages)
        return True

    def index_pages(self, resident: Resident) -> None:
        """Make the full, computed pages of a request available as prefix cache."""
        self.pool.forget_evicted()
        for page_hash, page in zip(
            self.hashes(resident, resident.num_computed), resident.pages, strict=False
        ):
            self.index.insert(page_hash, page)

    def distrust(self, resident: Resident) -> None:
        """Its tokens could not be computed: what it filled is no prefix for anybody.

        Pages that it shares because they were cached before it came are not its own to judge.
        """
        num_shared = resident.num_cached // self.identity.layout.page_size
        self.index.forget(resident.pages[num_shared:])

    def give_back(self, resident: Resident) -> None:
        """Release a request's pages and promises; indexed pages stay cached."""
        self.pool.forgo(resident.key, resident.num_promised)
        resident.num_promised = 0
        self.pool.release(resident.drop_pages())
