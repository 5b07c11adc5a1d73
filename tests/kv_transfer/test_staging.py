"""Memory of chunks: where it begins, what it holds, and when it is used again."""

import numpy as np
import pytest

from kv_transfer.gather import LINE_BYTES, aligned_bytes, gathered
from kv_transfer.staging import Staging


@pytest.mark.parametrize("num_bytes", [1, 100, 4096, 300_000])
def test_memory_begins_a_cache_line(num_bytes: int) -> None:
    memory = aligned_bytes(num_bytes)
    assert len(memory) == num_bytes
    assert memory.ctypes.data % LINE_BYTES == 0


@pytest.mark.parametrize("pages", [(2,), (5, 0, 3), (1, 1), ()])
def test_gathered_pages_are_those_pages_in_that_order(make_pages, pages: tuple[int, ...]) -> None:
    source = make_pages(6, 1000)
    assert np.array_equal(gathered(source, pages), source[list(pages)].reshape(-1))


def test_memory_is_used_again_once_it_came_back() -> None:
    staging = Staging(1000)
    first = staging.take(1000)
    second = staging.take(1000)
    assert not np.shares_memory(first.chunk, second.chunk)
    staging.give_back(first)
    assert staging.take(1000) is first
    assert staging.take(1000) is not second


def test_memory_of_another_size_is_not_kept() -> None:
    staging = Staging(1000)
    short = staging.take(999)
    staging.give_back(short)
    assert len(staging.take(1000).chunk) == 1000
    assert staging.take(999) is not short


def test_the_frame_sends_what_the_memory_holds() -> None:
    staged = Staging(8).take(8)
    for value in (3, 4):
        staged.chunk[:] = value
        assert staged.frame.buffer.tobytes() == bytes([value]) * 8


@pytest.mark.parametrize("pages", [(6,), (0, -1), (2, 7, 1)])
def test_a_page_beyond_the_source_is_an_error(make_pages, pages: tuple[int, ...]) -> None:
    with pytest.raises(IndexError, match="of 6"):
        gathered(make_pages(6, 10), pages)
