"""The node's one pool of KV pages as a tensor, over memory that the composition root may provide.

Pages `0 .. num_pages - 1` belong to the node's page ledger. One more page behind them is the
scratch page: padding rows write there and nowhere else, and no block table of a request names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tandem.layout import KVLayout

TORCH_DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class WritableBuffer(Protocol):
    """Memory such as an mmap of a memfd: writable, at least as long as was asked for."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """The memory itself."""

    def __len__(self) -> int:
        """Bytes."""


class DeviceMemory(Protocol):
    """Memory of a CUDA device, as bytes."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Where it is, how long."""

    def __len__(self) -> int:
        """Bytes."""


AllocateBuffer = Callable[[int], WritableBuffer | DeviceMemory]


@dataclass(frozen=True, slots=True)
class KVPool:
    """`tensor` [num_pages + 1, layers, 2, kv_heads, page_size, head_dim]; the last is scratch."""

    layout: KVLayout
    num_pages: int
    tensor: torch.Tensor

    @property
    def scratch_page(self) -> int:
        """The page that padding rows write to."""
        return self.num_pages


def pool_bytes(layout: KVLayout, num_pages: int) -> int:
    """Bytes that `make_kv_pool` needs for `num_pages` usable pages: the scratch page is extra."""
    return (num_pages + 1) * layout.page_bytes


def make_kv_pool(
    layout: KVLayout,
    num_pages: int,
    device: torch.device,
    allocate: AllocateBuffer | None = None,
) -> KVPool:
    """A pool of `num_pages` usable pages; `allocate(num_bytes)` provides memory of `device` for it.

    Raises ValueError where the provided buffer is too short.
    """
    shape = layout.pool_shape(num_pages + 1)
    dtype = TORCH_DTYPES[layout.dtype]
    if allocate is None:
        return KVPool(layout, num_pages, torch.zeros(shape, dtype=dtype, device=device))
    needed = pool_bytes(layout, num_pages)
    buffer = allocate(needed)
    if len(buffer) < needed:
        raise ValueError(
            f"the KV buffer has {len(buffer)} bytes, but {num_pages} pages and the scratch page "
            f"need {needed}: allocate pool_bytes(layout, num_pages)"
        )
    return KVPool(layout, num_pages, _as_bytes(buffer, device)[:needed].view(dtype).view(shape))


def _as_bytes(buffer: WritableBuffer | DeviceMemory, device: torch.device) -> torch.Tensor:
    """The very memory as a tensor: what others write into it must be seen here."""
    interface = getattr(buffer, "__cuda_array_interface__", None)
    if interface is None:
        return torch.frombuffer(buffer, dtype=torch.uint8)
    flat = torch.as_tensor(buffer, device=device)
    if flat.data_ptr() != interface["data"][0]:
        raise ValueError(f"the KV memory lies on {flat.device}, the model on {device}")
    return flat
