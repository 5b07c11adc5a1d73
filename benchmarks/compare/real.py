"""The real system under an open loop: one workload, its capacity, the targets of a class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.claims.systems import VOCAB_SIZE
from benchmarks.options import Options
from benchmarks.report import say
from benchmarks.traces import Lengths, sample_lengths
from loadgen.arrivals import poisson_arrivals
from loadgen.measure import run_workload
from loadgen.open_loop import DueRequest, OpenMeasurement, run_open_loop
from loadgen.workload import Workload
from tandem.async_client import AsyncClient

# The demo model takes 4,096 tokens: ShareGPT's prompts and answers are divided by these, so that
# prefill and decode each have about half of the work on one thread.
PROMPT_DIVISOR = 24
OUTPUT_DIVISOR = 6
IN_FLIGHT = 64
SLA_CLASS = "interactive"
# For a coordinator that is to refuse nothing for its predicted latency.
NO_REJECTION = ("--early-rejection", "off")


@dataclass(frozen=True, slots=True)
class Targets:
    """What counts as good, in seconds."""

    ttft_s: float
    tpot_s: float


# Of that class as the coordinator ships it.
TARGETS = Targets(0.5, 0.05)
TARGETS_NOTE = "good: TTFT within 500 ms and TPOT within 50 ms, the class `interactive` as shipped"


def mix(options: Options, count: int, seed: int) -> list[Lengths]:
    """Scaled ShareGPT requests."""
    drawn = sample_lengths("sharegpt", options.traces, count, seed)
    return [
        Lengths(
            max(4, math.ceil(each.num_prompt / PROMPT_DIVISOR)),
            max(2, math.ceil(each.num_output / OUTPUT_DIVISOR)),
        )
        for each in drawn
    ]


async def capacity_per_s(client: AsyncClient, lengths: Sequence[Lengths]) -> float:
    """Requests per second with the system kept full: a closed loop of 64.

    Of the middle of the run: its beginning fills the batch, its end empties it.
    """
    measured = await run_workload(
        client, as_workload(lengths), vocab_size=VOCAB_SIZE, max_in_flight=IN_FLIGHT, seed=2
    )
    if measured.num_failed:
        raise ValueError(f"{measured.num_failed} requests failed: {measured.errors}")
    ends = sorted(
        s.timeline.received_unix_s + (s.timeline.finished_s or 0.0) for s in measured.samples
    )
    first, last = len(ends) // 5, len(ends) - len(ends) // 5 - 1
    return (last - first) / (ends[last] - ends[first])


async def run_at(
    client: AsyncClient,
    options: Options,
    rate_per_s: float,
    seconds: float,
    seed: int,
    *,
    drain_s: float = 15.0,
) -> OpenMeasurement:
    """Poisson arrivals of `interactive` requests for about `seconds`."""
    count = max(4, round(rate_per_s * seconds))
    lengths = mix(options, count, seed)
    times = poisson_arrivals(rate_per_s, count, seed)
    requests = [
        DueRequest(at_s, each.num_prompt, each.num_output, TARGETS.ttft_s, TARGETS.tpot_s)
        for at_s, each in zip(times, lengths, strict=True)
    ]
    say(f"{count} requests at {rate_per_s:.1f}/s")
    return await run_open_loop(
        client,
        requests,
        vocab_size=VOCAB_SIZE,
        drain_s=drain_s,
        seed=seed,
        sla_class=SLA_CLASS,
    )


def as_workload(lengths: Sequence[Lengths]) -> Workload:
    """The same requests for the closed loop."""
    return Workload(
        "mix",
        tuple(each.num_prompt for each in lengths),
        tuple(each.num_output for each in lengths),
    )
