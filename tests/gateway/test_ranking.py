"""Kendall's tau against its definition."""

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.training.ranking import kendall_tau


def naive(scores: list[float], lengths: list[float], min_ratio: float) -> float:
    """Tau-b, pair by pair."""
    right_less_wrong = num_pairs = num_untied = 0
    for (s1, l1), (s2, l2) in combinations(zip(scores, lengths, strict=True), 2):
        is_far = min(l1, l2) * min_ratio < max(l1, l2)
        num_pairs += is_far
        num_untied += (s1 != s2) and (is_far or min_ratio == 1.0)
        if is_far and s1 != s2:
            right_less_wrong += 1 if (s1 < s2) == (l1 < l2) else -1
    scale = math.sqrt(num_pairs) * math.sqrt(num_untied)
    return right_less_wrong / scale if scale else 0.0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=40),
    st.sampled_from([1.0, 1.2, 2.0]),
)
def test_it_is_what_pairs_say(pairs: list[tuple[int, int]], min_ratio: float) -> None:
    scores, lengths = [float(s) for s, _ in pairs], [float(n) for _, n in pairs]
    expected = naive(scores, lengths, min_ratio)
    assert kendall_tau(scores, lengths, min_ratio=min_ratio) == pytest.approx(expected)


def test_the_extremes() -> None:
    rising = [float(n) for n in range(1, 200)]
    assert kendall_tau(rising, rising) == pytest.approx(1)
    assert kendall_tau(rising[::-1], rising) == pytest.approx(-1)
    assert kendall_tau(rising, rising, min_ratio=1.2) == pytest.approx(1)
    assert kendall_tau([1.0] * 5, rising[:5]) == 0
    assert kendall_tau([], []) == 0


def test_many_pairs_take_no_time() -> None:
    """Pair by pair these 800 million would take minutes, and the test would run out of time."""
    rng = random.Random(0)
    scores = [rng.random() for _ in range(40_000)]
    lengths = [rng.random() + score for score in scores]
    assert kendall_tau(scores, lengths) == pytest.approx(0.5, abs=0.03)
