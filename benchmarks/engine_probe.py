"""Steps of the real engine, timed directly: one runner in this process, no sockets."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.build import EngineOptions, build_runner
from engine.runner import TorchRunner
from node.runner import SampleRequest, SequenceStep, StepBatch
from scheduling.costs import StepShape, num_pairs
from tandem.model_folder import load_model_config
from tandem.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class TimedStep:
    """What a step computed and how long it took: the least of its repeats."""

    shape: StepShape
    seconds: float


class EngineProbe:
    """A runner over `num_pages` pages of the model in `folder`, on one thread of the CPU."""

    def __init__(self, folder: Path, *, num_pages: int, max_model_len: int | None = None) -> None:
        torch.set_num_threads(1)
        options = EngineOptions(num_pages=num_pages, max_model_len=max_model_len)
        built = build_runner(
            folder,
            load_model_config(folder),
            options,
            on_phase=lambda name, seconds: None,
            progress=lambda num_done, num_total: None,
        )
        self._runner: TorchRunner = built.runner
        self._next_page = 0

    def step(
        self, chunks: list[tuple[int, int]], contexts: list[int], num_repeats: int
    ) -> TimedStep:
        """Chunks of (tokens, tokens before them) beside decode rows with these contexts."""
        self._next_page = 0
        sequences = [self._sequence(1, context - 1) for context in contexts]
        sequences += [self._sequence(num_new, start) for num_new, start in chunks]
        batch = StepBatch(tuple(sequences))
        shape = StepShape(
            sum(num_new for num_new, _ in chunks),
            sum(num_pairs(num_new, start) for num_new, start in chunks),
            len(contexts),
            sum(contexts),
        )
        return TimedStep(shape, timed(lambda: self._runner.run(batch), num_repeats))

    def _sequence(self, num_new: int, start: int) -> SequenceStep:
        num_pages = self._runner.layout.num_pages_for(start + num_new)
        pages = np.arange(self._next_page, self._next_page + num_pages, dtype=np.int32)
        self._next_page += num_pages
        if self._next_page > self._runner.num_pages:
            raise ValueError(f"the probe has {self._runner.num_pages} pages: give it more")
        nothing = np.zeros(0, np.int32)
        request = SampleRequest(GREEDY, 0, 0, 0, nothing, nothing, ())
        return SequenceStep(np.full(num_new, 5, np.int32), start, pages, request)


def timed(work: Callable[[], object], num_repeats: int) -> float:
    """Least seconds, after a run that is not counted: what others take from it is not its own.

    On a machine with a load of 13 medians were 5 to 20 times the least, and their ratios noise.
    """
    work()
    times = []
    for _ in range(num_repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
