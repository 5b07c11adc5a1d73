"""What both guests of a node share: pages, prefix index, emission, identity. Pure.

Owned by the step thread. Whoever takes pages goes through here, so that evicted pages are forgotten
by the prefix index before it is asked again.
"""

from dataclasses import dataclass, field

from node.emitter import Emitter
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
    """Pages and streams of a node. `epoch` is zero until the coordinator has admitted it."""

    identity: NodeIdentity
    ledger: PageLedger
    emitter: Emitter
    index: PrefixIndex = field(default_factory=PrefixIndex)
    epoch: int = 0
    pool: PagePool = field(init=False)
    costs: LiveCosts = field(default_factory=LiveCosts)
    _hashers: dict[str, PageHasher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pool = PagePool(self.ledger, self.index)

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

    def take_prefix(self, resident: Resident, extra_promise: int) -> bool:
        """Give a prompt its pages: the cached prefix, then fresh ones; False where too few.

        The last known token is always computed, so it is never part of the cached prefix. With
        `extra_promise` that many pages are promised for its growth as well.
        """
        claim = self.pool.claim(
            self.hashes(resident, resident.num_tokens - 1),
            resident.num_missing_pages,
            PageState.ACTIVE,
            num_promised=extra_promise,
        )
        if claim is None:
            return False
        resident.add_pages([*claim.cached, *claim.fresh])
        resident.num_computed = len(claim.cached) * self.identity.layout.page_size
        resident.num_cached = resident.num_computed
        resident.num_promised = extra_promise
        return True

    def grow(self, resident: Resident) -> None:
        """Turn promised pages into pages until the next token has room."""
        num_pages = resident.num_missing_pages
        if num_pages > 0:
            resident.num_promised -= num_pages
            assert resident.num_promised >= 0, "grown past the promise"
            resident.add_pages(self.ledger.take(num_pages, PageState.ACTIVE, promised=True))
            self.pool.forget_evicted()

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
        self.ledger.unpromise(resident.num_promised)
        resident.num_promised = 0
        self.pool.release(resident.drop_pages())
