"""Pools too small for their requests: preempted ones say what they say where there is room."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.runner import TorchRunner
from node.growth import Overcommit
from tandem.sampling import SamplingParams
from tests.node.node_world import World, stream
from tests.node.privacy import PoisoningLedger
from tests.node.whole_node import Memory, Node

NUM_NEW = 108
NUM_PROMPT = 20
SEED = 1
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.9, top_k=50, top_p=0.95, max_tokens=NUM_NEW, ignore_eos=True, seed=SEED
)
# Of three requests with 8 pages each at their end, the first is sure of them; the others have those
# of their prompts and none to grow into: whoever comes last gives way.
NUM_PAGES = 12
TINY = ("--num-pages", str(NUM_PAGES), "--max-model-len", "128", "--reserve", "none")


@pytest.fixture(scope="module")
def chosen(prompts: list[list[int]]) -> list[list[int]]:
    return [p[:NUM_PROMPT] for p in prompts if len(p) >= NUM_PROMPT][:3]


@pytest.fixture(scope="module")
def roomy(
    demo_model: Path,
    chosen: list[list[int]],
    alone: Callable[..., list[int]],
    runner_of: Callable[..., TorchRunner],
) -> list[list[list[int]]]:
    """Greedy and seeded answers of a process with room for all."""
    runner = runner_of(demo_model)
    return [[alone(runner, p, k, (), seed=SEED) for p in chosen] for k in (GREEDY, SEEDED)]


def memory(runner: TorchRunner, num_pages: int) -> Memory:
    """The first pages of a runner's pool, for a ledger that poisons what is freed."""
    pages = runner.pool.tensor.view(torch.uint8).numpy().reshape(runner.num_pages + 1, -1)
    pool = pages[:num_pages]
    assert np.shares_memory(pool, runner.pool.tensor.numpy())
    return Memory(runner.layout, pool, runner, PoisoningLedger(pool), 4096)


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_on_real_engines(
    runner_of: Callable[..., TorchRunner],
    demo_model: Path,
    chosen: list[list[int]],
    roomy: list[list[list[int]]],
    mode: Any,
) -> None:
    make_memory = partial(memory, runner_of(demo_model))

    def make_node(name: str, num_pages: int, **options: Any) -> Node:
        return Node(
            name,
            num_pages,
            make_memory=make_memory if name == "d" else partial(memory, runner_of(demo_model)),
            overcommit=Overcommit("none"),
            preemption=mode,
            **options,
        )

    world = World(prefill_pages=20, decode_pages=NUM_PAGES, make_node=make_node)
    for params, right, first in zip((GREEDY, SEEDED), roomy, (1, 11), strict=True):
        asked = [
            world.submit(n, NUM_PROMPT, NUM_NEW, prompt_ids=prompt, params=params)
            for n, prompt in enumerate(chosen, first)
        ]
        world.run()
        assert [stream(world, request_id) for request_id in asked] == right
    world.assert_no_leak()
    load = world.d.core.load(0.0)
    assert load.num_preempted > 0
    assert (load.num_wasted_tokens > 0) == (mode == "recompute")


@pytest.mark.timeout(60)
def test_in_a_deployment(
    deployer: Callable[..., Any],
    demo_model: Path,
    chosen: list[list[int]],
    roomy: list[list[list[int]]],
) -> None:
    """Who gives way, if anybody has to, depends on when prompts arrive; what they say does not."""
    with deployer(demo_model, node_args=[*TINY, "--preemption", "swap"]) as deployment:
        done = deployment.client.generate(chosen, params=SEEDED, progress=False)
        assert [list(output.token_ids) for output in done] == roomy[1]
