"""The simulator beside the real system: the same requests at the same times, one profile.

The profile is learned from the real system on other requests than those compared. Where the two
differ by less than the real system differs from itself over five runs, nothing can be told.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.claims.systems import Deployment
from benchmarks.compare.calibration import (
    KV_BYTES_PER_TOKEN,
    NODE_ARGS,
    PACED_FLAGS,
    Calibration,
    calibrate,
)
from benchmarks.compare.real import NO_REJECTION, SLA_CLASS, capacity_per_s, mix, run_at
from benchmarks.compare.sim_report import (
    Compared,
    compared,
    real_figures,
    report,
    simulated_figures,
)
from benchmarks.options import Options
from benchmarks.report import Report, say
from loadgen.checkpoint import Shape
from loadgen.open_loop import OpenMeasurement
from loadgen.traces import Trace, TraceRequest
from scheduling.batch.catalogue import BATCH_POLICIES
from simulator.performance.arrivals import Load
from simulator.performance.profiles import Profile
from simulator.performance.scenario import Scenario, parse_layout, simulate

FACTORS = (0.5, 0.85)
RANKED = ("fifo", "static", "sjf", "sarathi")
RANKING_FACTOR = FACTORS[-1]
CALIBRATION_SEED, CAPACITY_SEED, RANKING_SEED = 7001, 7101, 7201


@dataclass(frozen=True, slots=True)
class Workplace:
    """What really runs: nodes, their flags, and the shape of a model other than the demo's."""

    layout: str = "1p1d"
    node_args: tuple[str, ...] = NODE_ARGS
    kv_bytes_per_token: int = KV_BYTES_PER_TOKEN
    shape: Shape | None = None
    seconds: float = 10.0

    def deployment(self, *flags: str) -> Deployment:
        """Its processes; `flags` are further ones of each node."""
        return Deployment(
            is_mixed=self.layout == "1m",
            node_args=(*self.node_args, *flags),
            coordinator_args=NO_REJECTION,
            shape=self.shape,
        )


DEMO = Workplace()
# Real processes and pages, and a device that sleeps: two nodes, gateway and client on two cores
# slow each other's steps down, which no simulator of one node's device can know.
PACED = Workplace(node_args=(*NODE_ARGS, *PACED_FLAGS), kv_bytes_per_token=8)
# Steps of some 20 ms instead of 1 ms: what the other processes take of the two cores is small
# beside them, as it is beside a GPU's.
HEAVY_SHAPE = Shape()
HEAVY_KV_BYTES = (
    HEAVY_SHAPE.num_layers
    * (2 * HEAVY_SHAPE.num_kv_heads)
    * (HEAVY_SHAPE.hidden_size // HEAVY_SHAPE.num_heads * 4)
)
HEAVY = Workplace(kv_bytes_per_token=HEAVY_KV_BYTES, shape=HEAVY_SHAPE, seconds=20.0)
# One node that does both, alone on its core: nobody shares its device, as nobody shares a GPU.
MIXED = Workplace("1m", kv_bytes_per_token=HEAVY_KV_BYTES, shape=HEAVY_SHAPE, seconds=20.0)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    seconds: float
    num_runs: int
    num_ranking_runs: int
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


def run_mixed(options: Options) -> Report:
    """The same with that model on one node that prefills and decodes, on a core of its own."""
    return asyncio.run(_measure(options, MIXED))


def _size(options: Options, seconds: float) -> Size:
    policies = tuple(name for name in RANKED if name in BATCH_POLICIES)
    return Size(2.0, 2, 1, policies[:2]) if options.quick else Size(seconds, 5, 2, policies)


async def _measure(options: Options, workplace: Workplace) -> Report:
    size = _size(options, workplace.seconds)
    with workplace.deployment() as deployment:
        calibration = await calibrate(
            deployment, options, CALIBRATION_SEED, kv_bytes_per_token=workplace.kv_bytes_per_token
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
                loads.append(_beside(f"{factor:.0%}", runs, calibration, workplace, "fifo"))
    ranking = [
        await _of_policy(name, options, capacity, size, calibration, workplace)
        for name in size.policies
    ]
    title = (
        f"{workplace.layout}: capacity {capacity:.1f}/s, {size.num_runs} runs of "
        f"{size.seconds:.0f} s"
    )
    return report(calibration, loads, ranking, title)


def _beside(
    name: str,
    runs: Sequence[OpenMeasurement],
    calibration: Calibration,
    workplace: Workplace,
    policy: str,
) -> Compared:
    simulated = [
        simulate(replayed(measured, calibration.profile, policy, seed, workplace.layout))
        for seed, measured in enumerate(runs)
    ]
    return compared(
        name,
        [real_figures(measured) for measured in runs],
        [simulated_figures(each) for each in simulated],
    )


async def _of_policy(
    policy: str,
    options: Options,
    capacity: float,
    size: Size,
    calibration: Calibration,
    workplace: Workplace,
) -> Compared:
    say(f"{policy}: starting")
    with workplace.deployment("--batch-policy", policy) as deployment:
        async with deployment.client() as client:
            await client.wait_until_ready(30.0)
            rate = RANKING_FACTOR * capacity
            await run_at(client, options, rate, 1.0, options.seed + 99)  # links, warm caches
            runs = [
                await run_at(client, options, rate, size.seconds, RANKING_SEED + number)
                for number in range(size.num_ranking_runs)
            ]
    return _beside(policy, runs, calibration, workplace, policy)


def replayed(
    measured: OpenMeasurement, profile: Profile, policy: str, seed: int, layout: str = "1p1d"
) -> Scenario:
    """The requests of a real run, at the same times, on the same nodes."""
    requests = tuple(
        TraceRequest(o.request.at_s, o.request.prompt_len, o.request.num_tokens)
        for o in measured.outcomes
    )
    trace = Trace("replayed", requests, has_times=True)
    return Scenario(
        profile=profile,
        layout=parse_layout(layout),
        load=Load(trace=trace, num_requests=len(requests), process="trace"),
        seed=seed,
        batch_policy=policy,
        sla_class=SLA_CLASS,
        warmup=0.0,
    )
