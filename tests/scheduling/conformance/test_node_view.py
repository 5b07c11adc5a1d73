"""A real node shows a policy what the world of these tests shows it, and so does what it says.

The policies of a node and of any simulator are the same objects; this holds their views together.
"""

import pytest
from msgspec import structs

from node.core import FromPeer
from scheduling.batch.catalogue import make_batch_policy
from scheduling.costs import UNKNOWN_COSTS
from scheduling.views import BatchPolicy, NodeView, SequenceView, Services, StepPlan
from tandem.frames import TokenIds
from tandem.messages.common import SlaTargets
from tandem.messages.serving import Decode, RequestSpec
from tandem.sampling import SamplingParams
from tests.node.whole_node import VOCAB, Node
from tests.scheduling.conformance.traces import predict
from tests.scheduling.conformance.world import Arrival, Shape, World

GATEWAY = b"gateway/g/1"
STEP_S = UNKNOWN_COSTS.step_s
NUM_PAGES = 40
# All here at the start: more prompts than the look-ahead and more rows than there are.
ARRIVALS = [
    Arrival(
        at=0.0,
        num_prompt=num_prompt,
        num_answer=num_answer,
        max_answer=num_answer,
        priority=n % 3 == 0,
        tenant="ab"[n % 2],
        ttft_s=0.5,
        tpot_s=0.05,
        prediction=predict(num_answer),
    )
    for n, (num_prompt, num_answer) in enumerate(
        [(90, 9), (16, 40), (17, 3), (5, 30), (33, 20), (64, 2), (1, 12), (40, 25)]
    )
]


class Recorder:
    """A policy that remembers what it saw and said."""

    def __init__(self, inner: BatchPolicy) -> None:
        self._inner = inner
        self.seen: list[tuple[NodeView, StepPlan]] = []

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        plan = self._inner.plan(view, services)
        self.seen.append((view, plan))
        return plan


def spec(n: int, arrival: Arrival) -> RequestSpec:
    return RequestSpec(
        request_id=n.to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds([(n * 7919 + i * 31) % VOCAB for i in range(arrival.num_prompt)]),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=arrival.max_answer, temperature=0.0),
        seed=1,
        choice=0,
        tenant=arrival.tenant,
        priority=arrival.priority,
        targets=SlaTargets(sla_class="standard", ttft_ms=500, tpot_ms=50),
        deadline_s=None,
        sequence=n,
        prediction=arrival.prediction,
    )


def run_node(policy: Recorder) -> None:
    node = Node("n", NUM_PAGES, rows=4, batch_policy=policy)
    now = 0.0
    for n, arrival in enumerate(ARRIVALS):
        node.core.handle(FromPeer(GATEWAY, Decode(spec=spec(n, arrival), prefill=None)), now)
    while node.decode.num_requests:
        node.core.tick(now)
        step = node.core.plan(now)
        assert step is not None
        now += STEP_S
        node.core.computed(step, node.runner.run(step.batch), now)
    assert node.core.num_illegal_plans == 0


def comparable(view: NodeView) -> tuple[object, ...]:
    def plain(sequences: tuple[SequenceView, ...]) -> list[SequenceView]:
        return [structs.replace(s, prefix_id=None) for s in sequences]

    lists = [plain(s) for s in (view.prefill, view.waiting, view.running, view.swapped)]
    return (round(view.now, 6), view.num_free_pages, view.num_pages, view.max_num_seqs, *lists)


@pytest.mark.parametrize("name", ["fifo", "orca", "sarathi", "srpt", "ltr", "priority", "static"])
def test_node_and_world_show_and_plan_the_same(name: str) -> None:
    shape = Shape(num_pages=NUM_PAGES, max_num_seqs=4, max_num_batched_tokens=40)
    real, ours = (Recorder(make_batch_policy(name)) for _ in range(2))
    run_node(real)
    World(ours, ARRIVALS, shape, UNKNOWN_COSTS).run()
    assert len(real.seen) == len(ours.seen)
    for (real_view, real_plan), (our_view, our_plan) in zip(real.seen, ours.seen, strict=True):
        assert comparable(real_view) == comparable(our_view)
        assert real_plan == our_plan
