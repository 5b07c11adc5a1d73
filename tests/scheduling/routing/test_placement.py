"""The least-loaded policy: whatever the nodes, its answer can be carried out or says why not."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.routing.catalogue import make_policy
from scheduling.routing.placement import (
    Candidate,
    Demand,
    Placement,
    QueueLimits,
    Refusal,
)

NO_LIMITS = QueueLimits(10**9, 10**9)
COUNTS = st.integers(0, 50)


@st.composite
def clusters(draw) -> list[Candidate]:
    """Up to six nodes in every role and state."""
    return [
        Candidate(
            node_id=f"n{number}",
            prefill_weight=draw(st.sampled_from([0.0, 0.5, 1.0])),
            decode_weight=draw(st.sampled_from([0.0, 1.0])),
            draining=draw(st.booleans()),
            num_pages=draw(st.integers(1, 20)),
            page_size=16,
            max_num_seqs=draw(st.integers(1, 8)),
            num_prefill_tokens=draw(COUNTS),
            num_sequences=draw(COUNTS),
            num_pages_held=draw(COUNTS),
            num_placed=draw(COUNTS),
            num_cached_pages=draw(st.integers(0, 12)),
            is_isolated=draw(st.booleans()),
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
)
IDLE = Candidate(
    node_id="d0",
    prefill_weight=0.0,
    decode_weight=1.0,
    draining=False,
    num_pages=100,
    page_size=16,
    max_num_seqs=10,
    num_prefill_tokens=0,
    num_sequences=0,
    num_pages_held=0,
    num_placed=0,
)
DEMAND = Demand(num_prompt_tokens=320, num_output_tokens=0, max_output_tokens=32)


def decoder(name: str, **changes) -> Candidate:
    return replace(IDLE, node_id=name, **changes)


def prefiller(name: str, **changes) -> Candidate:
    return replace(IDLE, node_id=name, prefill_weight=1.0, decode_weight=0.0, **changes)


def mixed(name: str, **changes) -> Candidate:
    return replace(IDLE, node_id=name, prefill_weight=0.5, decode_weight=0.5, **changes)


def route(demand: Demand, *nodes: Candidate, limits: QueueLimits = NO_LIMITS):
    """The (prefill, decode) names, or the refusal."""
    answer = make_policy("least_loaded", limits).route(demand, nodes)
    return (answer.prefill, answer.decode) if isinstance(answer, Placement) else answer


@given(DEMANDS, clusters())
def test_a_placement_can_be_carried_out_and_a_refusal_is_true(demand, nodes) -> None:
    answer = make_policy("least_loaded", NO_LIMITS).route(demand, nodes)
    serving = [n for n in nodes if not n.draining]
    prefills = [n for n in serving if n.prefill_weight > 0]
    decodes = [n for n in serving if n.decode_weight > 0]
    fit_prefill = {n.node_id for n in prefills if 16 * n.num_pages >= demand.num_prefill_tokens}
    fit_decode = {n.node_id for n in decodes if 16 * n.num_pages >= demand.num_total_tokens}
    if isinstance(answer, Placement):
        assert answer.decode in fit_decode
        assert (answer.prefill or answer.decode) in fit_prefill
        assert answer.prefill != answer.decode
    else:
        expected = "too_few_pages" if prefills and decodes else "no_prefill_node"
        assert answer.code == (expected if decodes else "no_decode_node")
        assert not (fit_prefill and fit_decode)


@given(DEMANDS, clusters())
def test_the_same_view_has_the_same_answer(demand, nodes) -> None:
    policy = make_policy("least_loaded", NO_LIMITS)
    assert policy.route(demand, nodes) == policy.route(demand, nodes[::-1])


def test_policies_are_made_by_name() -> None:
    answer = make_policy("least_loaded", NO_LIMITS).route(Demand(1, 0, 1), [])
    assert isinstance(answer, Refusal)
    with pytest.raises(ValueError) as caught:
        make_policy("fortune_teller", NO_LIMITS)
    assert "least_loaded" in str(caught.value)


# --- cached prefixes ------------------------------------------------------------------------------


def test_of_equally_loaded_nodes_the_longer_match_wins() -> None:
    p0, p1 = prefiller("p0", num_cached_pages=2), prefiller("p1", num_cached_pages=9)
    d0, d1 = decoder("d0", num_cached_pages=9), decoder("d1", num_cached_pages=2)
    assert route(DEMAND, p0, p1, d0, d1) == ("p1", "d0")


@pytest.mark.parametrize(("num_waiting", "chosen"), [(159, "p1"), (161, "p0")])
def test_a_hit_is_worth_the_tokens_that_it_saves_and_no_more(num_waiting, chosen) -> None:
    busy = prefiller("p1", num_cached_pages=10, num_prefill_tokens=num_waiting)
    assert route(DEMAND, prefiller("p0"), busy, IDLE) == (chosen, "d0")


@given(st.integers(0, 22), st.integers(0, 100))
def test_a_hit_outweighs_no_more_load_than_the_pages_that_it_saves(num_cached, num_held) -> None:
    """A node that is fuller by more than twice the hit gets nothing for it."""
    hot = decoder("d1", num_cached_pages=num_cached, num_pages_held=num_held, num_sequences=1)
    cold = decoder("d0", num_sequences=1)
    if num_held > 2 * num_cached + 22:
        assert route(DEMAND, prefiller("p0"), hot, cold) == ("p0", "d0")
    if num_held < num_cached:
        assert route(DEMAND, prefiller("p0"), hot, cold) == ("p0", "d1")


def test_a_whole_hit_still_computes_one_token_and_needs_one_page() -> None:
    node = prefiller("p0", num_cached_pages=1000)
    assert (node.num_new_tokens(DEMAND), node.num_new_pages(DEMAND)) == (1, 1)


# --- avoiding, suspects, moves --------------------------------------------------------------------


def test_failed_nodes_are_avoided_while_others_fit() -> None:
    p0, p1 = prefiller("p0"), prefiller("p1", num_prefill_tokens=9999)
    d0, d1 = decoder("d0"), decoder("d1", num_sequences=9)
    demand = replace(DEMAND, avoid=("p0", "d0", "gone"))
    assert route(demand, p0, p1, d0, d1) == ("p1", "d1")
    assert route(demand, p0, d0) == ("p0", "d0")
    small = replace(d1, num_pages=3)  # cannot hold it
    assert route(demand, p0, p1, d0, small) == ("p1", "d0")


def test_a_suspect_runs_on_an_idle_node_or_the_least_loaded() -> None:
    suspect = replace(DEMAND, is_suspect=True)
    busy = decoder("d0", max_num_seqs=1000, num_sequences=1)
    idle = decoder("d1", num_pages_held=70)  # fuller, but nothing runs there
    assert route(suspect, prefiller("p0"), busy, idle) == ("p0", "d1")
    assert route(DEMAND, prefiller("p0"), busy, idle) == ("p0", "d0")
    worse = replace(idle, num_sequences=5)
    assert route(suspect, prefiller("p0"), busy, worse) == ("p0", "d0")


def test_a_suspect_stays_on_one_node_where_that_computes_prompts_too() -> None:
    suspect = replace(DEMAND, is_suspect=True)
    assert route(suspect, prefiller("p0"), mixed("m0")) == (None, "m0")


def test_the_node_of_a_suspect_gets_nothing_else_while_another_fits() -> None:
    kept = decoder("d0", is_isolated=True)
    other = decoder("d1", num_sequences=9)
    assert route(DEMAND, prefiller("p0"), kept, other) == ("p0", "d1")
    assert route(DEMAND, prefiller("p0"), kept) == ("p0", "d0")


def test_a_move_prefills_where_the_kv_is_and_decodes_elsewhere() -> None:
    move = replace(DEMAND, move_from="d0", patience=math.inf)
    leaving = decoder("d0", draining=True)
    assert route(move, leaving, decoder("d1", num_sequences=99)) == ("d0", "d1")
    assert route(move, decoder("d0"), decoder("d1", num_sequences=99)) == ("d0", "d1")
    answer = route(move, leaving, decoder("d1", draining=True), prefiller("p0"))
    assert isinstance(answer, Refusal)
    assert answer.code == "no_decode_node"
    assert "besides d0" in answer.message


def test_a_move_from_a_node_that_is_gone_is_a_normal_placement() -> None:
    move = replace(DEMAND, move_from="d9", patience=math.inf)
    assert route(move, prefiller("p0"), decoder("d1")) == ("p0", "d1")


# --- overload -------------------------------------------------------------------------------------

LIMITS = QueueLimits(num_tokens=1000, num_requests=4)


def code_of(answer) -> str:
    return answer.code if isinstance(answer, Refusal) else "placed"


@pytest.mark.parametrize(
    ("num_waiting", "patience", "code"),
    [
        (680, 1.0, "placed"),
        (681, 1.0, "overloaded"),
        (681, 2.0, "placed"),
        (1681, 2.0, "overloaded"),
        (10**6, math.inf, "placed"),
    ],
)
def test_prompts_wait_behind_a_bounded_number_of_tokens(num_waiting, patience, code) -> None:
    demand = replace(DEMAND, patience=patience)
    busy = prefiller("p0", num_prefill_tokens=num_waiting)
    assert code_of(route(demand, busy, IDLE, limits=LIMITS)) == code


def test_an_idle_node_takes_a_prompt_that_is_longer_than_any_queue() -> None:
    big = replace(DEMAND, num_prompt_tokens=1500)
    assert route(big, prefiller("p0"), IDLE, limits=LIMITS) == ("p0", "d0")


@pytest.mark.parametrize(
    ("load", "code"),
    [
        ({"num_sequences": 13}, "placed"),  # ten run, the fourth to wait is this one
        ({"num_sequences": 14}, "overloaded"),
        ({"num_sequences": 1, "num_pages_held": 166}, "placed"),  # 88 missing, 22 each
        ({"num_sequences": 1, "num_pages_held": 167}, "overloaded"),
        ({"num_sequences": 0, "num_pages_held": 167}, "placed"),
    ],
)
def test_few_requests_wait_for_slots_or_pages_of_a_decode_node(load, code) -> None:
    node = decoder("d0", **load)
    assert code_of(route(DEMAND, prefiller("p0"), node, limits=LIMITS)) == code


def test_a_node_with_room_is_taken_before_anybody_is_refused() -> None:
    full, open_ = decoder("d0", num_sequences=14), decoder("d1", num_sequences=13)
    busy, free = prefiller("p0", num_prefill_tokens=999), prefiller("p1", num_prefill_tokens=600)
    assert route(DEMAND, busy, free, full, open_, limits=LIMITS) == ("p1", "d1")


def test_mixed_nodes_need_room_for_prompt_and_sequence() -> None:
    no_prompts = mixed("m0", num_prefill_tokens=999)
    no_sequences = mixed("m1", num_sequences=20)
    answer = route(DEMAND, no_prompts, no_sequences, limits=LIMITS)
    assert code_of(answer) == "overloaded"
    assert "launch_decode" in answer.message
    assert route(DEMAND, no_prompts, mixed("m2"), limits=LIMITS) == (None, "m2")
