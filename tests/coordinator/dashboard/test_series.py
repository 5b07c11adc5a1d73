"""Samples at three resolutions: means, last values and quantiles, each at its time."""

import pytest

from coordinator.dashboard.series import SeriesBook
from tandem.messages.operations import WINDOWS_S


def test_a_second_shows_what_happened_in_it(world) -> None:
    world.seconds(3)
    world.serve(1)
    world.serve(2, sla_attained=False, tpot_ms=500.0)
    world.seconds(2)
    series = world.observer.series("5m", world.unix_s)
    assert series.step_s == 1
    assert series.unix_s == tuple(world.unix_s - 4 + index for index in range(5))
    assert series.values["requests_per_s"] == (0, 0, 0, 2, 0)
    assert series.values["goodput_per_s"] == (0, 0, 0, 1, 0)
    assert series.values["attainment:standard"] == (None, None, None, 0.5, None)
    assert series.values["attainment:batch"] == (None,) * 5
    assert series.values["num_decode"] == (1,) * 5
    (ttft,) = {each for each in series.values["ttft_p50_ms"] if each is not None}
    assert ttft == pytest.approx(10.0, rel=0.03)
    assert series.values["queue_p50_ms"][3] == pytest.approx(100.0, rel=0.03)
    lengths = {len(values) for values in series.values.values()}
    assert lengths == {5}


def test_longer_steps_are_means_last_values_and_quantiles_of_all() -> None:
    book = SeriesBook(["standard"])
    for second in range(20):
        book.sample({"requests_per_s": second, "num_prefill": second, "busy_decode": None}, second)
    series = book.view("1h", 20, ())
    assert series.unix_s == (0.0, 10.0)  # each is named by its end
    assert series.values["requests_per_s"][-1] == pytest.approx(5.5)  # those of 1 to 10
    assert series.values["num_prefill"][-1] == 10
    assert series.values["busy_decode"][-1] is None


def test_windows_are_bounded_and_end_now() -> None:
    book = SeriesBook([])
    for second in range(2000):
        book.sample({"num_live": 1.0}, 1000 + second)
    assert len(book.view("5m", 3000, ()).unix_s) == WINDOWS_S["5m"]
    assert len(book.view("5m", 3100, ()).unix_s) == WINDOWS_S["5m"] - 100
    assert len(book.view("1h", 3000, ()).unix_s) == 200
    assert book.view("5m", 9000, ()).unix_s == ()


def test_what_is_kept_comes_back_once() -> None:
    book, again = SeriesBook([]), SeriesBook([])
    for second in range(700):
        book.sample({"num_live": float(second)}, 3000 + second)
    closed = book.take_closed()
    assert book.take_closed() == []
    assert {step_s for step_s, _, _ in closed} == {10, 300}
    for step_s, at, values in closed:
        again.restore(step_s, at, values)
    for window in ("1h", "3d"):
        assert again.view(window, 3700, ()) == book.view(window, 3700, ())
    assert again.take_closed() == []
