"""Products shared by threads: the bits of one, however shares fall, whoever comes and goes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from kernels.cpu.matmul import PackedWeight, matmul, pack_weight
from kernels.cpu.team import NUM_SHARES, ProductTeam

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@contextmanager
def helped(team: ProductTeam, num_helpers: int) -> Iterator[list[threading.Thread]]:
    """Helpers that come again until the team is closed."""

    def help_on() -> None:
        while team.is_open:
            team.serve()

    team.open()
    threads = [threading.Thread(target=help_on) for _ in range(num_helpers)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        team.close()
        for thread in threads:
            thread.join(timeout=20)


def shared(team: ProductTeam, x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    out = torch.full((len(x), packed.num_outputs), torch.nan, dtype=x.dtype)
    team.product(x.data_ptr(), len(x), packed, out.data_ptr())
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_helpers", [0, 1, 2])
def test_every_product_has_the_bits_of_one_thread(dtype: torch.dtype, num_helpers: int) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [(1, 64, 640), (3, 96, 33), (12, 128, 257), (29, 64, 1024), (1, 64, 5)]
    cases = []
    for rows, depth, outputs in sizes:
        x = torch.randn(rows, depth, generator=generator).to(dtype)
        weight = torch.randn(outputs, depth, generator=generator).to(dtype)
        packed = pack_weight(weight, torch.randn(outputs, generator=generator).to(dtype))
        cases.append((x, packed, matmul(x, packed)))
    team = ProductTeam()
    with helped(team, num_helpers) as threads:
        for turn in range(300):
            x, packed, expected = cases[turn % len(cases)]
            assert torch.equal(shared(team, x, packed), expected)
    assert not any(thread.is_alive() for thread in threads)


def test_helpers_leave_when_it_is_closed_and_when_nothing_comes() -> None:
    team = ProductTeam()
    team.serve()  # nothing was ever asked
    packed = pack_weight(torch.zeros(64, 16))
    shared(team, torch.zeros(1, 16), packed)
    team.serve()  # it is closed
    team.open()
    team.serve()  # open, but nothing comes
    assert team.is_open
    team.close()


def test_a_leader_without_help_does_all_of_it() -> None:
    team = ProductTeam()
    weight = torch.from_numpy(np.random.default_rng(2).normal(size=(40, 24)))
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 24)))
    packed = pack_weight(weight)
    assert packed.panels.shape[0] < NUM_SHARES, "some shares are empty"
    assert torch.equal(shared(team, x, packed), matmul(x, packed))
