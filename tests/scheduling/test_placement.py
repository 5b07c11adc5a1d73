"""The least-loaded policy: whatever the nodes, its answer can be carried out or says why not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.placement import Candidate, Demand, LeastLoaded, Placement, Refusal, make_policy

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
        )
        for number in range(draw(st.integers(0, 6)))
    ]


DEMANDS = st.builds(
    Demand,
    num_prompt_tokens=st.integers(1, 200),
    num_output_tokens=st.just(0),
    max_output_tokens=st.integers(1, 100),
)


@given(DEMANDS, clusters())
def test_a_placement_can_be_carried_out_and_a_refusal_is_true(demand, nodes) -> None:
    answer = LeastLoaded().route(demand, nodes)
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
    assert LeastLoaded().route(demand, nodes) == LeastLoaded().route(demand, nodes[::-1])


def test_policies_are_made_by_name() -> None:
    answer = make_policy("least_loaded").route(Demand(1, 0, 1), [])
    assert isinstance(answer, Refusal)
    with pytest.raises(ValueError) as caught:
        make_policy("fortune_teller")
    assert "least_loaded" in str(caught.value)
