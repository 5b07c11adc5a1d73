"""The node's one pool of KV pages as a tensor, over memory that the composition root may provide.

Pages `0 .. num_pages - 1` belong to the node's page ledger. One more page behind them is the
scratch page: padding rows write there and nowhere else, and no block table of a request names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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


AllocateBuffer = Callable[[int], WritableBuffer]


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
    """A pool of `num_pages` usable pages; `allocate(num_bytes)` provides host memory for it.

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
    flat = torch.frombuffer(buffer, dtype=dtype, count=(num_pages + 1) * layout.page_elements)
    return KVPool(layout, num_pages, flat.view(shape))
