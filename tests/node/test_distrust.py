"""What was filled for a request that failed in the model is no prefix for its retry."""

from types import SimpleNamespace
from typing import Any

import pytest

from node.runner import Sampled, StepBatch, StepResult
from tests.node.node_world import expected, stream


class Breaking:
    """A runner whose draws fail from the `num_draws`th on, until `heal`."""

    def __init__(self, node: Any, num_draws: int) -> None:
        self._node, self._real = node, node.runner
        self._num_left = num_draws
        node.runner = self

    def run(self, batch: StepBatch) -> StepResult:
        sampled = list(self._real.run(batch).sampled)
        for i, draw in enumerate(sampled):
            if draw is not None:
                self._num_left -= 1
                if self._num_left <= 0:
                    sampled[i] = Sampled(0, error="the logits are not finite")
        return StepResult(tuple(sampled))

    def heal(self) -> None:
        self._node.runner = self._real


@pytest.mark.parametrize(("name", "num_draws"), [("p", 1), ("d", 1), ("d", 20)])
def test_a_retry_computes_it_all_again(pair: SimpleNamespace, name: str, num_draws: int) -> None:
    """Chunked prompts fill pages in steps before the one that shows the failure."""
    world = pair.World()
    node = world.node(name)
    runner = Breaking(node, num_draws)
    failed = world.submit(1, 60, 40)
    world.run()
    assert world.endings[failed] == "failed" and "not finite" in world.reasons[failed]
    assert len(node.state.index) == 0
    runner.heal()
    again = world.submit(2, 60, 40, same_prompt_as=1)
    world.run()
    assert stream(world, again) == list(expected(1, 60, 40))
    world.assert_no_leak()


def test_a_local_request_leaves_nothing_either(pair: SimpleNamespace) -> None:
    world = pair.World()
    Breaking(world.d, 1)
    failed = world.submit(1, 60, 40, local=True)
    world.run()
    assert world.endings[failed] == "failed"
    assert len(world.d.state.index) == 0
    world.assert_no_leak()


@pytest.mark.parametrize("local", [True, False])
def test_the_prefix_of_requests_before_it_stays(pair: SimpleNamespace, local: bool) -> None:
    world = pair.World()
    first = world.submit(1, 60, 4, local=local)
    world.run()
    num_before = len(world.d.state.index)
    assert num_before and world.endings[first] == "length"
    Breaking(world.d, 3)
    failed = world.submit(2, 60, 40, same_prompt_as=1, local=local)
    world.run()
    assert world.endings[failed] == "failed"
    assert len(world.d.state.index) == num_before
    world.assert_no_leak()
