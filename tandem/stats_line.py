"""The line of figures that a node or gateway logs every ten seconds; words that operators grep.

Pure: made from two samples of counters.
"""

import logging
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters since the start, and what is there now.

    `kv_usage` is the share of KV pages that requests hold, None where there are none (gateways).
    `num_prompt_tokens` were computed, `num_cached_tokens` found in a prefix cache.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_running: int
    num_waiting: int
    num_cached_tokens: int = 0
    kv_usage: float | None = None


class StatsLine:
    """Made from one sample to the next; times are the caller's monotonic clock."""

    def __init__(self, now: float, device: str = "cpu") -> None:
        self._pages_of = "GPU " * device.startswith("cuda")
        self._at = now
        self._last: Sample | None = None

    def take(self, sample: Sample, now: float) -> tuple[int, str] | None:
        """The level and the text of the line; the level is debug where nothing happened.

        None for the first sample, which nothing precedes.
        """
        before, seconds = self._last, now - self._at
        self._last, self._at = sample, now
        if before is None or seconds <= 0:
            return None
        num_prompt = sample.num_prompt_tokens - before.num_prompt_tokens
        num_output = sample.num_output_tokens - before.num_output_tokens
        num_cached = sample.num_cached_tokens - before.num_cached_tokens
        parts = [
            f"Avg prompt throughput: {num_prompt / seconds:.1f} tokens/s",
            f"Avg generation throughput: {num_output / seconds:.1f} tokens/s",
            f"Running: {sample.num_running} reqs",
            f"Waiting: {sample.num_waiting} reqs",
        ]
        if sample.kv_usage is not None:
            parts.append(f"{self._pages_of}KV cache usage: {sample.kv_usage:.1%}")
        hits = num_cached / (num_cached + num_prompt) if num_cached > 0 else 0.0
        parts.append(f"Prefix cache hit rate: {hits:.1%}")
        is_idle = not (num_prompt or num_output or sample.num_running or sample.num_waiting)
        return logging.DEBUG if is_idle else logging.INFO, ", ".join(parts)
