"""Which prefixes each node has cached, from the numbered deltas in its heartbeats. Pure.

A hint for placement, never a promise: what a node really has it finds out itself.
"""

from dataclasses import dataclass, field

from tandem.messages.membership import CacheDelta

PREFIX_BYTES = 8  # the first bytes of a page hash
MAX_PREFIXES = 2**20  # of one node; about 80 MB here


@dataclass(slots=True)
class _NodeCache:
    """`number` None: deltas cannot be applied until a snapshot comes. `is_dropped`: none will."""

    epoch: int
    number: int | None = None
    prefixes: set[bytes] = field(default_factory=set)  # only asked for members, never listed
    is_dropped: bool = False


class CacheIndex:
    """Routing prefixes by node. Nodes are known by `expect` until `forget`."""

    def __init__(self) -> None:
        self._nodes: dict[str, _NodeCache] = {}
        self.num_duplicates = 0
        self.num_malformed = 0

    def expect(self, node_id: str, epoch: int) -> None:
        """A node was admitted: its deltas start with a snapshot."""
        self._nodes[node_id] = _NodeCache(epoch)

    def forget(self, node_id: str) -> None:
        """A node is gone, and its cache with it."""
        self._nodes.pop(node_id, None)

    def update(self, node_id: str, epoch: int, delta: CacheDelta | None) -> str | None:
        """Apply what a heartbeat carried; the text where the node's index had to be dropped."""
        cache = self._nodes.get(node_id)
        if delta is None or cache is None or cache.epoch != epoch:
            return None
        if cache.number is not None and delta.number <= cache.number:
            self.num_duplicates += 1
            return None
        if len(delta.added) % PREFIX_BYTES or len(delta.removed) % PREFIX_BYTES:
            self.num_malformed += 1
            cache.number = None
            cache.prefixes.clear()
        elif delta.is_snapshot:
            cache.is_dropped = False
            cache.number, cache.prefixes = delta.number, set(split(delta.added.data))
        elif cache.number is not None and delta.number == cache.number + 1:
            cache.number = delta.number
            cache.prefixes.difference_update(split(delta.removed.data))
            cache.prefixes.update(split(delta.added.data))
        else:
            cache.number = None  # what was known stays a fair hint until the snapshot
        return self._bound(node_id, cache)

    def _bound(self, node_id: str, cache: _NodeCache) -> str | None:
        if len(cache.prefixes) <= MAX_PREFIXES:
            return None
        cache.number, cache.is_dropped = None, True
        cache.prefixes.clear()
        return (
            f"node {node_id} has over {MAX_PREFIXES} cached prefixes: requests are placed without "
            "regard to its cache until it joins anew"
        )

    def wants_snapshot(self, node_id: str) -> bool:
        """Whether deltas of this node cannot be applied for want of what they follow."""
        cache = self._nodes.get(node_id)
        return cache is not None and cache.number is None and not cache.is_dropped

    def match(self, prefix_hashes: list[bytes], node_id: str) -> int:
        """How many of a prompt's leading pages the node has."""
        cache = self._nodes.get(node_id)
        if cache is None or not cache.prefixes:
            return 0
        for number, prefix in enumerate(prefix_hashes):
            if prefix not in cache.prefixes:
                return number
        return len(prefix_hashes)

    def matches(self, prefix_hashes: list[bytes]) -> dict[str, int]:
        """How many of a prompt's leading pages each node has, of those that have any."""
        if not prefix_hashes:
            return {}
        first = prefix_hashes[0]  # most nodes have not even this: a thousand take 0.05 ms
        hits = [node_id for node_id, cache in self._nodes.items() if first in cache.prefixes]
        return {node_id: self.match(prefix_hashes, node_id) for node_id in hits}

    def num_prefixes(self, node_id: str) -> int:
        """How many prefixes are known of a node."""
        cache = self._nodes.get(node_id)
        return 0 if cache is None else len(cache.prefixes)


def split(prefixes: bytes) -> list[bytes]:
    """The single prefixes of concatenated ones; an incomplete last one is left out."""
    whole = len(prefixes) - len(prefixes) % PREFIX_BYTES
    return [prefixes[i : i + PREFIX_BYTES] for i in range(0, whole, PREFIX_BYTES)]
