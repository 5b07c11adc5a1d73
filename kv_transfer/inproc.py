"""Pools of one process, found by name: for tests, the simulator and a node's hand-off to itself."""

from kv_transfer.checksum import PageArray
from kv_transfer.transport import MappedPool


class InprocPools:
    """A directory of pools; whoever is handed the same one can write into each other's pages."""

    def __init__(self) -> None:
        self._pools: dict[str, PageArray] = {}

    def register(self, address: str, pages: PageArray) -> None:
        """Offer a pool of shape [pages, page_bytes]."""
        self._pools[address] = pages

    def open(self, own: PageArray, address: str, num_pages: int) -> MappedPool:
        """The pool at an address. Raises ValueError where there is none, or a smaller one."""
        pages = self._pools.get(address)
        if pages is None or len(pages) < num_pages:
            raise ValueError(f"no pool of {num_pages} pages is registered as {address!r}")
        return MappedPool(own, pages[:num_pages])
