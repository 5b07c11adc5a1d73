"""Which page holds which prefix: page hash -> page, for verified pages only. Pure."""

from collections.abc import Iterable, Sequence


class PrefixIndex:
    """Cached and still active pages by the hash of the tokens that they, and all before, hold."""

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

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

    def forget(self, pages: Iterable[int]) -> None:
        """Pages that were evicted or freed match no more."""
        for page in pages:
            page_hash = self._hash_of.pop(page, None)
            if page_hash is not None:
                del self._page_of[page_hash]

    def indexed(self, pages: Iterable[int]) -> frozenset[int]:
        """Those of `pages` that the index holds: worth caching."""
        return frozenset(p for p in pages if p in self._hash_of)

    def __len__(self) -> int:
        return len(self._page_of)
