"""What a placement is predicted to give, and where a prompt had better stay on its decode node."""

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.routing.catalogue import make_policy
from scheduling.routing.early_rejection import EarlyRejection
from scheduling.routing.estimates import own_prefill_s, predict, trusted
from scheduling.routing.local import LocalPrefill
from scheduling.routing.placement import Demand, Placement, QueueLimits
from tandem.messages.common import NodeCosts
from tests.scheduling.routing.test_policies import node, route

COSTS = NodeCosts(
    step_s=0.01,
    prefill_token_s=1e-3,
    prefill_context_s=0.0,
    decode_row_s=1e-3,
    decode_context_s=0.0,
    num_steps=1000,
    transfer_s=0.05,
    transfer_bytes_per_s=1e6,
)
DEMAND = Demand(
    num_prompt_tokens=160, num_output_tokens=0, max_output_tokens=40, ttft_s=2.0, tpot_s=0.1
)
SHAPE = {"costs": COSTS, "max_num_batched_tokens": 100, "page_bytes": 1000}


def test_time_to_first_token_is_wait_queue_prefill_and_transfer() -> None:
    p0 = node("p0", "prefill", num_prefill_tokens=300, num_prompts=2, **SHAPE)
    d0 = node("d0", **SHAPE)
    predicted = predict(replace(DEMAND, waited_s=0.5), p0, d0)
    assert predicted.queue_s == pytest.approx(3 * 0.01 + 0.3)
    own_s, sent_s = 2 * 0.01 + 0.16, 0.05 + 10 * 1000 / 1e6
    assert predicted.ttft_s == pytest.approx(0.5 + 0.33 + own_s + sent_s)
    assert predicted.alone_ttft_s == pytest.approx(own_s + sent_s)
    local = predict(DEMAND, d0, d0)
    assert local.ttft_s == pytest.approx(own_s)


def test_cached_pages_save_prefill_and_transfer() -> None:
    p0 = node("p0", "prefill", num_cached_pages=9, **SHAPE)
    d0 = node("d0", num_cached_pages=6, **SHAPE)
    assert predict(DEMAND, p0, d0).ttft_s == pytest.approx(0.01 + 0.016 + 0.05 + 0.004)


def test_decode_rows_slow_the_prefill_beside_them() -> None:
    busy = node("d0", num_sequences=20, **SHAPE)
    assert own_prefill_s(busy, DEMAND) == pytest.approx(2 * (0.01 + 0.02) + 0.16)
    assert own_prefill_s(busy, DEMAND, is_alone=True) == pytest.approx(2 * 0.01 + 0.16)


def test_the_decode_load_is_the_one_when_the_prefill_ends() -> None:
    """Half of the rows end while the prompt waits; deciding by today's load would refuse."""
    p0 = node("p0", "prefill", num_prefill_tokens=1000, num_prompts=1, **SHAPE)
    d0 = node("d0", num_sequences=40, **SHAPE)
    assert predict(DEMAND, p0, d0).tpot_s == pytest.approx(0.01 + 41e-3)
    ends = [0.01 * number for number in range(20)] + [60.0] * 20
    assert predict(DEMAND, p0, d0, ends).tpot_s == pytest.approx(0.01 + 21e-3)


def test_a_wait_for_a_slot_is_spread_over_the_answer() -> None:
    p0 = node("p0", "prefill", **SHAPE)
    d0 = node("d0", num_sequences=10, max_num_seqs=10, **SHAPE)
    begins_s = predict(DEMAND, p0, d0).ttft_s
    assert begins_s is not None
    ends = [begins_s + 3.9] + [60.0] * 9
    predicted = predict(DEMAND, p0, d0, ends, num_output_tokens=40)
    assert predicted.tpot_s == pytest.approx(0.01 + 10e-3 + 3.9 / 39)
    assert predict(DEMAND, p0, d0).tpot_s == pytest.approx(0.02)  # nobody knows when


def test_costs_are_relied_on_when_they_fit_and_rest_on_steps() -> None:
    assert trusted(None) is None
    assert trusted(COSTS) is COSTS
    assert trusted(msgspec.structs.replace(COSTS, num_steps=49)) is None
    assert trusted(msgspec.structs.replace(COSTS, error=0.51)) is None


def test_without_costs_nothing_is_predicted() -> None:
    predicted = predict(DEMAND, node("p0", "prefill"), node("d0"))
    assert (predicted.ttft_s, predicted.tpot_s, predicted.ends_after_s) == (None, None, math.inf)


# --- early rejection ------------------------------------------------------------------------------


def judge(demand: Demand, *nodes, tolerance: float = 1.0):
    """What becomes of a placement on p0 and d0."""
    placement = Placement("p0", "d0")
    return EarlyRejection(tolerance).judge(demand, placement, nodes, lambda _: (), 40.0)


def test_another_prefill_node_is_taken_where_only_that_is_in_time() -> None:
    late = node("p0", "prefill", num_prefill_tokens=5000, num_prompts=5, **SHAPE)
    soon = node("p1", "prefill", num_prefill_tokens=100, num_prompts=1, **SHAPE)
    d0 = node("d0", **SHAPE)
    assert judge(DEMAND, late, soon, d0).placement.prefill == "p1"
    refused = judge(DEMAND, late, replace(soon, draining=True), d0)
    assert refused.code == "overloaded"
    assert refused.predicted_ttft_s == pytest.approx(5.5 + 0.18 + 0.06)
    assert judge(DEMAND, late, d0, tolerance=3.0).placement.prefill == "p0"
    assert judge(replace(DEMAND, patience=math.inf), late, d0).placement.prefill == "p0"


@given(
    num_waiting=st.integers(0, 10_000),
    num_rows=st.integers(0, 100),
    waited_s=st.floats(0, 5),
    ttft_s=st.floats(0.01, 10),
    tpot_s=st.floats(0.001, 1),
)
def test_an_idle_system_and_an_infeasible_target_refuse_nobody(
    num_waiting, num_rows, waited_s, ttft_s, tpot_s
) -> None:
    demand = replace(DEMAND, waited_s=waited_s, ttft_s=ttft_s, tpot_s=tpot_s)
    p0 = node("p0", "prefill", num_prefill_tokens=num_waiting, num_prompts=1, **SHAPE)
    d0 = node("d0", num_sequences=num_rows, **SHAPE)
    predicted = predict(demand, p0, d0)
    is_refused = not hasattr(judge(demand, p0, d0), "placement")
    late = num_waiting > 0 and predicted.ttft_s > ttft_s >= predicted.alone_ttft_s
    slow = num_rows > 0 and predicted.tpot_s > tpot_s >= predicted.alone_tpot_s
    assert is_refused == (late or slow)


# --- conditional disaggregation -------------------------------------------------------------------


def test_a_short_prompt_stays_where_it_decodes_when_that_is_faster() -> None:
    p0, d0 = node("p0", "prefill", **SHAPE), node("d0", **SHAPE)
    short = replace(DEMAND, num_prompt_tokens=16)
    assert route("lmetric", p0, d0, demand=short) == ("p0", "d0")
    assert route("lmetric", p0, d0, demand=short, local_prefill="by_cost") == (None, "d0")
    # A long one gains too little: 0.18 s here, 0.24 s by way of p0 of which 80 % are 0.19 s.
    busy = replace(d0, num_prefill_tokens=100, queue_s=0.11)
    assert route("lmetric", p0, busy, local_prefill="by_cost") == ("p0", "d0")


def test_a_cached_prompt_is_a_short_one() -> None:
    p0, d0 = node("p0", "prefill", **SHAPE), node("d0", num_cached_pages=9, **SHAPE)
    assert route("lmetric", p0, d0, local_prefill="by_cost") == (None, "d0")


def test_rows_that_would_miss_their_time_per_token_keep_the_prompt_away() -> None:
    short = replace(DEMAND, num_prompt_tokens=60)
    p0, d0 = node("p0", "prefill", **SHAPE), node("d0", num_sequences=20, **SHAPE)
    assert LocalPrefill().explain(short, d0, p0) is not None  # a step of 0.09 s, promised are 0.1
    assert LocalPrefill().explain(short, replace(d0, tightest_tpot_s=0.08), p0) is None
    assert LocalPrefill().explain(replace(short, tpot_s=0.08), d0, p0) is None
    idle = replace(d0, num_sequences=0, step_s=0.01)
    assert LocalPrefill().explain(replace(short, tpot_s=0.01), idle, p0) is not None


def test_the_decode_pool_helps_out_where_every_prefill_node_is_full() -> None:
    limits = QueueLimits(100, 100)
    full = node("p0", "prefill", num_prefill_tokens=100, num_prompts=1, **SHAPE)
    d0 = node("d0", **SHAPE)
    answer = make_policy("lmetric", limits, {"local_prefill": "by_cost"}).route(DEMAND, [full, d0])
    assert (answer.prefill, answer.decode) == (None, "d0")
    assert "every prefill node is full" in answer.why
    refused = make_policy("lmetric", limits).route(DEMAND, [full, d0])
    assert refused.code == "overloaded"


def test_a_node_that_never_computed_a_prompt_does_not_do_it_for_nothing() -> None:
    p0 = node("p0", "prefill", **SHAPE)
    no_prompts = msgspec.structs.replace(COSTS, prefill_token_s=0.0)
    d0 = node("d0", **{**SHAPE, "costs": no_prompts})
    assert LocalPrefill().explain(replace(DEMAND, num_prompt_tokens=300), d0, p0) is None
    assert LocalPrefill().explain(replace(DEMAND, num_prompt_tokens=16), d0, p0) is not None
    assert LocalPrefill().explain(DEMAND, d0, None) is None


def test_the_reason_has_the_numbers_and_unknown_costs_decide_nothing() -> None:
    p0, d0 = node("p0", "prefill", **SHAPE), node("d0", **SHAPE)
    why = LocalPrefill().explain(replace(DEMAND, num_prompt_tokens=16), d0, p0)
    assert why is not None
    for part in ("local: 0.026 s here", "0.077 s by way of p0", "0.1 s"):
        assert part in why
    assert LocalPrefill().explain(DEMAND, replace(d0, costs=None), p0) is None
    assert LocalPrefill().explain(DEMAND, d0, replace(p0, costs=None)) is None


def test_a_move_is_not_judged_by_cost() -> None:
    p0, d0, d1 = node("p0", "prefill", **SHAPE), node("d0", **SHAPE), node("d1", **SHAPE)
    move = replace(DEMAND, num_prompt_tokens=16, move_from="d0", patience=math.inf)
    assert route("lmetric", p0, d0, d1, demand=move, local_prefill="by_cost") == ("d0", "d1")
