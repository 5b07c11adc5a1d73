"""Sends a workload through a client and records when each token came."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np

from loadgen.workload import Workload
from tandem.async_client import AsyncClient, RequestOptions
from tandem.errors import TandemError
from tandem.messages.common import Timeline
from tandem.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class RequestSample:
    """One request: TTFT, the gaps between its tokens, its end; seconds after it was sent.

    `timeline` is what the gateway says of it, on its own clock.
    """

    num_tokens: int
    ttft_s: float
    gaps_s: tuple[float, ...]
    end_s: float
    sla_attained: bool
    request_id: str
    timeline: Timeline
    num_cached_tokens: int = 0

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        rest = self.num_tokens - 1
        return (self.end_s - self.ttft_s) / rest if rest > 0 else None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A run over a workload."""

    samples: tuple[RequestSample, ...]
    num_failed: int
    errors: tuple[str, ...]
    duration_s: float

    @property
    def num_tokens(self) -> int:
        """Tokens received."""
        return sum(s.num_tokens for s in self.samples)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens received per second of the whole run."""
        return self.num_tokens / self.duration_s


async def run_workload(
    client: AsyncClient, workload: Workload, *, vocab_size: int, max_in_flight: int, seed: int = 0
) -> Measurement:
    """Random prompts of the workload's lengths, outputs of exactly its lengths.

    At most `max_in_flight` requests at once, in order; failed requests are counted and named.
    """
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, vocab_size, n).tolist() for n in workload.prompt_lens]
    todo = iter(list(zip(prompts, workload.output_lens, strict=True)))
    samples: list[RequestSample] = []
    errors: list[str] = []

    async def work() -> None:
        for prompt, num_tokens in todo:
            try:
                samples.append(await measure_request(client, prompt, num_tokens))
            except TandemError as error:
                errors.append(str(error))

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(min(max_in_flight, len(prompts)))))
    duration_s = time.perf_counter() - started
    return Measurement(tuple(samples), len(errors), tuple(sorted(set(errors))[:5]), duration_s)


async def measure_request(
    client: AsyncClient,
    prompt_ids: Sequence[int],
    num_tokens: int,
    *,
    since: float | None = None,
    **options: Unpack[RequestOptions],
) -> RequestSample:
    """One greedy request of exactly `num_tokens` output tokens.

    Times count from `since`, on the clock of `time.perf_counter`; by default from now.
    """
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    began = time.perf_counter() if since is None else since
    times: list[float] = []
    num_received = 0
    asked: RequestOptions = {**options, "params": params}
    stream = await client.submit(prompt_ids=prompt_ids, **asked)
    async with stream:
        async for chunk in stream:
            times.append(time.perf_counter() - began)
            num_received += len(chunk.token_ids)
        result = stream.result
    gaps = tuple(b - a for a, b in itertools.pairwise(times))
    return RequestSample(
        num_received,
        times[0],
        gaps,
        times[-1],
        result.sla_attained,
        result.request_id,
        result.timeline,
        result.usage.num_cached_tokens,
    )
