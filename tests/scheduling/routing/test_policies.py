"""Placement policies by name: answers can be carried out whatever the nodes; what each likes."""

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.routing import scorers
from scheduling.routing.catalogue import DEFAULT_POLICY, PLACEMENT_POLICIES, make_policy
from scheduling.routing.estimates import with_times
from scheduling.routing.placement import Candidate, Demand, Placement, QueueLimits, Refusal
from tandem.messages.common import NodeCosts

NO_LIMITS = QueueLimits(10**9, 10**9)
COSTS = NodeCosts(
    step_s=0.01,
    prefill_token_s=1e-4,
    prefill_context_s=1e-8,
    decode_row_s=1e-3,
    decode_context_s=1e-7,
    num_steps=1000,
    transfer_s=0.001,
    transfer_bytes_per_s=1e9,
)
DEMAND = Demand(num_prompt_tokens=320, num_output_tokens=0, max_output_tokens=32, tpot_s=0.1)
POLICIES = sorted(PLACEMENT_POLICIES)
COUNTS = st.integers(0, 50)


def node(name: str, role: str = "decode", **changes) -> Candidate:
    """An idle node of 1000 pages."""
    weights = {"prefill": (1.0, 0.0), "decode": (0.0, 1.0), "mixed": (0.5, 0.5)}[role]
    plain = Candidate(
        node_id=name,
        prefill_weight=weights[0],
        decode_weight=weights[1],
        draining=False,
        num_pages=1000,
        page_size=16,
        max_num_seqs=64,
        num_prefill_tokens=0,
        num_sequences=0,
        num_pages_held=0,
        num_placed=0,
    )
    return with_times(replace(plain, **changes))


def route(policy: str, *nodes: Candidate, demand: Demand = DEMAND, **options: str):
    """The (prefill, decode) names, or the refusal."""
    answer = make_policy(policy, NO_LIMITS, options).route(demand, nodes)
    return (answer.prefill, answer.decode) if isinstance(answer, Placement) else answer


@st.composite
def clusters(draw) -> list[Candidate]:
    """Up to six nodes in every role and state, some with costs."""
    return [
        node(
            f"n{number}",
            draw(st.sampled_from(["prefill", "decode", "mixed"])),
            draining=draw(st.booleans()),
            num_pages=draw(st.integers(1, 30)),
            max_num_seqs=draw(st.integers(1, 8)),
            num_prefill_tokens=draw(COUNTS),
            num_prompts=draw(COUNTS),
            num_sequences=draw(COUNTS),
            num_decode_tokens=draw(COUNTS),
            num_pages_held=draw(COUNTS),
            num_placed=draw(COUNTS),
            num_cached_pages=draw(st.integers(0, 12)),
            is_isolated=draw(st.booleans()),
            costs=draw(st.sampled_from([None, COSTS])),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


DEMANDS = st.builds(
    Demand,
    num_prompt_tokens=st.integers(1, 200),
    num_output_tokens=st.just(0),
    max_output_tokens=st.integers(1, 100),
    avoid=st.lists(st.sampled_from(["n0", "n1", "n2"]), max_size=3).map(tuple),
    is_suspect=st.booleans(),
    tpot_s=st.sampled_from([0.01, 0.1]),
)


@pytest.mark.parametrize("local_prefill", ["never", "by_cost"])
@pytest.mark.parametrize("name", POLICIES)
@given(demand=DEMANDS, nodes=clusters())
@settings(max_examples=40)
def test_any_policy_answers_with_nodes_that_can_and_does_not_depend_on_order(
    name, local_prefill, demand, nodes
) -> None:
    policy = make_policy(name, NO_LIMITS, {"local_prefill": local_prefill})
    answer = policy.route(demand, nodes)
    assert answer == policy.route(demand, nodes[::-1])
    serving = [n for n in nodes if not n.draining]
    total, prompt = demand.num_total_tokens, demand.num_prefill_tokens
    can_decode = {n.node_id for n in serving if n.decode_weight and 16 * n.num_pages >= total}
    can_prefill = {n.node_id for n in serving if n.prefill_weight and 16 * n.num_pages >= prompt}
    if isinstance(answer, Refusal):
        assert not (can_decode and can_prefill)
        return
    assert answer.decode in can_decode
    assert answer.prefill in can_prefill | {None}
    assert answer.prefill != answer.decode
    if answer.prefill is None and answer.decode not in can_prefill:
        assert answer.why.startswith("local")


@pytest.mark.parametrize("name", POLICIES)
def test_idle_nodes_take_turns_under_every_policy(name) -> None:
    placed = {"p0": 0, "p1": 0, "d0": 0, "d1": 0}
    for _ in range(8):
        nodes = [
            node(each, "prefill" if each < "q" and each[0] == "p" else "decode", num_placed=number)
            for each, number in placed.items()
        ]
        for chosen in route(name, *nodes):
            placed[chosen] += 1
    assert set(placed.values()) == {4}


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round_robin", "pack"}))
def test_a_busy_node_is_passed_over_unless_the_policy_wants_otherwise(name) -> None:
    p0, d0 = node("p0", "prefill", num_prefill_tokens=9000, num_prompts=9), node("d0")
    d0 = replace(d0, num_sequences=50, num_pages_held=900)
    assert route(name, p0, node("p1", "prefill"), d0, node("d1")) == ("p1", "d1")


def test_the_default_is_on_offer_and_unknown_names_and_options_are_explained() -> None:
    assert DEFAULT_POLICY in PLACEMENT_POLICIES
    with pytest.raises(ValueError, match="lmetric"):
        make_policy("fortune_teller", NO_LIMITS)
    with pytest.raises(ValueError, match="did you mean min_match"):
        make_policy("prefix", NO_LIMITS, {"min_macth": "0.3"})
    with pytest.raises(ValueError, match="a number"):
        make_policy("prefix", NO_LIMITS, {"min_match": "long"})
    with pytest.raises(ValueError, match="never, by_cost"):
        make_policy("lmetric", NO_LIMITS, {"local_prefill": "always"})
    with pytest.raises(ValueError, match=r"try 0\.9"):
        make_policy("pack", NO_LIMITS, {"fullest": "0"})
    with pytest.raises(ValueError, match="local_share"):
        make_policy("lmetric", NO_LIMITS, {"local_share": "0"})


def test_lmetric_weighs_tokens_by_the_batch_that_they_join() -> None:
    """A hit that halves the work loses against a third request in line."""
    hot = node("p0", "prefill", num_cached_pages=10, num_prefill_tokens=100, num_prompts=2)
    assert route("lmetric", hot, node("p1", "prefill"), node("d0")) == ("p1", "d0")
    alone = node("p0", "prefill", num_cached_pages=10)
    assert route("lmetric", alone, node("p1", "prefill"), node("d0")) == ("p0", "d0")
    assert scorers.lmetric_prefill([node("p0", "prefill")], DEMAND) == [320]  # idle is not free


def test_prefix_sends_to_the_longest_match_until_queues_differ_too_much() -> None:
    hot = node("p0", "prefill", num_cached_pages=15, num_prefill_tokens=5000, num_prompts=2)
    cold, d0 = node("p1", "prefill"), node("d0")
    assert route("prefix", hot, cold, d0) == ("p0", "d0")
    assert route("prefix", replace(hot, num_prefill_tokens=9000), cold, d0) == ("p1", "d0")
    assert route("prefix", replace(hot, num_cached_pages=9), cold, d0) == ("p1", "d0")
    assert route("prefix", hot, cold, d0, min_match="0.9") == ("p1", "d0")


def test_mooncake_compares_seconds_and_tokens_where_a_node_has_no_costs() -> None:
    slow = NodeCosts(
        step_s=0.01, prefill_token_s=1e-3, prefill_context_s=0.0, decode_row_s=1e-3,
        decode_context_s=0.0, num_steps=1000,
    )  # fmt: skip
    busy_but_fast = node("p0", "prefill", num_prefill_tokens=1000, num_prompts=1, costs=COSTS)
    idle_but_slow = node("p1", "prefill", costs=slow)
    assert route("mooncake", busy_but_fast, idle_but_slow, node("d0")) == ("p0", "d0")
    unknown = replace(idle_but_slow, costs=None)
    assert route("mooncake", busy_but_fast, unknown, node("d0")) == ("p1", "d0")
    fast, tired = node("d0", costs=COSTS, num_sequences=20), node("d1", costs=slow)
    assert route("mooncake", node("p0", "prefill"), fast, tired) == ("p0", "d1")


def test_pack_fills_a_node_while_its_tokens_are_in_time() -> None:
    fuller, emptier = node("d0", num_sequences=30, costs=COSTS), node("d1", costs=COSTS)
    p0 = node("p0", "prefill")
    assert route("pack", p0, fuller, emptier) == ("p0", "d0")
    hasty = replace(DEMAND, tpot_s=0.03)  # thirty rows take 0.04 s
    assert route("pack", p0, fuller, emptier, demand=hasty) == ("p0", "d1")
    crowded = replace(fuller, num_sequences=60)
    assert route("pack", p0, crowded, emptier) == ("p0", "d1")
    tight = replace(fuller, tightest_tpot_s=0.03)  # others there are hasty
    assert route("pack", p0, tight, emptier) == ("p0", "d1")


def test_weights_of_the_weighted_policy_decide() -> None:
    hot = node("p0", "prefill", num_cached_pages=20, num_prefill_tokens=500, num_prompts=1)
    cold, d0 = node("p1", "prefill"), node("d0")
    assert route("weighted", hot, cold, d0) == ("p0", "d0")
    assert route("weighted", hot, cold, d0, prefix="0") == ("p1", "d0")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_normalised_scores_keep_their_order(scores) -> None:
    normal = scorers.normalised(scores)
    assert all(0 <= each <= 1 for each in normal)
    for a, one in zip(scores, normal, strict=True):
        for b, other in zip(scores, normal, strict=True):
            assert one <= other or a > b


@pytest.mark.parametrize("name", POLICIES)
def test_a_thousand_nodes_are_routed_over_in_about_a_millisecond(name) -> None:
    """Printed, and bounded at thirty times: other work may run beside the test."""
    nodes = [
        node(
            f"n{number}",
            "prefill" if number < 500 else "decode",
            num_prefill_tokens=number % 37,
            num_prompts=number % 3,
            num_sequences=number % 29,
            costs=COSTS,
        )
        for number in range(1000)
    ]
    policy = make_policy(name, NO_LIMITS)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        assert isinstance(policy.route(DEMAND, nodes), Placement)
        times.append(time.perf_counter() - start)
    print(f"{name}: {min(times) * 1e3:.2f} ms")
    assert min(times) < 0.03
