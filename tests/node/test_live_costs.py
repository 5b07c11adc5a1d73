"""A node learns what its steps and transfers cost while it serves, and tells."""

from types import SimpleNamespace

import msgspec
import pytest

from node.live_costs import MAX_SENDING, LiveCosts
from scheduling.batch.catalogue import BATCH_POLICIES
from scheduling.costs import UNKNOWN_COSTS, StepShape, step_s
from tandem.messages.common import LengthPrediction, NodeCosts


def test_nodes_learn_what_steps_cost_and_tell(pair: SimpleNamespace) -> None:
    """In this world a step takes 1 ms per token."""
    world = pair.World()
    assert world.d.core.load(0).costs is None
    for n in range(40):
        world.submit(n, 20 + 7 * (n % 9), 30)
    tokens = []
    world.run(each_turn=lambda: tokens.append(world.d.core.load(0).num_decode_tokens))
    load = world.d.core.load(0)
    assert load.costs is not None and load.costs.num_steps > 50
    assert load.costs.error < 0.05
    shape = StepShape(num_decode_rows=6, num_decode_tokens=300)
    assert step_s(load.costs, shape) == pytest.approx(0.006, rel=0.1)
    assert load.busy_s > 0.001 * 40 * 25
    assert max(tokens) > 200
    assert load.num_decode_tokens == 0
    msgspec.msgpack.encode(load)
    costs = world.p.core.load(0).costs
    assert costs is not None
    assert step_s(costs, StepShape(40, 800.0)) == pytest.approx(0.04, rel=0.1)
    assert 0 < costs.transfer_s < 1  # a few turns of 50 ms, whatever the bytes


def test_policies_get_what_was_learned(pair: SimpleNamespace) -> None:
    world = pair.World()
    seen: set[NodeCosts] = set()
    policy = world.d.core._policy

    class Watching:
        def plan(self, view, services):
            seen.add(services.costs)
            return policy.plan(view, services)

    world.d.core._policy = Watching()
    for n in range(12):
        world.submit(n, 40, 30, local=True)
    world.run()
    assert UNKNOWN_COSTS in seen
    assert len(seen) > 4
    assert world.d.prefill.prompts._order.services.costs in seen | {world.d.state.costs.current}
    assert world.d.prefill.prompts._order.services.costs != UNKNOWN_COSTS


def test_transfers_that_never_end_are_forgotten() -> None:
    costs = LiveCosts()
    for n in range(MAX_SENDING + 5):
        costs.sending_began((n.to_bytes(16, "big"), 1), 100, 0.0)
    assert len(costs._sending) == MAX_SENDING
    costs.sending_ended((bytes(16), 1), 1.0, is_there=True)
    for n in range(5, MAX_SENDING + 5):
        costs.sending_ended((n.to_bytes(16, "big"), 1), 1.0, is_there=False)
    assert not costs._sending


ABSURD = (
    LengthPrediction(score=0.0, q50=0.0, q90=0.0),
    LengthPrediction(score=-1e300, q50=1e9, q90=1e9),
    LengthPrediction(score=1e300, q50=1e9, q90=0.0),
    LengthPrediction(score=0.0, q50=0.0, q90=1e9),
    None,
)
LENGTHS = [(5, 9), (33, 20), (64, 17), (100, 3), (90, 30)]


@pytest.mark.parametrize("policy", sorted(BATCH_POLICIES))
def test_absurd_predictions_do_no_harm(pair: SimpleNamespace, policy: str) -> None:
    world = pair.World(policy=policy, loss=0.1)
    lengths = LENGTHS * 2
    ids = []
    for n, (num_prompt, max_tokens) in enumerate(lengths):
        world.prediction = ABSURD[(n + n // 5) % 5]
        ids.append(world.submit(n, num_prompt, max_tokens))
    world.run()
    for n, request_id in enumerate(ids):
        assert pair.stream(world, request_id) == list(pair.expected(n, *lengths[n]))
    world.assert_no_leak()
