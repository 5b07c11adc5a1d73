"""First runs of a new runner: compiled code is loaded, caches are filled, a few steps are timed.

Everything runs on the scratch page, so the pool stays as it was and the page ledger never knows.
"""

import time
from dataclasses import dataclass

import numpy as np

from engine.resident_runner import ResidentRunner
from engine.runner import TorchRunner
from node.runner import ChunkQuestion, SampleRequest, SequenceStep, StepBatch
from tandem.sampling import SamplingParams

NUM_REPEATS = 2
AnyRunner = TorchRunner | ResidentRunner


@dataclass(frozen=True, slots=True)
class StepSample:
    """One timed step: rows of prefill and decode, tokens of KV that its rows attend to, time.

    For a prefill chunk that starts at 0 the context is its own length.
    """

    num_prefill_tokens: int
    num_decode_rows: int
    context_tokens: int
    seconds: float


def warm_up(
    runner: AnyRunner, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
) -> tuple[StepSample, ...]:
    """Time prefill chunks and decode batches of a few sizes, each after a first untimed run."""
    chunk = min(max_num_batched_tokens, max_model_len)
    _draw(runner)
    context = min(256, max_model_len)
    samples = [_time_prefill(runner, num_tokens) for num_tokens in sorted({min(16, chunk), chunk})]
    for num_rows in sorted({1, min(8, max_num_seqs), max_num_seqs}):
        step = StepBatch((), padding_contexts=(context,) * num_rows)
        samples.append(StepSample(0, num_rows, num_rows * context, _seconds(runner, step)))
    return tuple(samples)


def _time_prefill(runner: AnyRunner, num_tokens: int) -> StepSample:
    step = StepBatch((_prompt(runner, num_tokens, SamplingParams(temperature=0.0)),))
    return StepSample(num_tokens, 0, num_tokens, _seconds(runner, step))


def _draw(runner: AnyRunner) -> None:
    """Load the sampler's code: the first sampled request must not hold the others' tokens up."""
    runner.run(StepBatch((_prompt(runner, 1, SamplingParams(temperature=1.0, top_p=0.9)),)))


def _prompt(runner: AnyRunner, num_tokens: int, params: SamplingParams) -> SequenceStep:
    """A prompt whose KV goes to the scratch page; it is classified where nothing can be drawn."""
    nothing = np.zeros(0, np.int32)
    table = np.full(runner.layout.num_pages_for(num_tokens), runner.pool.scratch_page, np.int32)
    tokens = np.zeros(num_tokens, np.int32)
    if not runner.generates:
        return SequenceStep(tokens, 0, table, None, ChunkQuestion("classes"))
    request = SampleRequest(params, 0, 0, 0, nothing, nothing, ())
    return SequenceStep(tokens, 0, table, request)


def _seconds(runner: AnyRunner, step: StepBatch) -> float:
    """Best of a few timed runs after an untimed one."""
    runner.run(step)
    times = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter()
        runner.run(step)
        times.append(time.perf_counter() - started)
    return min(times)
