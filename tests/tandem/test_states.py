"""The table of request states."""

import itertools

import pytest

from tandem.states import (
    TRANSITIONS,
    IllegalTransition,
    RequestState,
    draw_mermaid,
    is_terminal,
    transition,
)


def test_the_life_of_an_undisturbed_request_is_legal() -> None:
    states = ["RECEIVED", "PLACING", "PREFILLING", "TRANSFERRING", "DECODING", "FINISHED"]
    state = RequestState.RECEIVED
    for name in states[1:]:
        state = transition(state, RequestState[name])
    assert is_terminal(state)


def test_whatever_the_table_does_not_list_raises() -> None:
    for old, new in itertools.product(RequestState, RequestState):
        if new in TRANSITIONS[old]:
            assert transition(old, new) is new
        else:
            with pytest.raises(IllegalTransition):
                transition(old, new)


def test_three_states_are_terminal_and_reachable_from_everywhere_else() -> None:
    ends = {state for state in RequestState if is_terminal(state)}
    assert {state.value for state in ends} == {"finished", "cancelled", "failed"}
    for state in set(RequestState) - ends:
        assert {RequestState.CANCELLED, RequestState.FAILED} <= TRANSITIONS[state]


def test_the_drawing_has_every_transition() -> None:
    drawn = draw_mermaid().splitlines()
    assert drawn[0] == "stateDiagram-v2"
    num_transitions = sum(len(following) for following in TRANSITIONS.values())
    assert len(drawn) == 2 + num_transitions + 3
    assert "    decoding --> placing" in drawn
