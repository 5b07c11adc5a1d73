"""Compiles the kernels for an H200 (sm_90), without a GPU, as their launchers would; a script.

    python tests/kernels/compile_sm90.py "bfloat16 128 16 4 None" "bfloat16 4096"

Each argument names one row of the matrix; without arguments it compiles the whole matrix. It calls
the launchers on small CPU tensors of real shapes, compiling where they would launch, and prints one
JSON line per kernel: registers, stack, shared memory, counts of local loads and stores (spills), of
128-bit copies and of tensor core products.
"""

import argparse
import dataclasses
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.argmax import argmax_rows
from kernels.decode_attention import HALF_TUNING as DECODE_TUNING
from kernels.decode_attention import decode_attention
from kernels.decode_plan import plan_decode
from kernels.decode_rows import NUM_COLUMNS, advance_rows, begin_rows
from kernels.gumbel_argmax import gumbel_argmax
from kernels.page_digest import page_digests
from kernels.pages import gather_pages, scatter_pages
from kernels.prefill_attention import HALF_TUNING as PREFILL_TUNING
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
STAGES = [("bfloat16", "stages", 16), ("float16", "stages", 64)]


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
    half = tables[:, : columns // 2]
    write = (qkv, cos_sin, integers, pool, 1, integers, integers, num_heads)
    chunk = (q, pool, 1, tables, starts, integers, 0.1, window)
    yield lambda: decode_attention(q, pool, 1, tables, integers, 0.1, window)
    yield lambda: decode_attention(q, pool, 1, half, integers, 0.1, window, by_load=True)
    yield lambda: prefill_attention(*chunk)
    yield lambda: rope_write(*write)
    yield lambda: rope_write(*write, q_norm=norm, k_norm=norm)


def stages_calls(dtype: torch.dtype, page_size: int) -> Iterator[Callable[[], object]]:
    """Attention of 128 dims, group 4, with 2 and 4 stages: shared memory must grow."""
    pool = torch.zeros(2, 2, 2, 2, page_size, 128, dtype=dtype)
    q = torch.zeros(4, 8, 128, dtype=dtype)
    tables = torch.zeros(4, 512 // page_size, dtype=torch.int32)
    integers, starts = torch.zeros(4, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    plan = plan_decode(integers, 512, 8, 2, 128, by_load=True)
    shared = (pool, 1, tables)
    for count in (2, 4):
        decode, prefill = (
            dataclasses.replace(tuning, num_stages=count)
            for tuning in (DECODE_TUNING, PREFILL_TUNING)
        )
        yield partial(decode_attention, q, *shared, integers, 0.1, plan=plan, tuning=decode)
        yield partial(prefill_attention, q, *shared, starts, integers, 0.1, tuning=prefill)


def row_calls(dtype: torch.dtype, hidden: int) -> Iterator[Callable[[], object]]:
    """Calls of the launchers that depend on a width only."""
    x = torch.zeros(2, hidden, dtype=dtype)
    pool = torch.zeros(4, 2, 2, 2, 16, 128, dtype=dtype)
    page_ids = torch.zeros(2, dtype=torch.int32)
    staging = torch.zeros(2, pool[0].numel(), dtype=dtype)
    part = torch.zeros(2, pool[0, 0, :, 0].numel(), dtype=dtype)
    words = torch.zeros(4, 4096, dtype=torch.int32)
    state = torch.zeros(2, NUM_COLUMNS, dtype=torch.int64)
    tokens, tables = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 8, dtype=torch.int32)
    yield lambda: rms_norm(x, x[0], 1e-5)
    yield lambda: rms_norm(x, x[0], 1e-5, x)
    yield lambda: silu_and_mul(x)
    yield lambda: gather_pages(pool, page_ids)
    yield lambda: gather_pages(pool, page_ids, (1, 2), (1, 2))
    yield lambda: scatter_pages(staging, pool, page_ids)
    yield lambda: scatter_pages(part, pool, page_ids, (1, 2), (1, 2))
    yield lambda: page_digests(words, page_ids)
    yield lambda: argmax_rows(x)
    yield lambda: begin_rows(state, tables, 16)
    yield lambda: advance_rows(state, state[:, :2].contiguous(), tokens, tokens.float())
    yield lambda: gumbel_argmax(x, tokens.float(), tokens.double(), tokens, tokens, tokens)


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
    matrix += [(shape, stages_calls) for shape in STAGES]
    rows = {" ".join(map(str, shape)): (shape, calls) for shape, calls in matrix}
    if options.list:
        print(*rows, sep="\n")
        return
    compiled = compile_instead_of_launching()
    for label in options.labels or rows:
        shape, calls = rows[label]
        arguments = [value for value in shape[1:] if value != "stages"]
        for call in calls(getattr(torch, shape[0]), *arguments):
            compiled.clear()
            call()
            for kernel in compiled:
                name = {"name": kernel.metadata.name.strip("_"), "label": label}
                shared = {"shared_bytes": kernel.metadata.shared}
                print(json.dumps(name | shared | resources(kernel.asm["cubin"])), flush=True)


if __name__ == "__main__":
    main()
