"""What both guests of a node share: pages, prefix index, emission, identity. Pure.

Owned by the step thread. Whoever takes pages goes through here, so that evicted pages are forgotten
by the prefix index before it is asked again.
"""

from dataclasses import dataclass, field

from node.emitter import Emitter
from node.ledger import PageLedger, PageState
from node.prefix_index import PrefixIndex
from node.resident import Resident
from scheduling.page_hash import PageHasher
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this process is, for as long as it lives."""

    node_id: str
    incarnation: int
    model: ModelIdentity
    layout: KVLayout
    eos_token_ids: tuple[int, ...]


@dataclass(slots=True)
class NodeState:
    """Pages and streams of a node. `epoch` is zero until the coordinator has admitted it."""

    identity: NodeIdentity
    ledger: PageLedger
    emitter: Emitter
    index: PrefixIndex = field(default_factory=PrefixIndex)
    epoch: int = 0
    _hashers: dict[str, PageHasher] = field(default_factory=dict)

    def hashes(self, resident: Resident, num_tokens: int) -> list[bytes]:
        """Hashes of the full pages within the first `num_tokens` tokens."""
        tenant = resident.spec.tenant
        if tenant not in self._hashers:
            self._hashers[tenant] = PageHasher(
                key=self.identity.model.weights_fingerprint.encode(),
                tenant=tenant,
                weights_fingerprint=self.identity.model.weights_fingerprint,
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
        self.forget_evicted()
        page_size = self.identity.layout.page_size
        cached = self.index.match(self.hashes(resident, resident.num_tokens - 1))
        num_fresh = resident.num_missing_pages - len(cached)
        num_idle = sum(self.ledger.state(p) is PageState.CACHED for p in cached)
        if num_fresh + num_idle + extra_promise > self.ledger.num_available:
            return False
        self.ledger.hold(cached)
        resident.add_pages(cached)
        resident.add_pages(self.ledger.take(num_fresh, PageState.ACTIVE))
        resident.num_computed = resident.num_cached = len(cached) * page_size
        self.ledger.promise(extra_promise)
        resident.num_promised = extra_promise
        self.forget_evicted()
        return True

    def grow(self, resident: Resident) -> None:
        """Turn promised pages into pages until the next token has room."""
        num_pages = resident.num_missing_pages
        if num_pages > 0:
            resident.num_promised -= num_pages
            assert resident.num_promised >= 0, "grown past the promise"
            resident.add_pages(self.ledger.take(num_pages, PageState.ACTIVE, promised=True))
            self.forget_evicted()

    def index_pages(self, resident: Resident) -> None:
        """Make the full, computed pages of a request available as prefix cache."""
        self.forget_evicted()
        for page_hash, page in zip(
            self.hashes(resident, resident.num_computed), resident.pages, strict=False
        ):
            self.index.insert(page_hash, page)

    def give_back(self, resident: Resident) -> None:
        """Release a request's pages and promises; indexed pages stay cached."""
        self.ledger.unpromise(resident.num_promised)
        resident.num_promised = 0
        pages = resident.drop_pages()
        self.ledger.release(pages, cache=self.index.indexed(pages))

    def forget_evicted(self) -> None:
        """Tell the prefix index which cached pages were reclaimed."""
        self.index.forget(self.ledger.take_evicted())
