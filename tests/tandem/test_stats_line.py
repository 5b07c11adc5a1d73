"""The line of figures: rates between two samples, quiet while nothing happens."""

import asyncio
import logging

import pytest

from tandem.service import log_stats
from tandem.stats_line import Sample, StatsLine

IDLE = Sample(num_prompt_tokens=100, num_output_tokens=50, num_running=0, num_waiting=0)
BUSY = Sample(
    num_prompt_tokens=400, num_output_tokens=150, num_running=3, num_waiting=2,
    num_cached_tokens=100, kv_usage=0.25,
)  # fmt: skip


def test_rates_are_of_the_time_between_two_samples() -> None:
    stats = StatsLine(0.0)
    assert stats.take(IDLE, 5.0) is None
    line = stats.take(BUSY, 15.0)
    assert line == (
        logging.INFO,
        "Avg prompt throughput: 30.0 tokens/s, Avg generation throughput: 10.0 tokens/s, "
        "Running: 3 reqs, Waiting: 2 reqs, KV cache usage: 25.0%, Prefix cache hit rate: 25.0%",
    )


def test_a_gpu_is_named_and_a_gateway_has_no_pages() -> None:
    stats = StatsLine(0.0, "cuda:0")
    stats.take(BUSY, 1.0)
    assert ", GPU KV cache usage: 25.0%" in str(stats.take(BUSY, 2.0))
    stats.take(IDLE, 3.0)
    assert "KV cache" not in str(stats.take(IDLE, 4.0))


def test_an_idle_line_is_for_debugging() -> None:
    stats = StatsLine(0.0)
    stats.take(IDLE, 1.0)
    line = stats.take(IDLE, 11.0)
    assert line is not None and line[0] == logging.DEBUG
    assert line[1].startswith("Avg prompt throughput: 0.0 tokens/s")
    assert stats.take(IDLE, 11.0) is None  # no time has passed


def test_the_loop_writes_to_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.service.STATS_S", 0.01)
    samples = iter([IDLE, BUSY])

    async def run() -> None:
        with pytest.raises(RuntimeError):  # the samples have ended
            await log_stats(logging.getLogger("tandem.node"), lambda: next(samples))

    with caplog.at_level(logging.INFO, "tandem.node"):
        asyncio.run(run())
    assert [record.message[:22] for record in caplog.records] == ["Avg prompt throughput:"]
