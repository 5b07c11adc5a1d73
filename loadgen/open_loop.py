"""Sends requests at their times, whatever becomes of those before; latencies count from the times.

What is refused, fails or is not done at the end is counted with its reason and never retried: a
retry would turn the open loop into a closed one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loadgen.drive import UNFINISHED, drive
from loadgen.measure import RequestSample
from loadgen.target import Prompted, ZmqTarget
from loadgen.traffic import Due
from tandem.async_client import AsyncClient, RequestOptions


@dataclass(frozen=True, slots=True)
class DueRequest:
    """A request, when it is due in seconds from the start, and what counts as good."""

    at_s: float
    prompt_len: int
    num_tokens: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: a sample, or the code of its error and when that came.

    Seconds count from when the request was due; `late_s` is how long after that it was sent.
    """

    request: DueRequest
    late_s: float
    sample: RequestSample | None = None
    error_code: str | None = None
    error_after_s: float = 0.0
    retry_after_s: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether it was answered within both of its targets, as its client saw it."""
        sample, request = self.sample, self.request
        if sample is None or sample.ttft_s > request.ttft_s:
            return False
        return sample.tpot_s is None or sample.tpot_s <= request.tpot_s


@dataclass(frozen=True, slots=True)
class OpenMeasurement:
    """A run; `span_s` is the time over which requests were due, the base of all rates."""

    outcomes: tuple[Outcome, ...]
    span_s: float
    samples: tuple[RequestSample, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Those that were answered."""
        done = tuple(o.sample for o in self.outcomes if o.sample is not None)
        object.__setattr__(self, "samples", done)

    @property
    def goodput_per_s(self) -> float:
        """Requests answered within their targets, per second."""
        return sum(o.is_good for o in self.outcomes) / self.span_s

    @property
    def refusals(self) -> tuple[Outcome, ...]:
        """Those that the system refused, not those that were cut off at the end."""
        return tuple(o for o in self.outcomes if o.error_code not in (None, UNFINISHED))


async def run_open_loop(
    client: AsyncClient,
    requests: Sequence[DueRequest],
    *,
    vocab_size: int,
    drain_s: float,
    seed: int = 0,
    sla_class: str | None = None,
) -> OpenMeasurement:
    """Random prompts at their times; what is not done `drain_s` after the last is cancelled.

    The targets travel with the requests, unless an `sla_class` does.
    """
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, vocab_size, each.prompt_len).tolist() for each in requests]
    options: RequestOptions = {} if sla_class is None else {"sla_class": sla_class}
    traffic = [
        Due(each.at_s, _prompted(each, prompt, has_class=sla_class is not None))
        for each, prompt in zip(requests, prompts, strict=True)
    ]
    target = ZmqTarget(client, options)
    driven = await drive(target, traffic, max_in_flight=None, drain_s=drain_s)
    outcomes = tuple(
        Outcome(
            request, fate.late_s, fate.sample, fate.error_code, fate.error_after_s,
            fate.retry_after_s,
        )
        for request, fate in zip(requests, driven.fates, strict=True)
    )  # fmt: skip
    return OpenMeasurement(outcomes, requests[-1].at_s)


def _prompted(request: DueRequest, prompt_ids: list[int], *, has_class: bool) -> Prompted:
    if has_class:
        return Prompted(prompt_ids, request.num_tokens)
    ttft_ms, tpot_ms = request.ttft_s * 1e3, request.tpot_s * 1e3
    return Prompted(prompt_ids, request.num_tokens, ttft_ms, tpot_ms)
