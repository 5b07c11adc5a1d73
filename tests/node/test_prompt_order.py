"""Prompts in the prefill guest: the policy is asked seldom, obeyed, and may keep one back."""

from collections.abc import Sequence
from typing import Any

from node.core import FromPeer
from scheduling.prefill.catalogue import make_prefill_policy
from scheduling.prefill.fifo import FifoPrefill
from scheduling.views import PrefillPolicy, RequestKey, SequenceView, Services
from tandem.frames import TokenIds
from tandem.messages.common import NodeRef
from tandem.messages.serving import Prefill, RequestSpec
from tandem.sampling import SamplingParams
from tests.node.node_world import GATEWAY, TARGETS, World, prompt
from tests.node.whole_node import Node


class Counting(FifoPrefill):
    """FIFO that counts what it is asked."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        self.sizes.append(len(sequences))
        return super().order(sequences, now, services)


def prefill(n: int, num_tokens: int) -> FromPeer:
    spec = RequestSpec(
        request_id=n.to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds(prompt(n, num_tokens)),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=4, temperature=0.0),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=TARGETS,
        deadline_s=None,
        sequence=n,
    )
    owner = NodeRef(node_id="d", incarnation=1, epoch=1, control_address="tcp://x")
    return FromPeer(GATEWAY, Prefill(spec=spec, decode=owner))


def test_a_thousand_waiting_prompts_are_not_ordered_at_every_step() -> None:
    """0.2 ms a step; asked each time it was 10 ms, and 26 ms for HRRN."""
    policy = Counting()
    node = Node("p", 64, prefill_policy=policy)
    for n in range(1, 1001):
        node.core.handle(prefill(n, 60), 1.0)
    for step in range(100):
        now = 1.0 + step * 1e-3
        node.core.tick(now)
        node.core.plan(now)
    assert policy.sizes == [1000] * 5
    node.core.handle(prefill(2000, 60), 1.1)
    node.core.tick(1.1)
    assert policy.sizes == [1000] * 5 + [1001]


def started_after(policy: PrefillPolicy, lengths: list[int]) -> list[int]:
    """In which order prompts of these lengths, all there at once, get their first tokens."""

    def make(name: str, num_pages: int, **others: Any) -> Node:
        return Node(name, num_pages, prefill_policy=policy, **others)

    world = World(make_node=make)
    ids = [world.submit(n, num_tokens, 2) for n, num_tokens in enumerate(lengths, 1)]
    world.run()
    after_s = [world.prefill_reports[request_id].first_token_after_s for request_id in ids]
    return sorted(range(len(ids)), key=lambda i: after_s[i])


def test_the_policy_decides_who_runs() -> None:
    lengths = [200, 190, 30, 120, 60]
    assert started_after(make_prefill_policy("fifo"), lengths) == [0, 1, 2, 3, 4]
    assert started_after(make_prefill_policy("spf"), lengths) == [2, 4, 3, 1, 0]


def cached(policy: PrefillPolicy, num_prompts: int = 3) -> list[int]:
    """Cached tokens of prompts that begin with the same 150 tokens and come together."""

    def make(name: str, num_pages: int, **others: Any) -> Node:
        return Node(name, num_pages, prefill_policy=policy, **others)

    world = World(make_node=make, prefill_pages=128, decode_pages=128)
    ids = [
        world.submit(n, 0, 2, prompt_ids=[*prompt(7, 150), *prompt(100 + n, 20)])
        for n in range(1, num_prompts + 1)
    ]
    world.run()
    world.assert_no_leak()
    return sorted(world.prefill_reports[request_id].num_cached_tokens for request_id in ids)


def test_the_prefix_of_a_storm_is_computed_once() -> None:
    assert cached(make_prefill_policy("fifo")) == [0, 0, 144]
    assert cached(make_prefill_policy("fifo", {"shared_prefix_ms": "5000"})) == [0, 144, 144]
