"""How many KV pages fit beside the weights, decided before anything is allocated.

All sizes in bytes. `plan_memory` is pure; `available_bytes` is the one function that looks.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from tandem.layout import KVLayout

MEMINFO = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What a node's memory goes to; `num_tokens` is what fits in the usable pages.

    step_bytes: what steps take beside weights and pages, as measured on a GPU; 0 where it was not.
    """

    weight_bytes: int
    kv_bytes: int
    num_pages: int
    num_tokens: int
    step_bytes: int = 0


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device` without swapping."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
            limit = _left_in_container()
            return free if limit is None else min(free, limit)
    raise ValueError(f"{MEMINFO} has no MemAvailable: give the number of KV pages by --num-pages")


def _left_in_container() -> int | None:
    """Bytes below the limit of this control group, file cache counted as free; None: no limit."""
    limit, stat = CONTROL_GROUP / "memory.max", CONTROL_GROUP / "memory.stat"
    if not limit.exists() or limit.read_text().strip() == "max":
        return None
    used = int((CONTROL_GROUP / "memory.current").read_text())
    numbers = dict(line.split() for line in stat.read_text().splitlines())
    return max(0, int(limit.read_text()) - used + int(numbers["inactive_file"]))


def plan_memory(
    layout: KVLayout,
    weight_bytes: int,
    free_bytes: int,
    memory_share: float,
    num_pages: int | None,
    max_model_len: int,
    step_bytes: int = 0,
) -> MemoryBudget:
    """Pages from `num_pages`, else from `memory_share` of what weights and steps leave free.

    One page more than usable is counted: the scratch page. ValueError where the memory cannot hold
    the pages, or the pages not one sequence of `max_model_len` tokens.
    """
    free_bytes -= step_bytes
    if num_pages is None:
        num_pages = int(free_bytes * memory_share) // layout.page_bytes - 1
    kv_bytes = (num_pages + 1) * layout.page_bytes
    if kv_bytes > free_bytes:
        raise ValueError(
            f"{num_pages} KV pages need {kv_bytes >> 20} MiB, but {free_bytes >> 20} MiB are free"
            f"{_besides(step_bytes)}: lower --num-pages or free memory"
        )
    needed = layout.num_pages_for(max_model_len)
    if num_pages < needed:
        raise ValueError(
            f"{max(num_pages, 0)} KV pages of {layout.page_size} tokens cannot hold one sequence "
            f"of {max_model_len} tokens, which takes {needed}: raise --memory-share or "
            "--num-pages, or lower --max-model-len"
        )
    return MemoryBudget(
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
        num_pages=num_pages,
        num_tokens=num_pages * layout.page_size,
        step_bytes=step_bytes,
    )


def _besides(step_bytes: int) -> str:
    return f" beside the {step_bytes >> 20} MiB that steps take" if step_bytes else ""
