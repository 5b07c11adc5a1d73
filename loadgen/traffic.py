"""What is sent and when: a trace or drawn lengths, with arrivals of their own or the trace's. Pure.

Prompts are random token ids; where a trace names shared blocks, equal blocks get equal ids, so that
prefix caches see what they would see of the real prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.arrivals import gamma_arrivals, scaled_arrivals
from loadgen.lengths import LengthSource
from loadgen.target import Prompted
from loadgen.traces import Trace, TraceRequest, overlaid, sampled

Arrivals = Literal["poisson", "gamma", "constant", "trace", "burst"]
FIRST_ID = 3  # ids below it are special in many vocabularies


@dataclass(frozen=True, slots=True)
class Due:
    """A request, and when it is due in seconds from the start."""

    at_s: float
    request: Prompted


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`rate_per_s` None: as fast as answers come (burst), or as in the trace. Lengths are divided
    by `divisor`, then clipped so that prompt and answer fit `max_model_len`."""

    arrivals: Arrivals
    num_requests: int
    rate_per_s: float | None
    variation: float = 1.0
    divisor: float = 1.0
    max_model_len: int | None = None
    vocab_size: int = 4096


def arrival_times(shape: Shape, trace: Trace, seed: int) -> list[float]:
    """When each request is due. Raises ValueError where a rate is missing."""
    count, rate = shape.num_requests, shape.rate_per_s
    if shape.arrivals == "burst":
        return [0.0] * count
    if shape.arrivals == "trace":
        if not trace.has_times:
            raise ValueError(f"the trace {trace.name} has no times: choose other --arrivals")
        times = [each.arrived_at for each in trace.requests]
        return times if rate is None else scaled_arrivals(times, rate)
    if rate is None:
        raise ValueError(f"{shape.arrivals} arrivals need --request-rate, in requests per second")
    if shape.arrivals == "constant":
        return [number / rate for number in range(count)]
    variation = shape.variation if shape.arrivals == "gamma" else 1.0
    return gamma_arrivals(rate, count, seed, variation=variation)


def make_traffic(
    shape: Shape, source: Trace | tuple[LengthSource, LengthSource], seed: int
) -> list[Due]:
    """All requests of a run; `source` is a trace, or lengths of prompts and answers."""
    trace = _trace_of(shape, source, seed)
    times = arrival_times(shape, trace, seed)
    rng = np.random.default_rng(seed)
    blocks = _Blocks(trace.block_tokens, shape, seed)
    due = []
    for at_s, each in zip(times, trace.requests, strict=True):
        num_prompt, num_output = _fitting(each.num_prompt, each.num_output, shape)
        ids = blocks.ids(each.blocks)[:num_prompt]
        rest = rng.integers(FIRST_ID, shape.vocab_size, num_prompt - len(ids)).tolist()
        due.append(Due(at_s, Prompted(ids + rest, num_output)))
    return due


def _trace_of(shape: Shape, source: Trace | tuple[LengthSource, LengthSource], seed: int) -> Trace:
    if isinstance(source, Trace):
        pick = overlaid if source.has_times else sampled
        return pick(source, shape.num_requests, seed)
    pairs = zip(*(each.sample(shape.num_requests, seed) for each in source), strict=True)
    requests = tuple(TraceRequest(0.0, prompt, output) for prompt, output in pairs)
    return Trace("drawn", requests, has_times=False)


def _fitting(num_prompt: int, num_output: int, shape: Shape) -> tuple[int, int]:
    num_prompt = max(1, round(num_prompt / shape.divisor))
    num_output = max(1, round(num_output / shape.divisor))
    if shape.max_model_len is None:
        return num_prompt, num_output
    num_prompt = min(num_prompt, shape.max_model_len - 1)
    return num_prompt, min(num_output, shape.max_model_len - num_prompt)


class _Blocks:
    """Token ids of a trace's shared blocks: the same name, the same ids."""

    def __init__(self, block_tokens: int, shape: Shape, seed: int) -> None:
        self._num_tokens = round(block_tokens / shape.divisor)
        self._vocab_size = shape.vocab_size
        self._seed = seed
        self._known: dict[int, list[int]] = {}

    def ids(self, names: Sequence[int]) -> list[int]:
        return [token for name in names for token in self._of(name)]

    def _of(self, name: int) -> list[int]:
        if name not in self._known:
            rng = np.random.default_rng((self._seed, name))
            drawn = rng.integers(FIRST_ID, self._vocab_size, self._num_tokens)
            self._known[name] = drawn.tolist()
        return self._known[name]
