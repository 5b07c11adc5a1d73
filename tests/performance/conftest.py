"""A small node with round numbers, and workloads that need no files."""

import pytest

from loadgen.traces import Trace, TraceRequest, constant_trace
from simulator.performance.arrivals import Load, Process
from simulator.performance.profiles import Profile, Regime
from simulator.performance.scenario import Scenario, parse_layout

BLOCK_TOKENS = 64


def make_profile(**changes) -> Profile:
    regime = Regime(
        prefill_base_s=0.010,
        decode_base_s=0.008,
        prefill_token_s=1e-4,
        prefill_context_s=1e-8,
        decode_row_s=1e-4,
        decode_context_s=1e-7,
    )
    values = {
        "name": "test",
        "source": "made up",
        "num_pages": 2000,
        "kv_bytes_per_token": 1000,
        "regimes": (regime,),
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "transfer_bytes_per_s": 1e8,
        "transfer_s": 0.001,
        "control_s": 0.0005,
        "swap_bytes_per_s": 1e9,
    }
    return Profile(**(values | changes))


def mixed_trace(num_requests: int = 200) -> Trace:
    """Lengths from 1 to some hundred, every third request shares a prefix with earlier ones."""
    requests = []
    for i in range(num_requests):
        num_prompt = 1 + (i * 97) % 700
        family = i % 3
        num_full = num_prompt // BLOCK_TOKENS
        shared = [-100 * family - b for b in range(min(num_full, 3))]
        own = [1000 * (i + 1) + b for b in range(num_full - len(shared))]
        requests.append(TraceRequest(i * 0.01, num_prompt, 1 + (i * 31) % 60, (*shared, *own)))
    return Trace("mixed", tuple(requests), has_times=True, block_tokens=BLOCK_TOKENS)


def make_scenario(layout: str = "1p1d", rate: float = 20.0, **changes) -> Scenario:
    trace = changes.pop("trace", None) or mixed_trace()
    process: Process = changes.pop("process", "poisson")
    num_requests = changes.pop("num_requests", len(trace.requests))
    load = Load(trace=trace, num_requests=num_requests, rate=rate, process=process)
    profile = changes.pop("profile", None) or make_profile()
    return Scenario(profile=profile, layout=parse_layout(layout), load=load, **changes)


@pytest.fixture
def steady_trace() -> Trace:
    return constant_trace(100, 20)
