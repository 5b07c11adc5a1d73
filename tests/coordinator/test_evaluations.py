"""Evaluations are placed like prompts, on prefill nodes alone, and count for no decode pool."""

from collections import Counter

import pytest

from scheduling.routing.early_rejection import EarlyRejection
from scheduling.routing.estimates import with_times
from scheduling.routing.placement import Candidate, Demand, Placement, Refusal
from tandem.messages.common import NodeCosts
from tandem.messages.membership import RoleWeights
from tandem.messages.placement import Placed, PlaceRefused

COSTS = NodeCosts(
    step_s=0.01,
    prefill_token_s=1e-4,
    prefill_context_s=0.0,
    decode_row_s=1e-3,
    decode_context_s=0.0,
    error=0.05,
    num_steps=1000,
)


def evaluation(cluster, number: int, **changes):
    """What the coordinator answers to one; `max_output_tokens` 0 as gateways say it."""
    (answer,) = cluster.place(number, is_evaluation=True, max_output_tokens=0, **changes)
    return answer


@pytest.fixture
def pools(cluster):
    """Two prefill nodes and a decode node."""
    for name, role in [("p0", "prefill"), ("p1", "prefill"), ("d0", "decode")]:
        cluster.join(name, role)
    return cluster


def live_on_nodes(cluster) -> dict[str, int]:
    members = cluster.core.members.nodes
    return {name: record.live.num_sequences for name, record in members.items()}


def test_prefill_nodes_take_turns_and_decode_nodes_are_left_alone(pools) -> None:
    answers = [evaluation(pools, n) for n in range(8)]
    assert Counter(a.decode.node_id for a in answers) == {"p0": 4, "p1": 4}
    assert all(a.prefill is None for a in answers)
    assert live_on_nodes(pools) == {"p0": 0, "p1": 0, "d0": 0}
    assert evaluation(pools, 3) == answers[3]
    assert evaluation(pools, 3, attempt=2).sequence == answers[3].sequence


def test_its_tokens_count_for_the_prompts_beside_it(pools) -> None:
    busy = evaluation(pools, 1, num_prompt_tokens=900).decode.node_id
    others = [evaluation(pools, n).decode.node_id for n in (2, 3)]
    (prompt,) = pools.place(4)
    assert busy not in (*others, prompt.prefill.node_id)
    pools.end(1, num_output_tokens=0, is_evaluation=True)
    assert evaluation(pools, 5).decode.node_id == busy


def test_its_end_says_nothing_of_the_length_of_answers(pools) -> None:
    evaluation(pools, 1)
    pools.end(1, num_output_tokens=0, is_evaluation=True)
    assert pools.core.placements._forecast.num_output_tokens(None, 100) == 100.0
    (counts,) = [c for c in pools.status().classes if c.num_ended]
    assert counts.num_ended == 1


def test_without_a_prefill_node_it_is_refused(cluster) -> None:
    cluster.join("d0", "decode")
    cluster.pass_time(3.0)
    refused = evaluation(cluster, 1)
    assert isinstance(refused, PlaceRefused)
    assert refused.code == "no_prefill_node"
    cluster.join("m0", "mixed")
    assert evaluation(cluster, 2).decode.node_id == "m0"


def test_no_decode_node_is_needed(cluster) -> None:
    cluster.join("p0", "prefill")
    assert isinstance(evaluation(cluster, 1), Placed)


def test_a_failed_node_is_avoided_and_a_closed_one_not_asked(pools) -> None:
    assert evaluation(pools, 1, attempt=2, avoid=("p0",)).decode.node_id == "p1"
    pools.join("p2", "prefill", weights=RoleWeights(prefill=0, decode=1))
    assert "p2" not in {evaluation(pools, n).decode.node_id for n in range(2, 8)}


def test_what_no_context_or_pool_holds_is_refused(pools) -> None:
    assert evaluation(pools, 1, num_prompt_tokens=5000).code == "context_too_long"
    assert evaluation(pools, 2, num_prompt_tokens=64 * 16 + 1).code == "too_few_pages"
    assert isinstance(evaluation(pools, 3, num_prompt_tokens=64 * 16), Placed)


def test_full_queues_shed_it_with_a_time_to_come_back(pools) -> None:
    pools.pass_time(3.0)
    for node in ("p0", "p1"):
        pools.beat(node, num_prefill_tokens_waiting=10**6, num_prefill_waiting=100)
    refused = evaluation(pools, 1)
    assert refused.code == "overloaded"
    assert refused.retry_after_s > 0


def candidate(name: str, num_tokens: int) -> Candidate:
    return with_times(
        Candidate(
            node_id=name,
            prefill_weight=1.0,
            decode_weight=0.0,
            draining=False,
            num_pages=10_000,
            page_size=16,
            max_num_seqs=8,
            num_prefill_tokens=num_tokens,
            num_sequences=0,
            num_pages_held=0,
            num_placed=0,
            num_prompts=1,
            costs=COSTS,
        )
    )


def judge(*nodes: Candidate):
    demand = Demand(100, 0, 0, ttft_s=0.5, tpot_s=1e-6, is_evaluation=True)
    placement = Placement(prefill=None, decode=nodes[0].node_id)
    return EarlyRejection().judge(demand, placement, nodes, lambda name: (), 0.0)


def test_an_answer_that_would_come_too_late_is_refused_or_given_to_another_node() -> None:
    late, idle = candidate("late", 10_000), candidate("idle", 0)
    assert judge(idle).placement.decode == "idle"
    assert judge(late, idle).placement == Placement(
        None, "idle", "only idle has the first token in time"
    )
    refused = judge(late)
    assert isinstance(refused, Refusal)
    assert refused.predicted_ttft_s is not None
    assert refused.predicted_ttft_s > 0.5
