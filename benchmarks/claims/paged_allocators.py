"""How much of a fixed KV memory holds tokens, by allocator: the figures behind PagedAttention."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.claims.allocators import Allocator, Buddy, Contiguous, Paged, Replay, Usage
from benchmarks.options import Options
from benchmarks.report import Report, Table
from benchmarks.traces import describe_source, sample_lengths

# The KV memory of OPT-13B beside its weights on a 40 GB A100, and its context: the paper's setting.
NUM_SLOTS = 16_384
LONGEST = 2048
PAGE_SIZES = (1, 8, 16, 32, 128)
BASELINE = "contiguous, longest"
HEADER = (
    "allocator", "useful", "reserved", "internal", "external", "of held", "running", "x", "waste",
    "preempted",
)  # fmt: skip


def allocators(num_slots: int, longest: int) -> dict[str, Callable[[], Allocator]]:
    """By name; the first is what frameworks did before."""
    made: dict[str, Callable[[], Allocator]] = {
        BASELINE: lambda: Contiguous(num_slots, reserve_for=longest),
        "buddy, length known": lambda: Buddy(num_slots),
        "contiguous, length known": lambda: Contiguous(num_slots, reserve_for=None),
        "paged 16, promised": lambda: Paged(num_slots, 16, is_promised=True),
    }
    for size in PAGE_SIZES:
        made[f"paged {size}"] = partial(Paged, num_slots, size)
    return made


def run(options: Options) -> Report:
    """Replay one trace through each."""
    count = 80 if options.quick else 2000
    requests = sample_lengths("sharegpt", options.traces, count, options.seed, longest=LONGEST)
    made = allocators(NUM_SLOTS, LONGEST)
    usages = {name: Replay(make(), requests, NUM_SLOTS).run() for name, make in made.items()}
    figures = {name: _figures(usage, usages[BASELINE]) for name, usage in usages.items()}
    return Report(
        [Table(f"{count} requests, {NUM_SLOTS} token slots", HEADER, _rows(figures))],
        (
            describe_source("sharegpt", options.traces) + f", those above {LONGEST} left out",
            "shares of the memory, means over steps while somebody waits: useful holds a token, "
            "reserved will, internal never will, external is free but too little or too scattered "
            "for the first in line",
            f"x: requests at once over `{BASELINE}`; waste: of 1 - useful, relative to the same",
        ),
        {"num_slots": NUM_SLOTS, "longest": LONGEST, "allocators": figures},
    )


def _figures(usage: Usage, baseline: Usage) -> dict[str, Any]:
    return {
        "useful": round(usage.useful, 4),
        "reserved": round(usage.reserved, 4),
        "internal": round(usage.internal, 4),
        "external": round(usage.external, 4),
        "useful_of_held": round(usage.useful_of_held, 4),
        "num_running": round(usage.num_running, 2),
        "concurrency_ratio": round(usage.num_running / baseline.num_running, 2),
        "waste_change": round((1 - usage.useful) / (1 - baseline.useful) - 1, 3),
        "num_preempted": usage.num_preempted,
    }


def _rows(figures: dict[str, dict[str, Any]]) -> list[list[str]]:
    shares = ("useful", "reserved", "internal", "external", "useful_of_held")
    return [
        [
            name,
            *(f"{row[share]:.1%}" for share in shares),
            f"{row['num_running']:.1f}",
            f"{row['concurrency_ratio']:.2f}",
            f"{row['waste_change']:+.0%}",
            str(row["num_preempted"]),
        ]
        for name, row in figures.items()
    ]
