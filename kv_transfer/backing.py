"""Memory behind pages, asked of the system before they are written.

A page table has no entry for what a process has not touched yet, and a shared pool no memory for
what nobody has: the first write to 4 KiB took 6 us, 4 where the other process had touched it, and
0.3 with everything in place. That was 12 of the 16 ms from the end of a prompt of 1,024 tokens
(21 MB of KV) to its first decode step. So the owner asks for the pages of a grant while the prompt
computes, and whoever has mapped them for those that it will write next (MADV_POPULATE_WRITE).
Pages are handed out in the order of their ids at first, so an idle owner asks for the first ones:
else the first prompts would wait for them within their steps, 60 ms in 1.5 s for 1,024 tokens of a
300 M model.
"""

import ctypes
import mmap
import sys
from collections import deque
from collections.abc import Sequence

from kv_transfer.checksum import PageArray

MADV_POPULATE_WRITE = 23  # linux/mman.h, since 5.14; touches, and changes no byte
READY_BYTES = 256 << 20  # of the first pages; some 0.3 s of work for a thread that gives way
SLICE_BYTES = 256 << 10  # between two looks at other work: 0.3 ms where there is no memory yet


class Backing:
    """Remembers of which pages, [num_pages, page_bytes] of this process, the memory is there."""

    def __init__(self, pages: PageArray) -> None:
        self._begin = pages.ctypes.data
        self._page_bytes = int(pages.shape[1])
        self._is_asked = bytearray(len(pages))
        self._wanted: deque[int] = deque()
        self._slice_pages = max(1, SLICE_BYTES // self._page_bytes)

    def want_first(self) -> None:
        """READY_BYTES of pages, those with the lowest ids, will be needed some time."""
        self._wanted.extend(range(min(len(self._is_asked), READY_BYTES // self._page_bytes)))

    @property
    def is_idle(self) -> bool:
        """Whether all pages wanted have been asked for."""
        return not self._wanted

    def want(self, pages: Sequence[int]) -> None:
        """These will be needed: `advance` asks for them, before others that were wanted earlier."""
        self._wanted.extendleft(page for page in reversed(pages) if not self._is_asked[page])

    def advance(self) -> None:
        """Ask for a slice of what is wanted."""
        num_pages = min(self._slice_pages, len(self._wanted))
        self.ask([self._wanted.popleft() for _ in range(num_pages)])

    def forget(self) -> None:
        """Nothing is wanted any more; before the memory goes."""
        self._wanted.clear()

    def ask(self, pages: Sequence[int]) -> None:
        """For these, now, but once."""
        for page in pages:
            if not self._is_asked[page]:
                self._is_asked[page] = 1
                populate(self._begin + page * self._page_bytes, self._page_bytes)


def populate(address: int, num_bytes: int) -> bool:
    """Have memory of this process ready for writing; False where the system does not know how."""
    if sys.platform != "linux":
        return False
    begin = address // mmap.PAGESIZE * mmap.PAGESIZE
    size = ctypes.c_size_t(address + num_bytes - begin)
    result: int = _LIBC.madvise(ctypes.c_void_p(begin), size, MADV_POPULATE_WRITE)
    return result == 0


_LIBC = ctypes.CDLL(None)  # its calls let go of the interpreter
