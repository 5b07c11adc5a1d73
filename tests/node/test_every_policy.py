"""Every batch and prefill policy on two whole nodes: streams stay right, all of it drains."""

from typing import Any

import pytest

from node.growth import Overcommit
from scheduling.batch.catalogue import BATCH_POLICIES, make_batch_policy
from scheduling.prefill.catalogue import PREFILL_POLICIES, make_prefill_policy
from tests.node.node_world import World, prompt, stream, tokens_after
from tests.node.whole_node import Node


def run(batch: str, prefill: str, **options: str) -> None:
    """Prompts through the prefill node and local ones, more than rows and pages hold at once."""

    def make(name: str, num_pages: int, **others: Any) -> Node:
        return Node(
            name,
            num_pages,
            rows=4,
            overcommit=Overcommit("none", 1),
            batch_policy=make_batch_policy(batch),
            prefill_policy=make_prefill_policy(prefill, options),
        )

    world = World(make_node=make, prefill_pages=24, decode_pages=24)
    shared = prompt(99, 70)
    ids = {}
    for n in range(1, 9):
        prompt_ids = shared if n % 3 == 0 else prompt(n, 15 + 7 * n)
        max_tokens = 3 + 5 * (n % 4)
        request_id = world.submit(n, 0, max_tokens, prompt_ids=prompt_ids, local=n % 4 == 0)
        ids[request_id] = (prompt_ids, max_tokens)
    world.run()
    for request_id, (prompt_ids, max_tokens) in ids.items():
        assert stream(world, request_id) == list(tokens_after(prompt_ids, max_tokens))
    assert world.p.core.num_illegal_plans + world.d.core.num_illegal_plans == 0
    world.assert_no_leak()


@pytest.mark.parametrize("name", sorted(BATCH_POLICIES))
def test_a_batch_policy_serves_a_pair_of_nodes_that_run_out_of_pages(name: str) -> None:
    run(name, "fifo")


@pytest.mark.parametrize("name", sorted(PREFILL_POLICIES))
def test_a_prefill_policy_serves_a_pair_of_nodes(name: str) -> None:
    run("fifo", name, guard_ms="50", shared_prefix_ms="200")
