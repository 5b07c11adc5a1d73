"""Which core runs what, and a load that does nothing but read and write memory."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from tandem.child_process import child_environment

COPY_BYTES = 96 << 20  # from and to: no cache holds it
READY = b"copying\n"


def pin(pid: int, cores: Iterable[int]) -> None:
    """Let a process, all threads that it has and those that they start, run on these cores only."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            os.sched_setaffinity(int(thread), set(cores))
        except ProcessLookupError:
            continue  # it ended meanwhile


@contextmanager
def here(cores: Iterable[int]) -> Iterator[None]:
    """This process on these cores, then where it was before."""
    before = os.sched_getaffinity(0)
    pin(os.getpid(), cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)


@contextmanager
def memory_load(core: int) -> Iterator[None]:
    """A process on this core that copies memory as fast as it can."""
    command = [sys.executable, "-P", "-m", "benchmarks.interference.cores", str(core)]
    env = child_environment(os.environ, 1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != READY:
                raise ValueError("the memory load does not start")
            yield
        finally:
            process.kill()


def copy_for_ever(core: int) -> None:
    """From one buffer to another one."""
    os.sched_setaffinity(0, {core})
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    np.copyto(target, source)
    os.write(1, READY)
    while True:
        np.copyto(target, source)


if __name__ == "__main__":
    copy_for_ever(int(sys.argv[1]))
