"""What a part is told: the device, the sizes, and the ceilings that were measured before it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-shaped decoder."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int

    @property
    def layer_weights(self) -> int:
        """Numbers in the products of one layer."""
        heads = self.num_heads + self.num_kv_heads
        return self.hidden * (2 * heads * self.head_dim + 3 * self.intermediate)

    @property
    def weights(self) -> int:
        """Numbers that a step reads: all products and the head; the embedding is a gather."""
        return self.num_layers * self.layer_weights + self.hidden * self.vocab

    @property
    def kv_row(self) -> int:
        """Numbers that one token keeps in one layer."""
        return 2 * self.num_kv_heads * self.head_dim


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128256)
TINY = Shape(2, 64, 96, 4, 2, 16, 300)


@dataclass(frozen=True, slots=True)
class Setting:
    """device "cpu" is a dry run under Triton's interpreter: tiny sizes, times that mean nothing."""

    device: torch.device
    dtype: torch.dtype
    shape: Shape
    page_size: int = 16
    copy_gb_s: float = 4300.0  # bytes read plus bytes written
    matmul_tflop_s: float = 790.0

    @property
    def is_dry(self) -> bool:
        """Whether only the code is tried."""
        return self.device.type != "cuda"

    def pick(self, real: T, dry: T) -> T:
        """The first on a GPU, the second in a dry run."""
        return dry if self.is_dry else real

    def free_bytes(self) -> int:
        """Of the device's memory."""
        return 1 << 30 if self.is_dry else torch.cuda.mem_get_info(self.device)[0]


@dataclass(frozen=True, slots=True)
class Table:
    """What a part found out: rows of cells for people, `figures` for programs."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class LeftOut(Exception):
    """A part that cannot run here; the text says what it lacks."""


def make_setting(*, is_dry: bool, ceilings: Mapping[str, float]) -> Setting:
    """A dry run computes in fp32: the interpreter is wrong in bfloat16."""
    if is_dry:
        assert os.environ.get("TRITON_INTERPRET") == "1"
        return Setting(torch.device("cpu"), torch.float32, TINY, 16, **ceilings)
    return Setting(torch.device("cuda", 0), torch.bfloat16, LLAMA_8B, 16, **ceilings)
