"""Streams that decode all the time, prompts beside them, and the gaps between tokens by window."""

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from benchmarks.stamped import StampBook
from tandem.async_client import AsyncClient
from tandem.sampling import SamplingParams

FIRST_ID = 3
Span = tuple[float, float]  # of time.monotonic, which all processes of a host share


@dataclass(slots=True)
class Windows:
    """When the streams were left alone, and when not."""

    spans: dict[str, list[Span]] = field(default_factory=dict)

    @contextmanager
    def open(self, kind: str) -> Iterator[None]:
        """A window of this kind, until the block ends."""
        began_at = time.monotonic()
        yield
        self.spans.setdefault(kind, []).append((began_at, time.monotonic()))

    def gaps_s(self, kind: str, times_of: Iterable[Sequence[float]]) -> list[float]:
        """Between consecutive tokens that both came in one window; token times per stream."""
        gaps: list[float] = []
        for times in times_of:
            for early, late in itertools.pairwise(times):
                if any(begin <= early and late <= end for begin, end in self.spans.get(kind, ())):
                    gaps.append(late - early)
        return gaps


class Streams:
    """Greedy requests that end when they are stopped."""

    def __init__(
        self, client: AsyncClient, *, num_streams: int, vocab_size: int, max_tokens: int, seed: int
    ) -> None:
        self._client = client
        self._vocab_size = vocab_size
        self._rng = np.random.default_rng(seed)
        self._times: dict[str, list[float]] = {}
        self._tasks = [
            asyncio.create_task(self._decode(self.prompt(32), max_tokens))
            for _ in range(num_streams)
        ]

    def prompt(self, num_tokens: int) -> list[int]:
        """Random ids, so no prefix of it is cached."""
        ids: list[int] = self._rng.integers(FIRST_ID, self._vocab_size, num_tokens).tolist()
        return ids

    async def _decode(self, prompt_ids: list[int], max_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        stream = await self._client.submit(prompt_ids=prompt_ids, params=params)
        async with stream:
            times = self._times.setdefault(stream.request_id, [])
            async for chunk in stream:
                times += [time.monotonic()] * len(chunk.token_ids)

    def check(self) -> None:
        """Raises ValueError where one has ended: there were to be as many all the time."""
        for task in self._tasks:
            if task.done():
                raise ValueError(f"a stream ended early: {task.exception() or 'max_tokens'}")

    async def stop(self) -> None:
        """Cancel them all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def client_times(self) -> list[list[float]]:
        """When tokens came here, by stream."""
        return list(self._times.values())

    def node_times(self, book: StampBook) -> list[list[float]]:
        """When the decode node drew them, by stream."""
        return [book.tokens_of(request_id) for request_id in self._times]
