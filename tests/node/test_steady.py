"""Steady steps, which no policy is asked for, are the steps that it would have planned."""

import random
from typing import Any

import numpy as np
import pytest

from node.core import Step
from node.growth import Overcommit, ReserveMode
from scheduling.batch.catalogue import BATCH_POLICIES, make_batch_policy
from tandem.messages.common import LengthPrediction
from tests.node.node_world import World
from tests.node.whole_node import Node

STEADY = sorted(name for name, entry in BATCH_POLICIES.items() if entry.is_steady)
RESERVES: tuple[ReserveMode, ...] = ("full", "predicted", "none")


class Recorded(Node):
    """A node that notes what it plans."""

    def __init__(self, name: str, num_pages: int, **options: Any) -> None:
        super().__init__(name, num_pages, **options)
        self.steps: list[tuple[object, ...]] = []
        self.num_asked = 0
        plan, ask = self.core.plan, self.core._policy.plan

        def noted(now: float) -> Step | None:
            step = plan(now)
            self.steps.append((now, self.core.wake_at, None if step is None else plain(step)))
            return step

        def asked(*args: Any) -> Any:
            self.num_asked += 1
            return ask(*args)

        self.core.plan = noted  # type: ignore[method-assign]
        self.core._policy.plan = asked  # type: ignore[method-assign, assignment]


def plain(step: Step) -> tuple[object, ...]:
    rows = [
        (s.token_ids.tolist(), s.start, s.block_table.tolist(), s.sample is not None)
        for s in step.batch.sequences
    ]
    outputs = [s.sample.output_ids.tolist() for s in step.batch.sequences if s.sample is not None]
    return step.plan, rows, outputs


def course(name: str, seed: int, *, is_steady: bool) -> tuple[World, Recorded]:
    """Requests that come, end and are cancelled, where pages may run out."""
    rng = random.Random(seed)
    reserve, num_kept = rng.choice(RESERVES), rng.choice((0, 1))

    def make(node: str, num_pages: int, **options: Any) -> Node:
        options |= {"overcommit": Overcommit(reserve, num_kept), "is_steady": is_steady}
        return Recorded(node, num_pages, **options | {"batch_policy": make_batch_policy(name)})

    world = World(decode_pages=rng.choice((14, 30, 60)), seed=seed, make_node=make)
    num_sent = 0

    def each_turn() -> None:
        nonlocal num_sent
        if num_sent < 14 and rng.random() < 0.12:
            num_sent += 1
            world.prediction = LengthPrediction(score=1.0, q50=9.0, q90=rng.choice((12.0, 50.0)))
            world.submit(num_sent, rng.randint(1, 60), rng.randint(1, 60), local=rng.random() < 0.4)
        elif num_sent and rng.random() < 0.01:
            world.cancel(rng.randint(1, num_sent).to_bytes(16, "big"))

    for _ in range(400):
        each_turn()
        world.turn()
    world.run()
    world.assert_no_leak()
    node = world.d
    assert isinstance(node, Recorded)
    return world, node


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("seed", range(6))
def test_steps_streams_and_pages_are_those_of_a_node_that_always_asks(name: str, seed: int) -> None:
    (ours, steady), (theirs, asking) = (course(name, seed, is_steady=s) for s in (True, False))
    assert steady.steps == asking.steps
    assert ours.tokens == theirs.tokens
    assert ours.endings == theirs.endings
    assert np.array_equal(steady.pool, asking.pool)
    assert steady.core.num_held == asking.core.num_held
    assert steady.num_asked < 0.6 * asking.num_asked
