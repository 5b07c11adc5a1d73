"""The simulator beside the real system: the same requests at the same times, one profile.

The profile is learned from the real system on other requests than those compared. Where the two
differ by less than the real system differs from itself over five runs, nothing can be told.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.claims.systems import Deployment
from benchmarks.compare.calibration import (
    KV_BYTES_PER_TOKEN,
    NODE_ARGS,
    PACED_FLAGS,
    Calibration,
    calibrate,
)
from benchmarks.compare.real import NO_REJECTION, SLA_CLASS, capacity_per_s, mix, run_at
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.checkpoint import Shape
from loadgen.open_loop import OpenMeasurement
from loadgen.traces import Trace, TraceRequest
from scheduling.batch.catalogue import BATCH_POLICIES
from simulator.performance.arrivals import Load
from simulator.performance.profiles import Profile
from simulator.performance.results import Result
from simulator.performance.scenario import Scenario, parse_layout, simulate

FACTORS = (0.5, 0.85)


@dataclass(frozen=True, slots=True)
class Compared:
    """What really runs: flags of its nodes, and the shape of a model other than the demo's."""

    node_args: tuple[str, ...] = NODE_ARGS
    kv_bytes_per_token: int = KV_BYTES_PER_TOKEN
    shape: Shape | None = None
    seconds: float = 10.0


DEMO = Compared()
# Real processes and pages, and a device that sleeps: two nodes, gateway and client on two cores
# slow each other's steps down, which no simulator of one node's device can know.
PACED = Compared((*NODE_ARGS, *PACED_FLAGS), 8)
# Steps of some 20 ms instead of 1 ms: what the other processes take of the two cores is small
# beside them, as it is beside a GPU's.
HEAVY_SHAPE = Shape()
HEAVY = Compared(
    kv_bytes_per_token=HEAVY_SHAPE.num_layers
    * (2 * HEAVY_SHAPE.num_kv_heads)
    * (HEAVY_SHAPE.hidden_size // HEAVY_SHAPE.num_heads * 4),
    shape=HEAVY_SHAPE,
    seconds=20.0,
)
RANKED = ("fifo", "static", "sjf", "sarathi")
RANKING_FACTOR = 0.85
CALIBRATION_SEED, CAPACITY_SEED = 7001, 7101
FIGURES = ("ttft_p50_ms", "ttft_p90_ms", "tpot_p50_ms", "tpot_p90_ms", "e2e_mean_ms")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    seconds: float
    num_runs: int
    policies: tuple[str, ...]


def run(options: Options) -> Report:
    """Calibrate, compare latencies at two loads, then the order of policies."""
    return asyncio.run(_measure(options, DEMO))


def run_paced(options: Options) -> Report:
    """The same on nodes whose steps take what a cost model says, however busy the cores are."""
    return asyncio.run(_measure(options, PACED))


def run_heavy(options: Options) -> Report:
    """The same with a model of random weights whose steps take long."""
    return asyncio.run(_measure(options, HEAVY))


def _size(options: Options, seconds: float) -> Size:
    policies = tuple(name for name in RANKED if name in BATCH_POLICIES)
    return Size(2.0, 2, policies[:2]) if options.quick else Size(seconds, 5, policies)


async def _measure(options: Options, compared: Compared) -> Report:
    size = _size(options, compared.seconds)
    with Deployment(
        node_args=compared.node_args, coordinator_args=NO_REJECTION, shape=compared.shape
    ) as deployment:
        calibration = await calibrate(
            deployment, options, CALIBRATION_SEED, kv_bytes_per_token=compared.kv_bytes_per_token
        )
        async with deployment.client() as client:
            count = 64 if options.quick else 256
            capacity = await capacity_per_s(client, mix(options, count, CAPACITY_SEED))
            loads = []
            for index, factor in enumerate(FACTORS):
                runs = []
                for number in range(size.num_runs):
                    # Prompts of an earlier load would be in the prefix cache: no seed twice.
                    seed = options.seed + index * size.num_runs + number
                    runs.append(
                        await run_at(client, options, factor * capacity, size.seconds, seed)
                    )
                    await asyncio.sleep(0.5)
                loads.append(_compare(factor, runs, calibration.profile))
    ranking = [
        await _of_policy(name, options, capacity, size, calibration.profile, compared)
        for name in size.policies
    ]
    return _report(calibration, capacity, loads, ranking, size)


def _compare(factor: float, runs: Sequence[OpenMeasurement], profile: Profile) -> dict[str, Any]:
    real = [real_figures(measured) for measured in runs]
    simulated = [
        simulated_figures(simulate(replayed(measured, profile, "fifo", seed)))
        for seed, measured in enumerate(runs)
    ]
    figures = {}
    for name in FIGURES:
        reals = [each[name] for each in real]
        sims = [each[name] for each in simulated]
        mean = float(np.mean(reals))
        figures[name] = {
            "real": round(mean, 3),
            "real_least": round(min(reals), 3),
            "real_most": round(max(reals), 3),
            "simulated": round(float(np.mean(sims)), 3),
            "error": round(float(np.mean(sims)) / mean - 1, 4) if mean else 0.0,
        }
    return {"factor": factor, "figures": figures}


async def _of_policy(
    policy: str,
    options: Options,
    capacity: float,
    size: Size,
    profile: Profile,
    compared: Compared,
) -> dict[str, Any]:
    say(f"{policy}: starting")
    flags = (*compared.node_args, "--batch-policy", policy)
    with Deployment(
        node_args=flags, coordinator_args=NO_REJECTION, shape=compared.shape
    ) as deployment:
        async with deployment.client() as client:
            await client.wait_until_ready(30.0)
            rate = RANKING_FACTOR * capacity
            await run_at(client, options, rate, 1.0, options.seed + 99)  # links, warm caches
            measured = await run_at(client, options, rate, size.seconds, options.seed)
    simulated = simulate(replayed(measured, profile, policy, options.seed))
    return {
        "policy": policy,
        "real": real_figures(measured),
        "simulated": simulated_figures(simulated),
    }


def replayed(measured: OpenMeasurement, profile: Profile, policy: str, seed: int) -> Scenario:
    """The requests of a real run, at the same times, on one prefill and one decode node."""
    requests = tuple(
        TraceRequest(o.request.at_s, o.request.prompt_len, o.request.num_tokens)
        for o in measured.outcomes
    )
    trace = Trace("replayed", requests, has_times=True)
    return Scenario(
        profile=profile,
        layout=parse_layout("1p1d"),
        load=Load(trace=trace, num_requests=len(requests), process="trace"),
        seed=seed,
        batch_policy=policy,
        sla_class=SLA_CLASS,
        warmup=0.0,
    )


def real_figures(measured: OpenMeasurement) -> dict[str, float]:
    """Percentiles of a real run, in ms; those that were refused or cut off are left out."""
    samples = measured.samples
    return _figures(
        [s.ttft_s for s in samples],
        [s.tpot_s for s in samples if s.tpot_s is not None],
        [s.end_s for s in samples],
    )


def simulated_figures(result: Result) -> dict[str, float]:
    """The same of a simulated one."""
    done = [r for r in result.requests if r.finished_at is not None]
    return _figures(
        [r.ttft for r in done if r.ttft is not None],
        [r.tpot for r in done if r.tpot is not None],
        [r.e2e for r in done if r.e2e is not None],
    )


def _figures(
    ttfts: Sequence[float], tpots: Sequence[float], totals: Sequence[float]
) -> dict[str, float]:
    if not (ttfts and tpots):
        raise ValueError("no request was answered: nothing to compare")
    values = (
        np.percentile(ttfts, 50),
        np.percentile(ttfts, 90),
        np.percentile(tpots, 50),
        np.percentile(tpots, 90),
        np.mean(totals),
    )
    return {name: float(value) * 1e3 for name, value in zip(FIGURES, values, strict=True)}


def num_swapped_pairs(ranking: Sequence[dict[str, Any]], tie: float) -> tuple[int, int]:
    """Pairs of policies that the two order differently by mean latency, and pairs that differ.

    A pair that the real system tells apart by less than `tie`, relative, is not counted.
    """
    swapped = told = 0
    for index, first in enumerate(ranking):
        for second in ranking[index + 1 :]:
            real = second["real"]["e2e_mean_ms"] / first["real"]["e2e_mean_ms"]
            simulated = second["simulated"]["e2e_mean_ms"] / first["simulated"]["e2e_mean_ms"]
            if abs(real - 1) < tie:
                continue
            told += 1
            swapped += (real > 1) != (simulated > 1)
    return swapped, told


def _report(
    calibration: Calibration,
    capacity: float,
    loads: list[dict[str, Any]],
    ranking: list[dict[str, Any]],
    size: Size,
) -> Report:
    rows = [
        [
            f"{load['factor']:.0%} {name}",
            f"{each['real']:.2f}",
            f"{each['real_least']:.2f}-{each['real_most']:.2f}",
            f"{each['simulated']:.2f}",
            f"{each['error']:+.0%}",
        ]
        for load in loads
        for name, each in load["figures"].items()
    ]
    ranks = [
        [r["policy"], f"{r['real']['e2e_mean_ms']:.1f}", f"{r['simulated']['e2e_mean_ms']:.1f}"]
        for r in ranking
    ]
    swapped, told = num_swapped_pairs(ranking, tie=0.1)
    errors = (calibration.prefill.error, calibration.decode.error)
    step_note = f"{errors[0]:.1%} on the prefill node, {errors[1]:.1%} on the decode node"
    title = f"capacity {capacity:.1f}/s, {size.num_runs} runs of {size.seconds:.0f} s"
    return Report(
        [
            Table(title, ("load, figure", "real", "least-most", "simulated", "error"), rows),
            Table(
                f"mean latency in ms at {RANKING_FACTOR:.0%}",
                ("policy", "real", "simulated"),
                ranks,
            ),
        ],
        (
            f"median error of a predicted step: {step_note}; {calibration.gap_s * 1e3:.2f} ms "
            f"between steps; {calibration.profile.control_s * 1e3:.2f} ms per message",
            f"{swapped} of {told} pairs of policies that differ by 10 % or more really are "
            "ordered otherwise in the simulator",
        ),
        {
            "capacity_per_s": round(capacity, 2),
            "loads": loads,
            "ranking": ranking,
            "num_swapped_pairs": swapped,
            "num_told_pairs": told,
            "step_error": {"prefill": errors[0], "decode": errors[1]},
            "gap_ms": round(calibration.gap_s * 1e3, 3),
            "control_ms": round(calibration.profile.control_s * 1e3, 3),
        },
    )
