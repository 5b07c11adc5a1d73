"""A node's KV pool on a GPU, opened once by writers on the same host through CUDA IPC.

The pool is one allocation that holds nothing but KV. Its handle goes through the same door as the
descriptor of shared memory (`handover.py`), and whoever opened it is trusted alike: it can read and
write every page, and its process can be ended through the pidfd that was taken before. That its
work has ended on the GPU as well, this node knows once its own device has been synchronised.

Freeing memory that another process has open is undefined. So the door's connection stays open, and
whoever closes its mapping says so there; while one has not, the memory is left to the end of this
process.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from kv_transfer.checksum import ChunkHasher
from kv_transfer.cuda_driver import HANDLE_BYTES, CudaDriver, CudaStream, DeviceLost, Digests
from kv_transfer.handover import AdmitProcess, Handover, HandoverServer, make_address

MAGIC = b"TDMG"
MAX_OFFER_BYTES = 1024
SLICE_BYTES = 32 << 20  # begun at once: some 20 us between pools of one GPU, 1.3 ms over PCIe
MAX_SLICE_PAGES = 256  # each may be a copy of its own, begun in some 4 us
POLL_S = 20e-6
STUCK_S = 10.0  # a slice that takes longer will never end
log = logging.getLogger("tandem.kv_transfer")

MPS_ADVICE = (
    "an MPS server shares this GPU among processes, so that a fault of one ends the others and no "
    "process can be fenced: stop it (echo quit | nvidia-cuda-mps-control)"
)


class PoolOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """What a writer must know to map a pool of `num_pages` pages, the scratch page included."""

    uuid: Annotated[str, msgspec.Meta(max_length=64)]
    page_bytes: Annotated[int, msgspec.Meta(gt=0)]
    num_pages: Annotated[int, msgspec.Meta(gt=0)]
    handle: Annotated[bytes, msgspec.Meta(min_length=HANDLE_BYTES, max_length=HANDLE_BYTES)]


class CudaPool:
    """Device memory for a KV pool that other processes may open; torch sees it as an array."""

    def __init__(self, driver: CudaDriver, num_bytes: int) -> None:
        """ValueError where the device has too little memory, or is shared through MPS."""
        if driver.is_mps:
            raise ValueError(MPS_ADVICE)
        self.driver = driver
        self.num_bytes = num_bytes
        self.base = driver.allocate(num_bytes)
        self.stream = driver.stream()
        self._server: HandoverServer | None = None
        self._is_closed = False

    def __len__(self) -> int:
        """Bytes."""
        return self.num_bytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The memory as bytes, for torch.as_tensor."""
        return {
            "shape": (self.num_bytes,),
            "typestr": "|u1",
            "data": (self.base, False),
            "strides": None,
            "version": 3,
        }

    def pages(self, page_bytes: int, num_pages: int) -> "CudaPages":
        """Its usable pages; the scratch page is the one behind them.

        Takes a second at first: the kernel that digests pages is compiled.
        """
        pages = CudaPages(self, page_bytes, num_pages)
        pages.digest(self.stream, [num_pages])
        wait_idle(self.stream, since=time.perf_counter())
        return pages

    def serve(self, admit: AdmitProcess, page_bytes: int, run_dir: Path | None = None) -> str:
        """Hand the handle to processes of this user that `admit` agrees to; the address."""
        assert self._server is None, "served once"
        offer = PoolOffer(
            self.driver.uuid,
            page_bytes,
            self.num_bytes // page_bytes,
            self.driver.export(self.base),
        )
        address = make_address(f"tandem-kv-{secrets.token_hex(16)}", run_dir)
        handover = Handover(MAGIC, msgspec.msgpack.encode(offer), is_held=True)
        self._server = HandoverServer(address, handover, admit)
        return address

    def close(self) -> None:
        """End the server, and free the memory unless somebody has it open. Idempotent.

        Nothing here may use the memory any more.
        """
        if self._is_closed:
            return
        self._is_closed = True
        num_holders = 0 if self._server is None else self._server.close()
        if num_holders:
            log.info(
                "the KV pool may be open elsewhere (%d): it goes with this process", num_holders
            )
            return
        try:
            self.stream.close()
            self.driver.free(self.base)
        except DeviceLost as error:
            log.info("the KV pool goes with this process: %s", error)


class CudaPages:
    """The pages of a pool, digested where they lie; see `OwnPages`."""

    def __init__(self, pool: CudaPool, page_bytes: int, num_pages: int) -> None:
        if (num_pages + 1) * page_bytes > pool.num_bytes:
            raise ValueError(
                f"{num_pages} pages of {page_bytes} bytes and the scratch page are more than the "
                f"pool's {pool.num_bytes} bytes"
            )
        self.driver = pool.driver
        self.base = pool.base
        self.page_bytes = page_bytes
        self._num_pages = num_pages
        self._stream = pool.stream

    @property
    def num_pages(self) -> int:
        """Usable ones: the scratch page comes behind them."""
        return self._num_pages

    @property
    def slice_pages(self) -> int:
        """Bounded, so that a slice is over soon."""
        return max(1, min(MAX_SLICE_PAGES, SLICE_BYTES // self.page_bytes))

    def feed(self, hasher: ChunkHasher, pages: tuple[int, ...]) -> None:
        """Feed digests of this node's pages, once they are computed."""
        if not all(0 <= page < self._num_pages for page in pages):
            raise IndexError(f"pages {pages} of a pool of {self._num_pages}")
        digests = self.digest(self._stream, pages)
        wait_idle(self._stream, since=time.perf_counter())
        hasher.update(digests.view(np.uint8))

    def digest(self, stream: CudaStream, pages: Sequence[int]) -> Digests:
        """Begin digests of this node's pages; the scratch page is one of them."""
        return stream.digest_pages(self.base, self._num_pages + 1, self.page_bytes, pages)

    def settle(self) -> None:
        """The fence's second half: kernels of an ended process end with its context."""
        self.driver.synchronize()


def wait_idle(stream: CudaStream, *, since: float, patience_s: float = STUCK_S) -> bool:
    """Wait for work that was begun at `since` (`time.perf_counter`); False after `patience_s`.

    DeviceLost where it should have ended long ago.
    """
    began_at = time.perf_counter()
    while not stream.is_idle():
        now = time.perf_counter()
        if now - since > STUCK_S:
            raise DeviceLost(f"the GPU has not ended a slice of pages within {STUCK_S:g} s")
        if now - began_at > patience_s:
            return False
        time.sleep(POLL_S)
    return True
