"""Chunks on their way over zmq lie in memory that was used before: the C library keeps it.

glibc gives the free end of its heap back to the system once that is twice the largest block that it
ever mapped, so half a MiB that is allocated for each chunk was given back and faulted in anew each
time: 28 to 60 faults a chunk at the writer, up to 28 at the owner. Kept, both bulk threads and
ZeroMQ's took about 1.0 s of processor time for a GB in place of 1.4 (two busy cores; staging
buffers of our own won no more than that).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 64 << 20  # at the end of a heap: credit windows of four peers
MAPPED_BYTES = 4 << 20  # blocks from here on are mapped, and given back when they are freed


def keep_freed_memory() -> bool:
    """Set it for this process; False where the C library has no such thing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = ((M_TRIM_THRESHOLD, KEPT_BYTES), (M_MMAP_THRESHOLD, MAPPED_BYTES))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)
