"""Claims by name."""

from collections.abc import Callable

from benchmarks.claims import (
    agent_loop,
    batch_scaling,
    grouping,
    ordering,
    pacing,
    paged_allocators,
    scheduler_cost,
    static_vs_continuous,
    utilisation,
)
from benchmarks.options import Options
from benchmarks.report import Report

CLAIMS: dict[str, Callable[[Options], Report]] = {
    "agent_loop": agent_loop.run,
    "batch_scaling": batch_scaling.run,
    "ltr": ordering.ltr,
    "magnus": grouping.magnus,
    "paged_allocators": paged_allocators.run,
    "sarathi": pacing.sarathi,
    "scheduler_cost": scheduler_cost.run,
    "slai": pacing.slai,
    "starvation": ordering.starvation,
    "static_vs_continuous": static_vs_continuous.run,
    "utilisation": utilisation.run,
    "wait": grouping.wait,
}
