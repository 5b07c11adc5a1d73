"""A minute of ten times what the deployment can do, over HTTP: who is told what, and when?"""

import statistics

import aiohttp
import numpy as np

from loadgen.arrivals import poisson_arrivals
from loadgen.drive import UNFINISHED, Driven, drive
from loadgen.http_session import open_http_target
from loadgen.http_target import HttpTarget
from loadgen.target import Prompted
from loadgen.traffic import FIRST_ID, Due
from scripts.attacks_test.outcome import Outcome
from tandem.launch import LocalCluster

MODEL, VOCAB_SIZE = "models/demo", 4096
# Slept, so that callers take nothing from steps; slow, so that ten times the capacity is little
# enough for two cores that gateway and callers share.
PACED = ("--device", "fake", "--fake-costs", "0.01:0.0015:0:0.0015:0", "--num-pages", "4096")
TTFT_MS, TPOT_MS, LAX_MS = 500.0, 50.0, 600_000.0
FACTOR, SECONDS, QUICK_SECONDS = 10.0, 60.0, 4.0
NUM_PROMPT, NUM_TOKENS = 40, 40
IN_FLIGHT = 64
REFUSED = ("overloaded", "unavailable")
LEAST_KEPT = 0.8


async def attack(quick: bool) -> Outcome:
    """Capacity by a closed loop, then the open loop far above it."""
    outcome = Outcome()
    with LocalCluster(model=MODEL, node_args=PACED) as cluster:
        url = cluster.http_address
        async with open_http_target(url, None, "completions", None, 10.0) as target:
            capacity = await _capacity_per_s(target, 100 if quick else 400)
            seconds = QUICK_SECONDS if quick else SECONDS
            times = poisson_arrivals(FACTOR * capacity, round(FACTOR * capacity * seconds), 2)
            driven = await drive(
                target, _traffic(times, 3, TTFT_MS, TPOT_MS), max_in_flight=None, drain_s=20.0
            )
            is_open = await _is_healthy(target)
        _judge(outcome, driven, capacity, seconds)
        outcome.expect(is_open, "/health does not answer afterwards")
        outcome.expect(not cluster.dead(), f"processes ended: {cluster.dead()}")
    return outcome


async def _capacity_per_s(target: HttpTarget, num_requests: int) -> float:
    """Answers per second of a closed loop whose requests want nothing soon: none is refused."""
    requests = _traffic([0.0] * num_requests, 1, LAX_MS, LAX_MS)
    closed = await drive(target, requests, max_in_flight=IN_FLIGHT, drain_s=0.0)
    num_answered = sum(fate.sample is not None for fate in closed.fates)
    if num_answered < num_requests:
        raise ValueError(f"{num_requests - num_answered} of the closed loop were not answered")
    return num_answered / closed.duration_s


def _traffic(times: list[float], seed: int, ttft_ms: float, tpot_ms: float) -> list[Due]:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(FIRST_ID, VOCAB_SIZE, NUM_PROMPT).tolist() for _ in times]
    return [
        Due(at_s, Prompted(prompt, NUM_TOKENS, ttft_ms, tpot_ms))
        for at_s, prompt in zip(times, prompts, strict=True)
    ]


def _judge(outcome: Outcome, driven: Driven, capacity: float, seconds: float) -> None:
    answered = [fate.sample for fate in driven.fates if fate.sample is not None]
    refused = [fate for fate in driven.fates if fate.error_code in REFUSED]
    errors = {f.error_code for f in driven.fates} - {None, UNFINISHED, *REFUSED}
    num_good = sum(
        s.ttft_s * 1e3 <= TTFT_MS and (s.tpot_s or 0.0) * 1e3 <= TPOT_MS for s in answered
    )
    num_admitted = len(driven.fates) - len(refused)
    waits_ms = [fate.error_after_s * 1e3 for fate in refused]
    outcome.note("capacity", f"{capacity:.1f}/s")
    outcome.note("offered", f"{len(driven.fates)} in {seconds:.0f} s")
    outcome.note("answered", f"{len(answered)}")
    outcome.note("within 500 ms and 50 ms", f"{num_good} = {num_good / seconds:.1f}/s")
    outcome.note("of what was admitted", f"{num_good / max(1, num_admitted):.0%}")
    outcome.note("refused", f"{len(refused)}")
    if waits_ms:
        worst = max(waits_ms)
        outcome.note("refusals", f"median {statistics.median(waits_ms):.0f} ms, worst {worst:.0f}")
    without = sum(fate.retry_after_s is None for fate in refused)
    outcome.expect(not without, f"{without} refusals had no Retry-After")
    outcome.expect(not errors, f"other errors: {sorted(str(e) for e in errors)}")
    outcome.expect(bool(refused), "nothing was refused")
    kept = num_good / max(1, num_admitted)
    outcome.expect(kept >= LEAST_KEPT, f"only {kept:.0%} of what was admitted kept its targets")


async def _is_healthy(target: HttpTarget) -> bool:
    timeout = aiohttp.ClientTimeout(5.0)
    async with target.session.get(target.url + "/health", timeout=timeout) as answer:
        return answer.status == 200
