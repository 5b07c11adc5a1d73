"""Paged attention in numba: equal to the reference, and bit-for-bit the same per row."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from numba import njit, types
from numba.extending import intrinsic

from kernels.cpu import simd
from kernels.cpu.arrays import array_of
from kernels.cpu.attention import BLOCK_KEYS, BLOCK_ROWS, paged_attention
from kernels.cpu.host import HAS_BF16_DOT
from kernels.cpu.simd import (
    F32,
    I32,
    I64,
    Intrinsic,
    at,
    constant,
    load_bits,
    loop,
    multiply_add,
    store,
    vector,
)
from kernels.prefill_attention import prefill_attention_reference

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 1e-2}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LAYER = 1


@dataclass(frozen=True)
class Case:
    """Rows of several sequences over scattered pages; slots of no sequence hold NaN."""

    q: torch.Tensor
    pool: torch.Tensor
    tables: torch.Tensor
    starts: torch.Tensor
    positions: torch.Tensor

    def run(self, window: int | None) -> torch.Tensor:
        return paged_attention(
            self.q, self.pool, LAYER, self.tables, self.starts, self.positions, 0.3, window
        )

    def row(self, row: int, window: int | None) -> torch.Tensor:
        """The same row as a batch of its own."""
        sequence = int(torch.searchsorted(self.starts, row, right=True)) - 1
        return paged_attention(
            self.q[row : row + 1],
            self.pool,
            LAYER,
            self.tables[sequence : sequence + 1],
            torch.tensor([0, 1], dtype=torch.int32),
            self.positions[row : row + 1],
            0.3,
            window,
        )[0]


def make_case(
    spans: list[tuple[int, int]], heads: tuple[int, int, int], page_size: int, dtype: torch.dtype
) -> Case:
    """Sequences that compute positions start .. end - 1 for each (start, end)."""
    torch.manual_seed(0)
    num_heads, num_kv_heads, head_dim = heads
    counts = [end - start for start, end in spans]
    num_pages = [-(-end // page_size) for _, end in spans]
    pool = torch.full((sum(num_pages) + 1, 2, 2, num_kv_heads, page_size, head_dim), float("nan"))
    order = torch.randperm(sum(num_pages)).to(torch.int32)
    tables = torch.full((len(spans), max(num_pages)), 1 << 20, dtype=torch.int32)
    for row, own in enumerate(order.split(num_pages)):
        tables[row, : len(own)] = own
        for index, page in enumerate(own.tolist()):
            used = min(page_size, spans[row][1] - index * page_size)
            pool[page, LAYER, :, :, :used] = torch.randn(2, num_kv_heads, used, head_dim)
    return Case(
        q=torch.randn(sum(counts), num_heads, head_dim).to(dtype),
        pool=pool.to(dtype),
        tables=tables,
        starts=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
        positions=torch.cat([torch.arange(*span, dtype=torch.int32) for span in spans]),
    )


SPANS = [(0, 10), (5, 6), (1, 1), (0, BLOCK_ROWS * 2 + 5), (33, 38), (BLOCK_KEYS * 2 - 1, 130)]
HEADS = [(8, 2, 32), (4, 4, 64), (3, 1, 24), (4, 2, 128), (2, 2, 8)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 20, 70])
@pytest.mark.parametrize(("heads", "page_size"), [*zip(HEADS, (16, 8, 12, 4, 80), strict=True)])
def test_attention_equals_the_reference_and_each_row_alone(
    dtype: torch.dtype, window: int | None, heads: tuple[int, int, int], page_size: int
) -> None:
    case = make_case(SPANS, heads, page_size, dtype)
    out = case.run(window)
    clean = case.pool.nan_to_num(0.0)
    expected = prefill_attention_reference(
        case.q, clean, LAYER, case.tables, case.starts, case.positions, 0.3, window
    )
    torch.testing.assert_close(out, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for row in range(len(case.q)):
        assert torch.equal(case.row(row, window), out[row]), row


@pytest.mark.parametrize("window", [None, 50])
def test_chunks_of_a_prompt_have_the_bits_of_the_whole(window: int | None) -> None:
    case = make_case([(0, 200)], (4, 2, 32), 16, torch.float32)
    whole = case.run(window)
    for borders in ([0, 1, 77, 200], [0, 64, 128, 200], [0, 63, 65, 129, 200]):
        parts = [
            paged_attention(
                case.q[first:last],
                case.pool,
                LAYER,
                case.tables,
                torch.tensor([0, last - first], dtype=torch.int32),
                case.positions[first:last],
                0.3,
                window,
            )
            for first, last in pairwise(borders)
        ]
        assert torch.equal(torch.cat(parts), whole), borders


def test_scores_far_from_zero_neither_overflow_nor_vanish() -> None:
    case = make_case([(0, 90)], (2, 1, 16), 16, torch.float32)
    loud = Case(case.q * 1e3, case.pool, case.tables, case.starts, case.positions)
    assert loud.run(None).isfinite().all()


def pair_chain(lanes: int) -> Intrinsic:
    """An intrinsic: `lanes` chains over words of bfloat16, compiled when it is called."""

    @intrinsic
    def chain(typing_context, x, y, out, depth):
        def codegen(context, builder, signature, args):
            first, second, target = (
                at(context, builder, kind, array, I64(0))
                for kind, array in zip((x, y, out), args[:3], strict=True)
            )

            def step(k, sums):
                place = [builder.mul(k, I64(2 * lanes))]
                one, other = (
                    load_bits(builder, builder.gep(row, place), I32, lanes)
                    for row in (first, second)
                )
                return [multiply_add(builder, one, other, sums[0])]

            zero = constant(vector(F32, lanes), 0.0)
            (total,) = loop(builder, args[3], 1, [zero], step)
            store(builder, total, target)
            return context.get_dummy_value()

        return types.void(x, y, out, types.intp), codegen

    return chain


@pytest.mark.parametrize("lanes", [8, 16])
def test_words_have_the_same_bits_where_the_host_has_no_pair_dot(
    lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, y = (array_of(torch.randn(64 * 2 * lanes).bfloat16()) for _ in range(2))
    found = []
    for has_dot in (HAS_BF16_DOT, False):
        monkeypatch.setattr(simd, "HAS_BF16_DOT", has_dot)
        chain, out = pair_chain(lanes), np.empty(lanes, np.float32)
        njit(lambda x, y, out, depth, chain=chain: chain(x, y, out, depth))(x, y, out, 64)
        found.append(out.tobytes())
    assert found[0] == found[1]
