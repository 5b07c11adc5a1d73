"""Compiles the kernels for an H200 (sm_90), without a GPU, as their launchers would; a script.

    python tests/kernels/compile_sm90.py "bfloat16 128 16 4 None" "bfloat16 4096"

Each argument names one row of the matrix; without arguments it compiles the whole matrix. It calls
the launchers on small CPU tensors of real shapes, compiling where they would launch, and prints one
JSON line per kernel: registers, stack, shared memory, counts of local loads and stores (spills), of
128-bit copies and of tensor core products.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.decode_attention import decode_attention
from kernels.page_digest import page_digests
from kernels.pages import gather_pages, scatter_pages
from kernels.prefill_attention import prefill_attention
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write
from kernels.silu_and_mul import silu_and_mul

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
# dtype, head dim, page size, query heads per kv head, window
ATTENTION = [
    *itertools.product(("bfloat16", "float16"), (64, 128), (16, 64), (1, 4), (None, 4096)),
    ("float32", 128, 16, 4, None),
    ("bfloat16", 80, 16, 3, None),
]
WIDTHS = [("bfloat16", 4096), ("float16", 896), ("float32", 576)]


class Sm90Driver:
    """What the runtime asks of a driver before it launches."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def compile_instead_of_launching() -> list:
    """Makes every launch compile only; the returned list collects what was compiled."""
    compiled = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.append(kernel)
        return kernel

    JITFunction.run = compile_only
    triton.runtime.driver.set_active(Sm90Driver())
    return compiled


def attention_calls(
    dtype: torch.dtype, head_dim: int, page_size: int, group: int, window: int | None
) -> Iterator[Callable[[], object]]:
    """Calls of the launchers that know heads and pages: 2 kv heads, tables of 512 tokens."""
    num_heads, columns = 2 * group, 512 // page_size
    pool = torch.zeros(2, 2, 2, 2, page_size, head_dim, dtype=dtype)
    q = torch.zeros(4, num_heads, head_dim, dtype=dtype)
    qkv = torch.zeros(4, (num_heads + 4) * head_dim, dtype=dtype)
    norm = torch.zeros(head_dim, dtype=dtype)
    cos_sin = torch.zeros(8, head_dim)
    tables = torch.zeros(4, columns, dtype=torch.int32)
    integers = torch.zeros(4, dtype=torch.int32)
    starts = torch.zeros(5, dtype=torch.int32)
    write = (qkv, cos_sin, integers, pool, 1, integers, integers, num_heads)
    yield lambda: decode_attention(q, pool, 1, tables, integers, 0.1, window)
    yield lambda: decode_attention(q, pool, 1, tables[:, : columns // 2], integers, 0.1, window)
    yield lambda: prefill_attention(q, pool, 1, tables, starts, integers, 0.1, window)
    yield lambda: rope_write(*write)
    yield lambda: rope_write(*write, q_norm=norm, k_norm=norm)


def row_calls(dtype: torch.dtype, hidden: int) -> Iterator[Callable[[], object]]:
    """Calls of the launchers that depend on a width only."""
    x = torch.zeros(2, hidden, dtype=dtype)
    pool = torch.zeros(4, 2, 2, 2, 16, 128, dtype=dtype)
    page_ids = torch.zeros(2, dtype=torch.int32)
    staging = torch.zeros(2, pool[0].numel(), dtype=dtype)
    words = torch.zeros(4, 4096, dtype=torch.int32)
    yield lambda: rms_norm(x, x[0], 1e-5)
    yield lambda: rms_norm(x, x[0], 1e-5, x)
    yield lambda: silu_and_mul(x)
    yield lambda: gather_pages(pool, page_ids)
    yield lambda: scatter_pages(staging, pool, page_ids)
    yield lambda: page_digests(words, page_ids)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack, and counts of instructions, from the disassembly of one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.check_output([TOOLS / "cuobjdump", option, file.name], text=True)
            for option in ("-res-usage", "-sass")
        )
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "stack_bytes": int(re.findall(r"STACK:(\d+)", usage)[0]),
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "wide_async_copies": len(re.findall(r"\bLDGSTS\S*\.128\b|\bUTMALDG\b", sass)),
        "wide_accesses": len(re.findall(r"\b(?:LDG|STG)\S*\.128\b", sass)),
        "tensor_core_products": len(re.findall(r"\bHG?MMA\b", sass)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", nargs="*", help="rows of the matrix; all where none is given")
    parser.add_argument("--list", action="store_true", help="only name the rows")
    options = parser.parse_args()
    matrix: list[tuple[tuple, Callable]] = [(shape, attention_calls) for shape in ATTENTION]
    matrix += [(shape, row_calls) for shape in WIDTHS]
    rows = {" ".join(map(str, shape)): (shape, calls) for shape, calls in matrix}
    if options.list:
        print(*rows, sep="\n")
        return
    compiled = compile_instead_of_launching()
    for label in options.labels or rows:
        shape, calls = rows[label]
        for call in calls(getattr(torch, shape[0]), *shape[1:]):
            compiled.clear()
            call()
            for kernel in compiled:
                name = {"name": kernel.metadata.name.strip("_"), "label": label}
                shared = {"shared_bytes": kernel.metadata.shared}
                print(json.dumps(name | shared | resources(kernel.asm["cubin"])), flush=True)


if __name__ == "__main__":
    main()
