"""Pools of random keys and values behind random pages, as large as the device allows."""

from dataclasses import dataclass

import torch

from benchmarks.gpu_all.setting import Setting


@dataclass(frozen=True, slots=True)
class Paged:
    """`num_rows` sequences of `context` tokens each, in pages of all layers in random order."""

    pool: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor

    @property
    def num_layers(self) -> int:
        """Of the pool: what calls rotate over."""
        return self.pool.shape[1]


def make_paged(
    setting: Setting, num_rows: int, context: int, num_layers: int | None = None, spare: int = 0
) -> Paged:
    """All layers of the model, or as many as fit half of the free memory.

    spare: more tokens that the tables have room for.
    """
    shape, page_size = setting.shape, setting.page_size
    columns = -(-(context + spare) // page_size)
    row_bytes = columns * page_size * shape.kv_row * setting.dtype.itemsize
    fits = setting.free_bytes() // 2 // (num_rows * row_bytes)
    layers = num_layers or max(1, min(shape.num_layers, fits))
    sizes = (num_rows * columns, layers, 2, shape.num_kv_heads, page_size, shape.head_dim)
    pool = torch.empty(sizes, dtype=setting.dtype, device=setting.device)
    for part in pool.split(max(1, (1 << 30) // pool[0].numel())):
        part.normal_()
    order = torch.randperm(num_rows * columns, device=setting.device, dtype=torch.int32)
    lengths = torch.full((num_rows,), context, dtype=torch.int32, device=setting.device)
    return Paged(pool, order.view(num_rows, columns), lengths)
