"""Claims by name."""

from collections.abc import Callable

from benchmarks.claims import (
    agent_loop,
    batch_scaling,
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
    "paged_allocators": paged_allocators.run,
    "scheduler_cost": scheduler_cost.run,
    "static_vs_continuous": static_vs_continuous.run,
    "utilisation": utilisation.run,
}
