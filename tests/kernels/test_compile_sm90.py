"""The kernels compile for sm_90 without spilling, and move their bytes 16 at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Some 10 s of compiling each on a machine that has nothing else to do.
pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).parents[2]
H200_SHARED_BYTES = 227 * 1024


@pytest.fixture
def compile_row():
    """Compiles one row of the matrix in a process without the interpreter."""

    def run(label: str) -> dict[str, list[dict[str, int]]]:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "tests/kernels/compile_sm90.py"), label]
        lines = subprocess.check_output(command, env=environment, text=True).splitlines()
        by_name: dict[str, list[dict[str, int]]] = {}
        for line in map(json.loads, lines):
            by_name.setdefault(line["name"], []).append(line)
        return by_name

    return run


def assert_nothing_spills(kernels: list[dict[str, int]]) -> None:
    for kernel in kernels:
        assert kernel["stack_bytes"] == 0, kernel
        assert kernel["local_accesses"] == 0, kernel
        assert kernel["shared_bytes"] <= H200_SHARED_BYTES, kernel


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "tile_bytes"), [("bfloat16 128 16 4 None", 16384), ("float16 64 64 1 4096", 8192)]
)
def test_attention_and_rope(label, tile_bytes, compile_row):
    kernels = compile_row(label)
    assert set(kernels) == {
        "plan_kernel",
        "decode_kernel",
        "prefill_kernel",
        "rope_write_kernel",
    }
    assert_nothing_spills([kernel for group in kernels.values() for kernel in group])
    for kernel in kernels["decode_kernel"] + kernels["prefill_kernel"]:
        assert kernel["wide_async_copies"] > 0, kernel
        assert kernel["tensor_core_products"] > 0, kernel
        # Two tiles of keys and two of values in flight: one means that the page index is not ahead.
        assert kernel["shared_bytes"] >= 4 * tile_bytes, kernel


@pytest.mark.slow
def test_row_kernels(compile_row):
    kernels = compile_row("bfloat16 4096")
    assert set(kernels) == {
        "rms_norm_kernel",
        "silu_and_mul_kernel",
        "copy_pages_kernel",
        "page_digest_kernel",
        "argmax_blocks_kernel",
        "argmax_rows_kernel",
        "begin_rows_kernel",
        "advance_rows_kernel",
        "gumbel_blocks_kernel",
        "gumbel_rows_kernel",
    }
    assert_nothing_spills([kernel for group in kernels.values() for kernel in group])
    for name in ("argmax_rows", "begin_rows", "advance_rows", "gumbel_rows"):  # a few words
        del kernels[f"{name}_kernel"]
    del kernels["gumbel_blocks_kernel"]  # 150 operations a token: its loads are nothing beside them
    assert all(kernel["wide_accesses"] > 0 for group in kernels.values() for kernel in group)


@pytest.mark.slow
def test_each_stage_is_a_tile_in_flight(compile_row):
    """64 keys and values of 128 dims are 32 KiB; a page index read too late would allow one."""
    kernels = compile_row("bfloat16 stages 16")
    assert_nothing_spills([kernel for group in kernels.values() for kernel in group])
    for name in ("decode_kernel", "prefill_kernel"):
        two, four = (kernel["shared_bytes"] for kernel in kernels[name])
        assert four - two >= 2 * (32 << 10), kernels[name]
