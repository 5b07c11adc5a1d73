"""Requests of three tenants through two real engines, with pools that are too small for them."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.runner import TorchRunner
from tandem.sampling import SamplingParams
from tests.node.node_world import World
from tests.node.privacy import PoisoningLedger, cache_hits, drive, make_asks, problems
from tests.node.whole_node import Memory, Node

NUM_REQUESTS = 240
VOCAB = 4096


def canary_of(owner: int) -> list[int]:
    return random.Random(owner).sample(range(64, VOCAB), 16)


def memory(runner: TorchRunner, num_pages: int) -> Memory:
    """The first pages of a runner's pool, for a ledger that poisons what is freed."""
    pages = runner.pool.tensor.view(torch.uint8).numpy().reshape(runner.num_pages + 1, -1)
    pool = pages[:num_pages]
    assert np.shares_memory(pool, runner.pool.tensor.numpy())
    return Memory(runner.layout, pool, runner, PoisoningLedger(pool), VOCAB)


@pytest.mark.timeout(60)
def test_no_request_reads_what_is_anothers_on_real_engines(
    runner_of: Callable[..., TorchRunner], alone: Callable[..., list[int]], demo_model: Path
) -> None:
    """Every token is that of a process which computes one request at a time."""

    def answer(prompt: list[int], max_tokens: int) -> list[int]:
        return alone(single, prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens), ())

    single = runner_of(demo_model)
    asks = make_asks(NUM_REQUESTS, answer, canary_of=canary_of, max_prompt=80, max_new=8)

    def make_node(name: str, num_pages: int, **options: Any) -> Node:
        return Node(name, num_pages, make_memory=partial(memory, runner_of(demo_model)), **options)

    world = World(
        prefill_pages=20, decode_pages=24, copy_chance=0.5, loss=0.05, make_node=make_node
    )
    cancelled = drive(world, asks, num_in_flight=8)
    assert list(problems(world, asks, cancelled)) == []
    assert len(cancelled) == NUM_REQUESTS // 20
    world.assert_no_leak()
    hits = cache_hits(world, asks, cancelled)
    assert hits["other tenant"] == 0 and hits["other tenant, asked"] == NUM_REQUESTS // 10
    assert hits["same tenant"] > NUM_REQUESTS // 20
    for node in (world.p, world.d):
        assert isinstance(node.ledger, PoisoningLedger)
        assert node.ledger.num_poisoned > NUM_REQUESTS
