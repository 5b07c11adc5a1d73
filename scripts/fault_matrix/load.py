"""Requests in flight while something breaks, and what each client saw: every token and when.

The oracle is the undisturbed answer: for the fake device the chain of `fake_token`, for a real
model what the same deployment answered before anything was broken.
"""

import asyncio
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from node.fake_runner import fake_token
from tandem.async_client import AsyncClient
from tandem.errors import TandemError
from tandem.sampling import SamplingParams

VOCAB = 4096
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its prompt and the answer that nothing may change."""

    prompt_ids: Tokens
    num_tokens: int
    seed: int
    answer: Tokens = ()


@dataclass(slots=True)
class Trace:
    """What one client saw; times are monotonic. `error` is how a failed request was reported."""

    job: Job
    accepted_at: float | None = None
    token_times: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    ended_at: float | None = None
    error: str | None = None
    was_left: bool = False  # its client left on purpose

    @property
    def problem(self) -> str | None:
        """How it differs from the undisturbed answer; None where it does not."""
        if self.was_left:
            ahead = self.job.answer[: len(self.ids)]
            return None if tuple(self.ids) == ahead else "a client that left had other tokens"
        if self.error is not None:
            return f"failed after {len(self.ids)} tokens: {self.error}"
        if self.ended_at is None:
            return f"no end; {len(self.ids)} of {self.job.num_tokens} tokens"
        if tuple(self.ids) != self.job.answer:
            same = sum(a == b for a, b in zip(self.ids, self.job.answer, strict=False))
            return f"other tokens: {len(self.ids)} of {len(self.job.answer)}, {same} in place"
        return None


@dataclass(frozen=True, slots=True)
class Violations:
    """Requests that broke a promise of the design, by the promise."""

    tokens: int = 0  # I1: missing, doubled, reordered or other tokens
    ends: int = 0  # I2: none, in the time that every request has
    failures: int = 0  # I14: failed although nodes of both roles were left


def count_violations(traces: Sequence[Trace]) -> Violations:
    """Over the clients that did not leave on purpose; who left may not have seen other tokens."""
    stayed = [trace for trace in traces if not trace.was_left]
    return Violations(
        tokens=sum(tuple(t.ids) != t.job.answer[: len(t.ids)] for t in traces),
        ends=sum(t.ended_at is None for t in stayed),
        failures=sum(t.error is not None for t in stayed),
    )


def make_jobs(
    num_jobs: int, rng: random.Random, *, prompt: tuple[int, int], output: tuple[int, int]
) -> list[Job]:
    """Jobs with lengths within the bounds; answers as the fake device gives them."""
    jobs = []
    for _ in range(num_jobs):
        ids = tuple(rng.randrange(1, VOCAB) for _ in range(rng.randint(*prompt)))
        num_tokens = rng.randint(*output)
        jobs.append(Job(ids, num_tokens, rng.getrandbits(32), fake_answer(ids, num_tokens)))
    return jobs


def fake_answer(prompt_ids: Tokens, num_tokens: int) -> Tokens:
    """What the fake device says after a prompt."""
    history = list(prompt_ids)
    for _ in range(num_tokens):
        history.append(fake_token(np.array(history, np.int32), VOCAB))
    return tuple(history[len(prompt_ids) :])


class Load:
    """Clients on a thread of their own; traces may be read while they run."""

    def __init__(self, gateways: Sequence[str], jobs: Sequence[Job]) -> None:
        self.traces = [Trace(job) for job in jobs]
        self._gateways = list(gateways)
        self._loop = asyncio.new_event_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = threading.Thread(target=self._run, name="load")
        self._ended = threading.Event()

    def start(self) -> None:
        """Submit everything at once."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            self._ended.set()

    async def _serve(self) -> None:
        async with AsyncClient(",".join(self._gateways)) as client:
            self._tasks = [asyncio.create_task(self._ask(client, t)) for t in self.traces]
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, client: AsyncClient, trace: Trace) -> None:
        job = trace.job
        params = SamplingParams(
            max_tokens=job.num_tokens, temperature=0.0, ignore_eos=True, seed=job.seed
        )
        try:
            stream = await client.submit(prompt_ids=job.prompt_ids, params=params)
            trace.accepted_at = time.monotonic()
            async with stream:
                async for chunk in stream:
                    trace.ids += chunk.token_ids
                    trace.token_times += [time.monotonic()] * len(chunk.token_ids)
        except TandemError as error:
            trace.error = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            trace.was_left = True
        trace.ended_at = time.monotonic()

    def leave(self, indices: Sequence[int]) -> None:
        """These clients go away in the middle."""

        async def cancel() -> None:
            for index in indices:
                self._tasks[index].cancel()

        self._call(cancel())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    def wait(self, timeout_s: float) -> bool:
        """Whether all ended within the time; those that did not are given up."""
        is_over = self._ended.wait(timeout_s)
        if not is_over:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks])
        self._thread.join(10)
        if not is_over:
            for trace in self.traces:
                trace.was_left, trace.ended_at = False, None if trace.was_left else trace.ended_at
        return is_over

    def wait_until(self, phase: "PhaseTest", timeout_s: float) -> bool:
        """Wait for a moment that `phase` recognises."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if phase(self.traces):
                return True
            if self._ended.is_set():
                return False
            time.sleep(0.002)
        return False

    def recovery_s(self, struck_at: float) -> float:
        """The longest silence of a stream that was in flight when it struck, as of then."""
        gaps = [0.0]
        for trace in self.traces:
            if trace.accepted_at is None or trace.accepted_at > struck_at or trace.was_left:
                continue
            ended = [] if trace.ended_at is None else [trace.ended_at]
            events = [at for at in (*trace.token_times, *ended) if at > struck_at]
            gaps += [late - early for early, late in pairwise((struck_at, *events))]
        return max(gaps)


@dataclass(frozen=True, slots=True)
class PhaseTest:
    """Recognises a moment of the load: `share` of the requests have at least `num_tokens`.

    With `num_tokens` 0: that share has been accepted. `num_left`: counted from the end instead.
    """

    num_tokens: int = 0
    share: float = 0.5
    num_left: int | None = None

    def __call__(self, traces: Sequence[Trace]) -> bool:
        """Whether the moment has come."""
        there = sum(self._is_there(trace) for trace in traces)
        return there >= max(1, self.share * len(traces))

    def _is_there(self, trace: Trace) -> bool:
        if trace.accepted_at is None:
            return False
        wanted = self.num_tokens
        if self.num_left is not None:
            wanted = trace.job.num_tokens - self.num_left
        return len(trace.ids) >= wanted
