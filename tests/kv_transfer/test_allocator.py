"""Freed chunks stay with the process: allocating them again faults nothing in."""

import subprocess
import sys

PROGRAM = """
import resource, sys
from kv_transfer.allocator import keep_freed_memory

assert keep_freed_memory() or sys.platform != "linux"

def use_chunks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    chunks = [bytearray(512 * 1024) for _ in range(16)]
    for chunk in chunks:
        chunk[::4096] = bytes(128)
    del chunks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, *later = [use_chunks() for _ in range(6)]
print(first, max(later))
"""


def test_freed_chunks_are_not_given_back_to_the_system() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    first, later = map(int, done.stdout.split())
    assert later < first / 4
