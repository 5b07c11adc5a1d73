"""The table of answer lengths: its quantiles, what cut answers tell, who inherits from whom."""

import math
import random
from bisect import bisect_right

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.lengths import MAX_KEYS, MIN_SAMPLES, LengthHistogram, LengthTable


def lengths(rng: random.Random, num: int, median: float = 120.0) -> list[int]:
    return [max(1, round(rng.lognormvariate(math.log(median), 1.0))) for _ in range(num)]


def share_below(values: list[int], limit: float) -> float:
    return bisect_right(sorted(values), limit) / len(values)


@pytest.mark.parametrize("seed", range(3))
def test_quantiles_are_those_of_the_answers(seed: int) -> None:
    rng = random.Random(seed)
    histogram = LengthHistogram()
    for length in lengths(rng, 3000):
        histogram.add(length, is_cut=False)
    others = lengths(rng, 5000)
    for share, quantile in zip((0.5, 0.9), histogram.quantiles((0.5, 0.9)), strict=True):
        assert share_below(others, quantile) == pytest.approx(share, abs=0.05)


def test_cut_answers_do_not_make_answers_look_short() -> None:
    """Limits that cut four of ten: the median is still that of answers that nobody cuts."""
    rng = random.Random(1)
    histogram = LengthHistogram()
    for length in lengths(rng, 4000):
        limit = rng.choice([40, 100, 200, 400])
        histogram.add(min(length, limit), is_cut=length > limit)
    (median,) = histogram.quantiles((0.5,))
    assert share_below(lengths(rng, 5000), median) == pytest.approx(0.5, abs=0.06)


def test_what_was_never_seen_to_end_has_no_quantile() -> None:
    histogram = LengthHistogram()
    for n in range(100):
        histogram.add(64, is_cut=n % 5 > 0)
    assert histogram.quantiles((0.1, 0.9)) == [pytest.approx(64, rel=0.1), math.inf]


def test_old_answers_fade() -> None:
    rng = random.Random(2)
    histogram = LengthHistogram()
    for median in (1000.0, 30.0):
        for length in lengths(rng, 3000, median):
            histogram.add(length, is_cut=False)
    assert histogram.quantiles((0.5,))[0] == pytest.approx(30, rel=0.25)
    assert histogram.num_samples < 1000


def test_a_tenant_with_few_answers_inherits() -> None:
    table = LengthTable()
    unknown = table.predict("a", "chat", 256)
    assert (unknown.q50, unknown.q90) == (256, 256)
    for _ in range(50):
        table.note("b", "batch", 900, is_cut=False)
    assert table.predict("a", "chat", 4096).q50 == pytest.approx(900, rel=0.1)
    for _ in range(50):
        table.note("b", "chat", 80, is_cut=False)
    assert table.predict("a", "chat", 4096).q50 == pytest.approx(80, rel=0.1)
    for _ in range(round(MIN_SAMPLES) + 2):
        table.note("a", "chat", 7, is_cut=False)
    assert table.predict("a", "chat", 4096).q50 == pytest.approx(7, rel=0.1)
    assert table.predict("c", "chat", 4096).q50 > 20


def test_nothing_is_predicted_beyond_the_limit() -> None:
    table = LengthTable()
    for _ in range(100):
        table.note("a", "chat", 500, is_cut=False)
    prediction = table.predict("a", "chat", 60)
    assert (prediction.score, prediction.q50, prediction.q90) == (60, 60, 60)


def test_tenants_are_forgotten_before_they_are_too_many() -> None:
    table = LengthTable()
    for n in range(MAX_KEYS + 10):
        table.note(f"tenant {n}", "chat", 10, is_cut=False)
    assert len(table._of_tenant) == MAX_KEYS


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.booleans()), max_size=60))
def test_quantiles_are_in_order_and_numbers(answers: list[tuple[int, bool]]) -> None:
    histogram = LengthHistogram()
    for num_tokens, is_cut in answers:
        histogram.add(num_tokens, is_cut=is_cut)
    low, high = histogram.quantiles((0.5, 0.9))
    assert 1 <= low <= high
