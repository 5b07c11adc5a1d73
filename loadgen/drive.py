"""Runs traffic at a target: every request at its time, or as soon as one of the allowed is done.

Latencies count from when a request was due. With a limit of requests in flight one that has to wait
for its turn is late, and that is part of its latency: a limit closes the loop no further than its
user asked. What is refused, fails or is not done at the end is counted and never retried.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from loadgen.measure import RequestSample
from loadgen.target import Target
from loadgen.traffic import Due
from tandem.errors import TandemError

UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a request: a sample, or why there is none and when that was known.

    Seconds of `sample` and `error_after_s` count from when it was due, `late_s` is how long after
    that it was sent.
    """

    due: Due
    late_s: float
    sample: RequestSample | None = None
    error_code: str | None = None
    error_text: str | None = None
    error_after_s: float = 0.0
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Driven:
    """A run, `duration_s` long, from the first due time to the end of the last request."""

    fates: tuple[Fate, ...]
    duration_s: float


async def drive(
    target: Target,
    traffic: Sequence[Due],
    *,
    max_in_flight: int | None,
    drain_s: float,
    on_end: Callable[[], None] = lambda: None,
) -> Driven:
    """Send everything; what is not done `drain_s` after the last due time is cut off.

    With a limit in flight the last due time says little: the limit's queue is waited for.
    """
    gate = _Gate(max_in_flight)
    start = time.perf_counter()
    tasks = [asyncio.create_task(_send(target, due, start, gate, on_end)) for due in traffic]
    patience_s = None if max_in_flight is not None else traffic[-1].at_s + drain_s
    try:
        _, late = await asyncio.wait(tasks, timeout=patience_s)
    except asyncio.CancelledError:
        late = set(tasks)
        raise
    finally:
        for task in late:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    return Driven(tuple(_fates(traffic, results)), time.perf_counter() - start)


def _fates(traffic: Sequence[Due], results: Sequence[Fate | BaseException]) -> list[Fate]:
    fates = []
    for due, result in zip(traffic, results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            result = Fate(due, 0.0, error_code=UNFINISHED)
        if isinstance(result, BaseException):
            raise result
        fates.append(result)
    return fates


class _Gate:
    """At most so many at once; None: all."""

    def __init__(self, limit: int | None) -> None:
        self._semaphore = None if limit is None else asyncio.Semaphore(limit)

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        if self._semaphore is None:
            yield
            return
        async with self._semaphore:
            yield


async def _send(
    target: Target, due: Due, start: float, gate: _Gate, on_end: Callable[[], None]
) -> Fate:
    due_at = start + due.at_s
    await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
    async with gate.entered():
        late_s = time.perf_counter() - due_at
        try:
            sample = await target.send(due.request, due_at)
        except TandemError as error:
            after_s = time.perf_counter() - due_at
            return Fate(due, late_s, None, error.code, str(error), after_s, error.retry_after_s)
        finally:
            on_end()
    return Fate(due, late_s, sample)
