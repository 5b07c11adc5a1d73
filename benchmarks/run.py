"""The command line of `scripts/bench claims`, `compare`, `balance`, `kernels` and `decode_step`."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.options import TRACES_VARIABLE, Options
from benchmarks.report import Report, publish
from tandem.errors import TandemError
from tandem.launch import ClusterError


def run_benchmark(
    kind: str, about: str, benchmarks: Mapping[str, Callable[[Options], Report]], argv: list[str]
) -> int:
    """Run the one that the arguments name; exit status 1 where it could not be measured."""
    name, options = parse_options(f"scripts/bench {kind}", about, list(benchmarks), argv)
    settings = {
        "quick": options.quick,
        "seed": options.seed,
        "traces": options.traces is not None,
    }
    try:
        publish(f"{kind} {name}", lambda: benchmarks[name](options), settings)
    except (ValueError, TimeoutError, TandemError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_options(prog: str, about: str, names: list[str], argv: list[str]) -> tuple[str, Options]:
    """The benchmark's name and its options."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("name", choices=names)
    parser.add_argument("--quick", action="store_true", help="small: does it run, not how fast")
    parser.add_argument(
        "--traces",
        type=Path,
        default=os.environ.get(TRACES_VARIABLE),
        help=f"folder of traces (default: ${TRACES_VARIABLE}; without one, lengths are drawn)",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return args.name, Options(quick=args.quick, traces=args.traces, seed=args.seed)
