"""Allocators over cases worked out by hand, and what every allocator promises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.claims.allocators import Buddy, Contiguous, Paged, Replay
from benchmarks.traces import Lengths

requests = st.lists(
    st.builds(Lengths, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30
)


def test_a_contiguous_run_for_the_longest_sequence() -> None:
    allocator = Contiguous(32, reserve_for=16)
    assert allocator.admit(0, 3, 5) and allocator.admit(1, 3, 5)
    assert not allocator.admit(2, 1, 2)
    assert allocator.num_held(0) == 16
    allocator.release(0)
    assert allocator.admit(2, 1, 2)


def test_free_slots_apart_do_not_make_a_run() -> None:
    allocator = Contiguous(30, reserve_for=None)
    for number in range(3):
        assert allocator.admit(number, 1, 10)
    allocator.release(0)
    allocator.release(2)
    assert not allocator.admit(3, 1, 11)
    allocator.release(1)
    assert allocator.admit(3, 1, 30)


def test_buddies_split_and_merge() -> None:
    allocator = Buddy(16)
    assert allocator.admit(0, 1, 5) and allocator.num_held(0) == 8
    assert allocator.admit(1, 1, 3) and allocator.num_held(1) == 4
    assert allocator.admit(2, 1, 4)
    assert not allocator.admit(3, 1, 1)
    for number in range(3):
        allocator.release(number)
    assert allocator.admit(4, 1, 16)
    with pytest.raises(ValueError, match="power of two"):
        Buddy(24)


def test_pages_come_as_tokens_do() -> None:
    allocator = Paged(8, 4)
    assert allocator.admit(0, 4, 8) and allocator.num_held(0) == 4
    assert allocator.admit(1, 1, 4)
    assert not allocator.grow(0, 5)
    allocator.release(1)
    assert allocator.grow(0, 5) and allocator.num_held(0) == 8


def test_promised_pages_are_nobody_elses() -> None:
    allocator = Paged(12, 4, is_promised=True)
    assert allocator.admit(0, 1, 8) and allocator.num_held(0) == 8
    assert not allocator.admit(1, 1, 5)
    assert allocator.admit(1, 1, 4)
    assert allocator.grow(0, 8)


def test_a_replay_by_hand() -> None:
    """Two slots each for the longest of 2, four in all; three requests of 1 + 1."""
    usage = Replay(Contiguous(4, reserve_for=2), [Lengths(1, 1)] * 3, 4).run()
    # While the third waits: one step with 1 token each, one with 2 each.
    assert (usage.num_steps, usage.num_running) == (2, 2.0)
    assert (usage.useful, usage.reserved, usage.internal, usage.external) == (0.75, 0.25, 0, 0)
    assert usage.useful_of_held == 0.75


def test_who_came_last_is_preempted_and_runs_again() -> None:
    usage = Replay(Paged(6, 1), [Lengths(2, 3), Lengths(2, 3), Lengths(1, 1)], 6).run()
    assert usage.num_preempted >= 1 and usage.internal == 0


def test_a_request_that_never_fits_is_named() -> None:
    with pytest.raises(ValueError, match="never fits"):
        Replay(Contiguous(8, reserve_for=None), [Lengths(5, 5)], 8).run()


@settings(max_examples=30)
@given(requests, st.sampled_from([1, 8, 16, 32]))
def test_pages_waste_less_than_one_page_per_request(lengths: list[Lengths], size: int) -> None:
    num_slots = 256
    usage = Replay(Paged(num_slots, size), lengths, num_slots).run()
    wasted = (usage.reserved + usage.internal) * num_slots
    assert wasted <= (size - 1) * usage.num_running + 1e-6


@settings(max_examples=30)
@given(requests, st.sampled_from(["longest", "known", "buddy", "paged", "promised"]))
def test_shares_sum_to_the_memory_and_everybody_ends(lengths: list[Lengths], kind: str) -> None:
    made = {
        "longest": lambda: Contiguous(256, reserve_for=80),
        "known": lambda: Contiguous(256, reserve_for=None),
        "buddy": lambda: Buddy(256),
        "paged": lambda: Paged(256, 16),
        "promised": lambda: Paged(256, 16, is_promised=True),
    }
    usage = Replay(made[kind](), lengths, 256).run()
    if usage.num_steps:
        total = usage.useful + usage.reserved + usage.internal + usage.external
        assert total == pytest.approx(1.0)
        assert min(usage.useful, usage.reserved, usage.internal, usage.external) >= 0
    if kind != "paged":
        assert usage.num_preempted == 0
