"""Attainment, burn rates and budgets over windows, under a clock that the test sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.dashboard.windows import SPANS_S, STEPS_S, ClassWindows, Tally, Window

START = 1_800_000_000
GOOD = Tally(num_ended=1, num_attained=1)
LATE = Tally(num_ended=1, num_late_ttft=1, queue_s=3.0)
SHED = Tally(num_shed=1)


@given(
    ends=st.lists(st.tuples(st.floats(0, 700), st.sampled_from([GOOD, LATE, SHED])), max_size=60),
    asked_after=st.floats(0, 700),
    step_s=st.sampled_from([1, 10, 100]),
)
def test_a_window_is_the_sum_of_its_last_buckets(ends, asked_after, step_s) -> None:
    window = Window(300, step_s)
    ends.sort(key=lambda each: each[0])
    now = max([START + asked_after, *(START + after for after, _ in ends)])
    for after, tally in ends:
        window.add(tally.parts, START + after)
    oldest = now // step_s - 300 // step_s
    inside = [tally for after, tally in ends if (START + after) // step_s > oldest]
    total = window.total(now)
    assert total.num_ended == sum(tally.num_ended for tally in inside)
    assert total.num_attained == sum(tally.num_attained for tally in inside)
    assert total.num_shed == sum(tally.num_shed for tally in inside)
    assert total.queue_s == pytest.approx(sum(tally.queue_s for tally in inside))


def test_shed_requests_count_as_missed() -> None:
    windows = ClassWindows(0.9)
    for tally in (GOOD, GOOD, LATE, SHED):
        windows.add(tally, START)
    verdict = windows.verdict("5m", START + 1)
    counts = (verdict.num_ended, verdict.num_attained, verdict.num_failed, verdict.num_shed)
    assert counts == (3, 2, 0, 1)
    assert verdict.attainment == 0.5
    assert verdict.burn_rate == pytest.approx(5.0)
    assert windows.budget_left(START + 1) == pytest.approx(-4.0)


def test_without_traffic_nothing_is_said() -> None:
    windows = ClassWindows(0.9)
    assert windows.verdict("3d", START).attainment is None
    assert windows.budget_left(START) is None
    assert windows.burning(START) is None


def test_a_promise_of_all_requests_has_no_budget() -> None:
    windows = ClassWindows(1.0)
    windows.add(LATE, START)
    assert windows.verdict("1h", START).attainment == 0.0
    assert windows.verdict("1h", START).burn_rate is None


def test_both_windows_of_a_rule_must_burn() -> None:
    """A burst of misses that is over alarms nobody; one that goes on does, and does so soon."""
    windows = ClassWindows(0.99)
    for second in range(60):
        windows.add(LATE, START + second)
        windows.add(GOOD, START + second)
    rule = windows.burning(START + 60)
    assert rule is not None and (rule.rate, rule.long, rule.short) == (14.4, "1h", "5m")
    for second in range(60, 420):
        windows.add(GOOD, START + second)
    later = windows.burning(START + 420)
    assert later is not None and later.long == "6h"  # 5 minutes are clean, half an hour is not


def test_few_requests_are_no_trend() -> None:
    windows = ClassWindows(0.99)
    for _ in range(9):
        windows.add(LATE, START)
    assert windows.burning(START + 1) is None
    windows.add(LATE, START)
    assert windows.burning(START + 1) is not None


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    windows = ClassWindows(0.9)
    windows.add(GOOD, START)
    windows.add(LATE, START - 3600)
    assert windows.verdict("5m", START).num_ended == 2


def test_a_restart_keeps_every_window() -> None:
    """What changed goes to a file once, and comes back as the same totals."""
    windows = ClassWindows(0.9)
    file: dict[tuple[int, int], tuple[float, ...]] = {}
    for number in range(400):
        windows.add(GOOD if number % 3 else LATE, START + 173 * number)
        file |= {(step, start): tally.row() for step, start, tally in windows.take_changed()}
    assert list(windows.take_changed()) == []
    now = START + 173 * 400
    again = ClassWindows(0.9)
    for (step_s, start_s), row in sorted(file.items()):
        again.restore(step_s, start_s, Tally(*row))
    assert list(again.take_changed()) == []
    assert {STEPS_S[name] for name in SPANS_S} == {1, 10, 300}
    for name in ("1h", "6h", "3d"):
        assert again.total(name, now) == windows.total(name, now), name
    # Ten seconds are one bucket in the file: what is at the edge of five minutes may differ.
    kept, had = again.total("5m", now), windows.total("5m", now)
    assert abs(kept.num_ended - had.num_ended) <= 1
