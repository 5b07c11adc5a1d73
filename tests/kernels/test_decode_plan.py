"""The work list of decode attention: the kernel equals its reference, and covers every key once."""

from itertools import pairwise

import pytest
import torch

from kernels.decode_plan import CHUNK, TILE, num_items, plan_decode, plan_items_reference

LENGTHS = [
    [1],
    [0, 5, 0],
    [256, 257, 0, 4000, 30, 64, 65],
    [3000] * 5,
    list(range(0, 900, 70)),
]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", [None, 1, 300])
@pytest.mark.parametrize("by_load", [False, True])
def test_the_plan_equals_its_reference(lengths, window, by_load, device):
    context_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    plan = plan_decode(
        context_lens, max(lengths), 4, 1, 16, window, by_load=by_load, min_chunk=TILE
    )
    # What a GPU's count of multiprocessors makes of it, and the interpreter's one.
    sms = torch.cuda.get_device_properties(0).multi_processor_count if device.type == "cuda" else 1
    target = 4 * sms if by_load else None
    rows = plan_items_reference(context_lens.cpu(), window, target, TILE)
    expected = [item for row in rows for item in row]
    assert len(expected) <= plan.items.shape[0]
    assert plan.items[: len(expected)].tolist() == [list(item) for item in expected]
    starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    assert plan.starts.tolist() == starts.tolist()


@pytest.mark.parametrize("target", [None, 1, 3, 17, 132])
def test_items_cover_every_key_once_and_fit_the_grid(target):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        shape = (int(torch.randint(1, 40, (1,), generator=generator)),)
        context_lens = torch.randint(0, 3000, shape, generator=generator)
        for window in (None, 1, 500):
            rows = plan_items_reference(context_lens, window, target)
            total = sum(map(len, rows))
            assert total <= num_items(len(rows), int(context_lens.max()), target)
            for row, length in zip(rows, context_lens.tolist(), strict=True):
                first = 0 if window is None else max(0, length - window)
                assert row[0][1] == first // TILE * TILE
                assert row[-1][2] == length
                assert all(one[2] == two[1] for one, two in pairwise(row))
                assert length == 0 or all(begin < end for _, begin, end, _ in row)
                if target is None:
                    assert all(begin % CHUNK == 0 for _, begin, _, _ in row[1:])
