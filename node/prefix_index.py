"""Which page holds which prefix: page hash -> page, for verified pages only. Pure.

Routing prefixes are the first 8 bytes of page hashes: enough for a coordinator to route by.
"""

from collections.abc import Iterable, Sequence

ROUTING_BYTES = 8


class PrefixIndex:
    """Cached and still active pages by the hash of the tokens that they, and all before, hold.

    It logs what entered and left since `take_changes`. What came and went again is in neither list,
    so the log is never longer than what was told last and what is held now.
    """

    def __init__(self) -> None:
        self.num_inserted = 0
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._added: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Pages of the longest known prefix of the chain `hashes`."""
        pages = []
        for page_hash in hashes:
            page = self._page_of.get(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def insert(self, page_hash: bytes, page: int) -> None:
        """Offer a full page; the first page with a hash stays its holder."""
        if page_hash not in self._page_of and page not in self._hash_of:
            self._page_of[page_hash] = page
            self._hash_of[page] = page_hash
            self.num_inserted += 1
            _log(page_hash[:ROUTING_BYTES], self._added, self._removed)

    def forget(self, pages: Iterable[int]) -> None:
        """Pages that were evicted or freed match no more."""
        for page in pages:
            page_hash = self._hash_of.pop(page, None)
            if page_hash is not None:
                del self._page_of[page_hash]
                _log(page_hash[:ROUTING_BYTES], self._removed, self._added)

    def indexed(self, pages: Iterable[int]) -> frozenset[int]:
        """Those of `pages` that the index holds: worth caching."""
        return frozenset(p for p in pages if p in self._hash_of)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        """Routing prefixes that were added and removed since the last call."""
        changes = list(self._added), list(self._removed)
        self._added.clear()
        self._removed.clear()
        return changes

    def routing_prefixes(self) -> list[bytes]:
        """All of them, for a snapshot; a `take_changes` beside it starts the deltas that follow."""
        return [page_hash[:ROUTING_BYTES] for page_hash in self._page_of]

    def __len__(self) -> int:
        return len(self._page_of)


def _log(prefix: bytes, to: dict[bytes, None], opposite: dict[bytes, None]) -> None:
    if prefix in opposite:
        del opposite[prefix]
    else:
        to[prefix] = None
