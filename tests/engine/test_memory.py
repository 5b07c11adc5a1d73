"""How many pages fit, and what is said where they do not."""

import pytest
import torch

from engine.kv_pool import make_kv_pool, pool_bytes
from engine.memory import MemoryBudget, available_bytes, plan_memory
from tandem.layout import KVLayout

LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, page_size=16, dtype="float32")
CPU = torch.device("cpu")
PAGE = LAYOUT.page_bytes


def plan(free_pages: int, share: float, num_pages: int | None, max_len: int) -> MemoryBudget:
    return plan_memory(LAYOUT, 1000, free_pages * PAGE, share, num_pages, max_len)


def test_pages_from_a_share_leave_room_for_the_scratch_page() -> None:
    assert plan(100, 0.5, None, 160) == MemoryBudget(1000, 50 * PAGE, 49, 49 * 16)


def test_what_steps_take_is_not_for_pages() -> None:
    budget = plan_memory(LAYOUT, 1000, 100 * PAGE, 0.5, None, 160, 20 * PAGE)
    assert (budget.num_pages, budget.step_bytes) == (39, 20 * PAGE)
    with pytest.raises(ValueError, match=r"are free beside the .* that steps take: lower"):
        plan_memory(LAYOUT, 1000, 100 * PAGE, 0.5, 90, 160, 20 * PAGE)


def test_pages_by_number() -> None:
    assert plan(100, 0.1, 60, 160).num_pages == 60


def test_more_pages_than_memory_are_refused() -> None:
    with pytest.raises(ValueError, match=r"100 KV pages need .* lower --num-pages"):
        plan(100, 0.5, 100, 160)


def test_pages_too_few_for_one_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 KV pages .* takes 10: raise --memory-share"):
        plan(100, 0.5, 9, 160)
    with pytest.raises(ValueError, match=r"0 KV pages"):
        plan(1, 0.01, None, 16)


def test_available_memory_is_looked_up() -> None:
    assert available_bytes(CPU) > 1 << 20


def test_a_pool_lies_in_the_buffer_that_it_is_given() -> None:
    buffers: list[bytearray] = []

    def allocate(num_bytes: int) -> memoryview:
        buffers.append(bytearray(num_bytes))
        return memoryview(buffers[0])

    pool = make_kv_pool(LAYOUT, 3, CPU, allocate)
    assert len(buffers[0]) == pool_bytes(LAYOUT, 3) == 4 * PAGE
    assert (pool.num_pages, pool.scratch_page) == (3, 3)
    assert pool.tensor.shape == LAYOUT.pool_shape(4)
    pool.tensor[1] = 1.0
    assert buffers[0][PAGE : PAGE + 4] == b"\x00\x00\x80\x3f"
    assert not any(buffers[0][:PAGE])


def test_a_buffer_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="pool_bytes"):
        make_kv_pool(LAYOUT, 3, CPU, lambda num_bytes: memoryview(bytearray(num_bytes - 1)))
