"""Measures what this machine's memory and arithmetic do at best; prints one JSON line.

A plain read: the sum of 1 GiB of float32, far more than any cache. Products: 2048^3.
"""

import functools
import json
import sys
import time
from collections.abc import Callable

import torch

READ_BYTES = 1 << 30
SIZE = 2048
NUM_REPEATS = 7


def _best_s(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(NUM_REPEATS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def main(num_threads: int) -> None:
    """Print GB/s and GFLOP/s."""
    torch.set_num_threads(num_threads)
    values = torch.ones(READ_BYTES // 4)
    read_gb_per_s = READ_BYTES / _best_s(values.sum) / 1e9
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
        out = torch.empty(SIZE, SIZE, dtype=dtype)
        seconds = _best_s(functools.partial(torch.mm, left, right, out=out))
        rates[str(dtype).removeprefix("torch.")] = 2 * SIZE**3 / seconds / 1e9
    print(json.dumps({"read_gb_per_s": read_gb_per_s, "gflop_per_s": rates}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
