"""Schedules of an open loop, and that latencies count from when a request was due."""

import asyncio
import statistics
from dataclasses import replace

import pytest

from loadgen import target
from loadgen.arrivals import gamma_arrivals, poisson_arrivals, scaled_arrivals
from loadgen.drive import UNFINISHED
from loadgen.measure import RequestSample
from loadgen.open_loop import DueRequest, OpenMeasurement, Outcome, run_open_loop
from tandem.errors import OverloadedError
from tandem.messages.common import Timeline

REQUEST = DueRequest(0.0, 4, 3, ttft_s=1.0, tpot_s=0.1)
SAMPLE = RequestSample(3, 0.5, (0.1, 0.1), 0.7, True, "r", Timeline(received_unix_s=0.0))


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in zip([0.0, *times], times, strict=False)]


def test_poisson_gaps_have_the_rate_and_its_spread() -> None:
    drawn = gaps(poisson_arrivals(20.0, 4000, seed=1))
    assert statistics.mean(drawn) == pytest.approx(0.05, rel=0.06)
    assert statistics.pstdev(drawn) == pytest.approx(0.05, rel=0.1)
    assert poisson_arrivals(20.0, 9, seed=1) == poisson_arrivals(20.0, 9, seed=1)
    assert poisson_arrivals(20.0, 9, seed=1) != poisson_arrivals(20.0, 9, seed=2)


def test_bursts_keep_the_rate() -> None:
    drawn = gaps(gamma_arrivals(20.0, 20_000, seed=1, variation=3.0))
    assert statistics.mean(drawn) == pytest.approx(0.05, rel=0.1)
    assert statistics.pstdev(drawn) == pytest.approx(0.15, rel=0.15)
    with pytest.raises(ValueError, match="above 0"):
        gamma_arrivals(0.0, 3, 1, variation=1.0)


def test_a_trace_is_stretched_to_a_rate() -> None:
    assert scaled_arrivals([10, 11, 14], 1.0) == [0.0, 0.5, 2.0]
    with pytest.raises(ValueError, match="different times"):
        scaled_arrivals([3, 3], 1.0)


def test_good_is_within_both_targets() -> None:
    assert Outcome(REQUEST, 0.0, SAMPLE).is_good
    assert not Outcome(REQUEST, 0.0, replace(SAMPLE, ttft_s=1.1)).is_good
    assert not Outcome(REQUEST, 0.0, replace(SAMPLE, end_s=0.75)).is_good
    assert not Outcome(REQUEST, 0.0, error_code="overloaded").is_good
    one = Outcome(REQUEST, 0.0, replace(SAMPLE, num_tokens=1, gaps_s=()))
    assert one.is_good
    cut = Outcome(REQUEST, 0.0, error_code=UNFINISHED)
    refused = Outcome(REQUEST, 0.0, error_code="overloaded")
    measured = OpenMeasurement((one, one, cut, refused), span_s=4.0)
    assert measured.goodput_per_s == 0.5 and len(measured.samples) == 2
    assert measured.refusals == (refused,)


def test_times_count_from_when_a_request_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall of the sender must show in the latencies: the second request is due within it."""
    sinces: dict[int, float] = {}

    async def fake(client, prompt_ids, num_tokens, *, since, **options):
        sinces[num_tokens] = since
        if num_tokens == 1:
            for _ in range(3):  # a stall: nothing else runs
                await asyncio.sleep(0)
        if num_tokens == 2:
            raise OverloadedError("too much", code="overloaded", retry_after_s=2.0)
        if num_tokens == 4:
            await asyncio.sleep(30)
        return SAMPLE

    monkeypatch.setattr(target, "measure_request", fake)
    requests = [replace(REQUEST, at_s=0.01 * n, num_tokens=n) for n in (1, 2, 3, 4)]
    measured = asyncio.run(run_open_loop(None, requests, vocab_size=9, drain_s=0.05))
    first = sinces[1]
    assert [sinces[n] - first for n in (2, 3, 4)] == pytest.approx([0.01, 0.02, 0.03])
    codes = [outcome.error_code for outcome in measured.outcomes]
    assert codes == [None, "overloaded", None, UNFINISHED]
    assert measured.refusals[0].retry_after_s == 2.0
    assert all(outcome.late_s >= 0 for outcome in measured.outcomes)
