"""A process with a KV pool on the GPU that does what it is told, for tests with several of them.

`python -m tests.kv_transfer.cuda_process IDENTITY`: one JSON list per line in, one JSON value out.
It ends with status 3 where its device is lost, as a node would.
"""

import json
import os
import queue
import sys
import threading
import time
from typing import Any

import torch
import xxhash

from kv_transfer.actions import (
    BulkEvent,
    OpenGrant,
    PagesWritten,
    ReadPages,
    VerifyPages,
    WritePages,
)
from kv_transfer.bulk import BulkThread
from kv_transfer.cuda_driver import DeviceLost
from kv_transfer.cuda_ipc import CudaPool
from kv_transfer.cupy_driver import open_driver
from tandem.messages.common import NodeRef
from tandem.messages.handoff import ChunkSum, TransportOffer

PAGE_BYTES, NUM_PAGES = 2 << 20, 256
LOST_STATUS = 3
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
KEY = (b"k" * 16, 1)


class Worker:
    """A pool, its bulk thread, and torch's view of the pool."""

    def __init__(self, identity: str) -> None:
        self.driver = open_driver("cuda")
        self.pool = CudaPool(self.driver, (NUM_PAGES + 1) * PAGE_BYTES)
        flat = torch.as_tensor(self.pool, device="cuda")
        assert flat.data_ptr() == self.pool.base, "torch made a copy"
        self.tensor = flat.view(NUM_PAGES + 1, PAGE_BYTES)
        self.events: queue.Queue[BulkEvent] = queue.Queue()
        self.bulk = BulkThread(
            self.pool.pages(PAGE_BYTES, NUM_PAGES),
            identity=identity.encode(),
            host="127.0.0.1",
            post=self.events.put,
        )
        self.bulk.start(failed)

    def serve(self) -> str:
        """The address of the pool; whoever asks gets it and is watched."""

        def admit(writer: bytes, pid: int, pidfd: int) -> bool:
            self.bulk.admit_writer(writer, "cuda_ipc")
            self.bulk.watch_writer(writer, pid, pidfd)
            return True

        return self.pool.serve(admit, PAGE_BYTES)

    def connect(self, address: str) -> float:
        """Open an owner's pool; bytes per second as measured."""
        offer = TransportOffer(transport="cuda_ipc", address=address)
        return self.bulk.open_fastest("d0", 1, [offer], NUM_PAGES)[1].bytes_per_s

    def fill(self, seed: int) -> bool:
        """Random bytes on all pages."""
        generator = torch.Generator(device="cuda").manual_seed(seed)
        self.tensor.random_(0, 256, generator=generator)
        torch.cuda.synchronize()
        return True

    def zero(self, pages: list[int]) -> bool:
        self.tensor[pages] = 0
        torch.cuda.synchronize()
        return True

    def stays_zero(self, pages: list[int], seconds: float) -> bool:
        """Whether nobody writes to them meanwhile."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            if bool(self.tensor[pages].any()):
                return False
        return True

    def hashes(self, pages: list[int]) -> list[str]:
        """Of their bytes, as torch sees them."""
        return [xxhash.xxh3_64_hexdigest(self.tensor[p].cpu().numpy().data) for p in pages]

    def grant(self, writer: str, pages: list[int]) -> bool:
        self.bulk.submit(OpenGrant(7, writer.encode(), tuple(pages)))
        return True

    def write(self, sources: list[int], targets: list[int]) -> list[Any]:
        """Seconds and checksum; or the reason."""
        began_at = time.perf_counter()
        self.bulk.submit(WritePages(KEY, OWNER, 7, 0, tuple(sources), tuple(targets)))
        event = self.events.get(timeout=20)
        if not isinstance(event, PagesWritten):
            return [None, str(event)]
        return [time.perf_counter() - began_at, event.chunk.checksum.hex()]

    def read(self, theirs: list[int], own: list[int]) -> str:
        self.bulk.submit(ReadPages(KEY, OWNER, 7, tuple(theirs), tuple(own)))
        return type(self.events.get(timeout=20)).__name__

    def verify(self, pages: list[int], checksum: str) -> str | None:
        chunk = ChunkSum(first=0, num_pages=len(pages), checksum=bytes.fromhex(checksum))
        self.bulk.submit(VerifyPages(KEY, 7, tuple(pages), (chunk,)))
        return getattr(self.events.get(timeout=20), "error", "another event")

    def flood(self) -> bool:
        """Write all pages again and again from now on; true once the first has arrived."""
        everything = list(range(NUM_PAGES))
        outcomes: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._flood, args=(everything, outcomes), daemon=True).start()
        return outcomes.get(timeout=20) is not None

    def _flood(self, pages: list[int], outcomes: "queue.Queue[Any]") -> None:
        while True:
            seconds, _ = self.write(pages, pages)
            outcomes.put(seconds)
            if seconds is None:
                return

    def compute(self, seconds: float) -> list[float]:
        """Products that do not touch the pool: their sum, each the same, and how many."""
        torch.manual_seed(0)
        a = torch.randn(4096, 4096, device="cuda")
        first, count = float((a @ a).sum()), 0
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            if float((a @ a).sum()) != first:
                return [first, -1.0]
            count += 1
        return [first, float(count)]

    def free_bytes(self) -> int:
        """Of the whole device."""
        return torch.cuda.mem_get_info()[0]

    def event(self) -> str:
        return type(self.events.get(timeout=20)).__name__

    def open_own(self) -> str:
        """What CUDA says of a handle that this very process exported."""
        try:
            self.driver.open(self.driver.export(self.pool.base))
        except ValueError as error:
            return str(error)
        return "opened"


def failed(error: BaseException) -> None:
    """As a node ends when its bulk thread fails."""
    print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
    os._exit(LOST_STATUS if isinstance(error, DeviceLost) else 1)


def main() -> None:
    """Obey until the input ends; memory goes with the process, as a node's does."""
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            print(json.dumps(getattr(worker, name)(*arguments)), flush=True)
        except (DeviceLost, torch.AcceleratorError) as error:
            failed(DeviceLost(str(error)))
    worker.bulk.close()
    worker.pool.close()


if __name__ == "__main__":
    main()
