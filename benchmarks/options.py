"""What every benchmark of this folder may be told on its command line."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

TRACES_VARIABLE = "TANDEM_TRACES"


@dataclass(frozen=True, slots=True)
class Options:
    """quick: a smoke run whose figures mean little. traces: folder, see `benchmarks.traces`."""

    quick: bool
    traces: Path | None
    seed: int


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
