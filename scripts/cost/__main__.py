"""What the guards cost, with and without each, side by side; the last line is JSON.

scripts/bench_guards              all of it; needs a machine that does nothing else
scripts/bench_guards --quick      a smoke test: everything once and small, numbers mean nothing
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadgen.report import json_line, machine
from loadgen.workload import Workload
from scripts.cost import control, figures, serving
from scripts.cost.control import CONDITIONS, Condition
from scripts.cost.serving import SETTINGS, Plan
from tandem.errors import TandemError
from tandem.launch import ClusterError

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("serving", "control")
TRANSPORTS = ("shared_memory", "zmq")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    plan: Plan
    transports: tuple[str, ...]
    conditions: tuple[Condition, ...]
    num_pages: int  # in flight, of 64 KiB
    seconds: float  # of pings


def equal(name: str, count: int, prompt_len: int, output_len: int) -> Workload:
    """Requests of one shape."""
    return Workload(name, (prompt_len,) * count, (output_len,) * count)


FULL = Size(
    plan=Plan(
        transport="",
        settings=SETTINGS,
        device="cpu",
        num_pages=1024,
        single=equal("single", 6, 1024, 4),
        loaded=equal("loaded", 32, 256, 48),
        max_in_flight=16,
        num_rounds=5,
    ),
    transports=TRANSPORTS,
    conditions=CONDITIONS,
    num_pages=2048,
    seconds=2.0,
)
QUICK = Size(
    plan=Plan(
        transport="",
        settings=(SETTINGS[0], SETTINGS[-1]),
        device="fake",
        num_pages=256,
        single=equal("single", 1, 64, 3),
        loaded=equal("loaded", 4, 32, 4),
        max_in_flight=4,
        num_rounds=1,
    ),
    transports=("zmq",),
    conditions=tuple(c for c in CONDITIONS if c.is_encrypted and c.transport != "shared_memory"),
    num_pages=64,
    seconds=0.1,
)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench_guards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS)
    return parser.parse_args(argv)


def say(text: str) -> None:
    """For whoever waits."""
    print(text, file=sys.stderr, flush=True)


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print tables, return everything."""
    size = QUICK if args.quick else FULL
    num_rounds = args.rounds or size.plan.num_rounds
    transports = args.transports or size.transports
    document: dict[str, Any] = {"benchmark": "guards", "num_rounds": num_rounds}
    tables: list[str] = []
    if "serving" in args.parts:
        rows = []
        for transport in transports:
            plan = replace(size.plan, transport=transport, num_rounds=num_rounds)
            rows += figures.serving_rows(plan, serving.measure(plan, say))
        document["serving"] = rows
        tables += [*figures.serving_table(rows), ""]
    if "control" in args.parts:
        chosen = [c for c in size.conditions if c.transport in (None, *transports)]
        results = control.measure_all(chosen, num_rounds, size.num_pages, size.seconds, say)
        document["control"] = rows = figures.control_rows(results)
        tables += [*figures.control_table(rows), ""]
    print("\n".join(tables))
    return document


def surroundings() -> dict[str, Any]:
    """Where and of what it was measured."""
    show = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(show, capture_output=True, text=True, check=False).stdout.strip()
    return {
        **machine(),
        "num_cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit or "unknown",
    }


def main() -> int:
    """Exit status 1 where something could not be measured."""
    args = parse(sys.argv[1:])
    where, began_at = surroundings(), time.monotonic()
    try:
        document = bench(args)
    except (ValueError, TimeoutError, TandemError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = round(time.monotonic() - began_at, 1)
    print(json_line(document | {"machine": where, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
