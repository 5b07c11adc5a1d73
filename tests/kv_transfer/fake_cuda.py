"""CUDA without a GPU: processes with contexts of their own over byte arrays, copies that take time.

A `FakeGpus` is the machine: its memory, who allocated it, who has it open. A `FakeDriver` is one
process's context on one device. What streams are asked to do happens when somebody has looked often
enough whether it is done, or never, as the test says; until then no byte has moved.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from kv_transfer.cuda_driver import HANDLE_BYTES, DeviceLost, Digests, Run

NEVER = 1 << 40


@dataclass
class Allocation:
    """Device memory; `opened` counts the mappings of each process."""

    owner: "FakeDriver"
    memory: np.ndarray
    handle: bytes
    is_freed: bool = False
    opened: dict[str, int] = field(default_factory=dict)


class FakeGpus:
    """All devices of one host. `num_looks`: how often work is looked at before it is done."""

    def __init__(self, num_looks: int = 2) -> None:
        self.num_looks = num_looks
        self.allocations: dict[int, Allocation] = {}
        self.log: list[str] = []
        self.runs: list[list[Run]] = []
        self._bases = itertools.count(1 << 40, 1 << 30)

    def driver(self, process: str, **options: object) -> "FakeDriver":
        return FakeDriver(self, process, **options)

    def allocate(self, owner: "FakeDriver", num_bytes: int) -> int:
        base = next(self._bases)
        memory = np.zeros(num_bytes, np.uint8)
        handle = base.to_bytes(8, "little") * (HANDLE_BYTES // 8)
        self.allocations[base] = Allocation(owner, memory, handle)
        return base

    def pages(self, base: int, page_bytes: int) -> np.ndarray:
        """The memory of a pool, as the test sees it."""
        return self.allocations[base].memory.reshape(-1, page_bytes)

    def kill(self, driver: "FakeDriver") -> None:
        """Its process ends: its memory goes, its mappings with it."""
        driver.lost = "the process has ended"
        for allocation in self.allocations.values():
            allocation.opened.pop(driver.process, None)
            allocation.is_freed |= allocation.owner is driver


class FakeDriver:
    """One process on one device."""

    def __init__(
        self,
        gpus: FakeGpus,
        process: str,
        *,
        uuid: str = "GPU-0",
        visible: Sequence[str] = ("GPU-0",),
        peers: Sequence[str] = (),
        is_mps: bool = False,
        free_bytes: int = 1 << 24,
    ) -> None:
        self.gpus = gpus
        self.process = process
        self.uuid = uuid
        self.is_mps = is_mps
        self.lost: str | None = None
        self.streams: list[FakeStream] = []
        self._visible = visible
        self._peers = peers
        self._free_bytes = free_bytes
        self._openings: dict[int, int] = {}

    def explain_unreachable(self, uuid: str) -> str | None:
        if uuid not in self._visible:
            return f"GPU {uuid} is not visible here ({', '.join(self._visible)} are)"
        if uuid != self.uuid and uuid not in self._peers:
            return f"GPU {self.uuid} has no peer access to {uuid}"
        return None

    def allocate(self, num_bytes: int) -> int:
        self.check()
        if num_bytes > self._free_bytes:
            raise ValueError(f"the GPU has no {num_bytes} bytes")
        return self.gpus.allocate(self, num_bytes)

    def free(self, base: int) -> None:
        self.check()
        allocation = self.gpus.allocations[base]
        assert allocation.owner is self
        assert not allocation.opened, "freed while somebody has it open: undefined"
        allocation.is_freed = True
        self.gpus.log.append(f"{self.process} frees")

    def export(self, base: int) -> bytes:
        self.check()
        return self.gpus.allocations[base].handle

    def open(self, handle: bytes) -> int:
        self.check()
        for base, allocation in self.gpus.allocations.items():
            if allocation.handle == handle and not allocation.is_freed:
                if allocation.owner is self:
                    raise ValueError("a process cannot open its own handle")
                count = allocation.opened.get(self.process, 0)
                allocation.opened[self.process] = count + 1
                return base
        raise ValueError("no such handle")

    def close(self, base: int) -> None:
        self.check()
        assert all(stream.is_done for stream in self.streams), "closed under a copy: undefined"
        allocation = self.gpus.allocations[base]
        allocation.opened[self.process] -= 1
        if not allocation.opened[self.process]:
            del allocation.opened[self.process]
        self.gpus.log.append(f"{self.process} closes")

    def stream(self) -> "FakeStream":
        self.check()
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def synchronize(self) -> None:
        self.check()
        self.gpus.log.append(f"{self.process} synchronizes")

    def check(self) -> None:
        if self.lost is not None:
            raise DeviceLost(self.lost)

    def memory(self, base: int) -> np.ndarray:
        """What a copy touches. A page of a dead owner takes the whole context with it."""
        allocation = self.gpus.allocations[base]
        is_ours = allocation.owner is self or self.process in allocation.opened
        if allocation.is_freed or not is_ours:
            self.lost = "an illegal memory access was encountered"
        return allocation.memory


class FakeStream:
    """Work that has been asked for and not been done."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self._work: list[Callable[[], None]] = []
        self._num_looks = 0
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        return not self._work

    def copy_runs(self, source: int, target: int, runs: Sequence[Run], page_bytes: int) -> None:
        self._driver.check()
        self._driver.gpus.runs.append(list(runs))

        def copy() -> None:
            ours = self._driver.memory(source).reshape(-1, page_bytes)
            theirs = self._driver.memory(target).reshape(-1, page_bytes)
            if self._driver.lost is None:
                for first, second, num_pages in runs:
                    theirs[second : second + num_pages] = ours[first : first + num_pages]

        self._add(copy)

    def digest_pages(
        self, base: int, num_pages: int, page_bytes: int, pages: Sequence[int]
    ) -> Digests:
        self._driver.check()
        digests = np.full(len(pages), -1, np.int64)

        def digest() -> None:
            memory = self._driver.memory(base).reshape(-1, page_bytes)[:num_pages]
            for i, page in enumerate(pages):
                digests[i] = np.uint64(xxhash.xxh64_intdigest(memory[page].data)).view(np.int64)

        self._add(digest)
        return digests

    def is_idle(self) -> bool:
        with self._lock:
            self._driver.check()
            self._num_looks += 1
            if self._work and self._num_looks >= self._driver.gpus.num_looks:
                self._finish()
            self._driver.check()
            return not self._work

    def finish(self) -> None:
        """Let all that was begun happen."""
        with self._lock:
            self._finish()

    def close(self) -> None:
        self._driver.check()
        assert not self._work, "closed under work"
        self._driver.streams.remove(self)

    def _add(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._work.append(work)
            self._num_looks = 0

    def _finish(self) -> None:
        for work in self._work:
            work()
        self._work.clear()
