"""A simulated node shows a policy what a real one shows it, and gets the same plans, to the end."""

import pytest
from msgspec import structs

from loadgen.traces import Trace, TraceRequest
from node.core import FromPeer
from scheduling.batch.catalogue import make_batch_policy
from scheduling.views import BatchPolicy, NodeView, SequenceView, Services, StepPlan
from simulator.performance import scenario as scenarios
from simulator.performance.profiles import Regime
from tandem.frames import TokenIds
from tandem.messages.common import SlaTargets
from tandem.messages.serving import Decode, RequestSpec
from tandem.sampling import SamplingParams
from tests.node.whole_node import VOCAB, Node
from tests.performance.conftest import make_profile, make_scenario

GATEWAY = b"gateway/g/1"
STEP_S = 1e-3
NUM_PAGES = 40
LENGTHS = [(90, 9), (16, 40), (17, 3), (5, 30), (33, 20), (64, 2), (1, 12), (40, 25)]


class Recorder:
    """A policy that remembers what it saw and said."""

    def __init__(self, inner: BatchPolicy) -> None:
        self._inner = inner
        self.seen: list[tuple[NodeView, StepPlan]] = []

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        plan = self._inner.plan(view, services)
        self.seen.append((view, plan))
        return plan


def spec(n: int) -> RequestSpec:
    num_prompt, num_output = LENGTHS[n]
    return RequestSpec(
        request_id=n.to_bytes(16, "big"),
        attempt=1,
        prompt_ids=TokenIds([(n * 7919 + i * 31) % VOCAB for i in range(num_prompt)]),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=num_output, temperature=0.0),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=SlaTargets(sla_class="standard", ttft_ms=2000, tpot_ms=100),
        deadline_s=None,
        sequence=n + 1,
    )


def run_real(policy: Recorder) -> None:
    """The first request begins alone; the others come while its first step runs."""
    node = Node("n", NUM_PAGES, rows=4, batch_policy=policy)
    commands = [FromPeer(GATEWAY, Decode(spec=spec(n), prefill=None)) for n in range(len(LENGTHS))]
    now = 0.0
    node.core.handle(commands[0], now)
    late = commands[1:]
    while node.decode.num_requests:
        node.core.tick(now)
        step = node.core.plan(now)
        assert step is not None
        for command in late:
            node.core.handle(command, now)
        late = []
        now += STEP_S
        node.core.computed(step, node.runner.run(step.batch), now)


def run_simulated(policy: Recorder, monkeypatch) -> None:
    monkeypatch.setattr(scenarios, "make_batch_policy", lambda name, options: policy)
    monkeypatch.setattr(scenarios, "LOOKAHEAD_STEPS", 5)  # 200 tokens, as the real one here
    profile = make_profile(
        num_pages=NUM_PAGES,
        max_num_seqs=4,
        max_num_batched_tokens=40,
        control_s=0.0,
        regimes=(Regime(prefill_base_s=STEP_S, decode_base_s=STEP_S),),
    )
    requests = tuple(TraceRequest(0.0, *lengths) for lengths in LENGTHS)
    trace = Trace("equal", requests, has_times=True)
    scenarios.simulate(
        make_scenario(
            "1m", trace=trace, rate=None, process="trace", profile=profile, fast_forward=False
        )
    )


def comparable(view: NodeView) -> tuple[object, ...]:
    def plain(sequences: tuple[SequenceView, ...]) -> list[SequenceView]:
        return [
            structs.replace(
                s, prefix_id=None, last_token_at=None if s.last_token_at is None else 0.0
            )
            for s in sequences
        ]

    lists = [plain(s) for s in (view.prefill, view.waiting, view.running, view.swapped)]
    return (round(view.now, 6), view.num_free_pages, view.num_pages, view.max_num_seqs, *lists)


@pytest.mark.parametrize("name", ["fifo", "orca", "sarathi", "hrrn", "static"])
def test_real_and_simulated_nodes_show_and_plan_the_same(name, monkeypatch):
    policies = [Recorder(make_batch_policy(name)) for _ in range(2)]
    run_real(policies[0])
    run_simulated(policies[1], monkeypatch)
    real, ours = (policy.seen for policy in policies)
    assert len(real) == len(ours)
    for (real_view, real_plan), (our_view, our_plan) in zip(real, ours, strict=True):
        assert comparable(our_view) == comparable(real_view)
        assert our_plan == real_plan
