"""Tokens by absolute index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.token_stream import MAX_TOKENS_AHEAD, Divergence, TokenStream
from tandem.messages.common import TokenLogprobs


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), max_size=40))
def test_each_token_is_taken_once_and_in_order(spans) -> None:
    stream = TokenStream(25)
    taken: list[int] = []
    for start, length in [*spans, (0, 30)]:
        ids = range(start + 100, start + 100 + length)
        taken += stream.offer(start, ids)[0]
        assert taken == list(range(100, 100 + stream.next_index))
    assert taken == list(range(100, 125))


def test_a_token_that_comes_back_different_is_an_error() -> None:
    stream = TokenStream(10)
    stream.offer(0, [1, 2])
    stream.offer(4, [5])
    for start, token_id in [(1, 9), (4, 9)]:
        with pytest.raises(Divergence) as caught:
            stream.offer(start, [token_id])
        assert f"token {start}" in str(caught.value)


def test_the_gap_is_bounded() -> None:
    stream = TokenStream(10**6)
    stream.offer(1, range(2 * MAX_TOKENS_AHEAD))
    assert len(stream.offer(0, [7])[0]) == MAX_TOKENS_AHEAD


def test_a_stream_may_start_with_delivered_tokens() -> None:
    stream = TokenStream(5, [7, 8])
    assert stream.next_index == 2
    assert list(stream.offer(1, [8, 9])[0]) == [9]
    with pytest.raises(Divergence):
        stream.offer(0, [6])
    assert TokenStream(1, [7, 8]).ids == [7]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.booleans()), max_size=40))
def test_what_comes_in_order_is_taken_as_the_specification_takes_it(spans) -> None:
    quick, plain = TokenStream(25), TokenStream(25)
    for start, length, is_scored in spans:
        ids = range(start, start + length)
        logprobs = [TokenLogprobs(logprob=-1.0, top=())] * length if is_scored else []
        taken, expected = quick.offer(start, ids, logprobs), plain._sort_in(start, ids, logprobs)
        assert [list(each) for each in taken] == [list(each) for each in expected]
        assert quick.ids == plain.ids


def test_logprobs_of_some_tokens_alone_are_left_out() -> None:
    stream = TokenStream(10)
    assert stream.offer(0, [5, 6], [TokenLogprobs(logprob=-1.0, top=())]) == ([5, 6], ())
