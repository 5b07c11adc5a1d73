"""`tandem bench` drives a running system; `scripts/bench policies` compares batch policies."""

import argparse
import importlib
import sys
from pathlib import Path

from loadgen import bench_flags
from tandem.errors import TandemError

INTERRUPTED = 130


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Drive load and measure; the last line is JSON."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    policies = commands.add_parser("policies", help="continuous against static batching")
    policies.add_argument(
        "--lengths",
        action="append",
        default=[],
        metavar="NAME=CSV:COLUMN",
        help="trace with output lengths, for example azure=azure_code_2023.csv:GeneratedTokens",
    )
    policies.add_argument("--equal", type=int, help="also a workload of equal lengths, this long")
    policies.add_argument("--clip", type=int, default=256, help="longest output")
    policies.add_argument("--num-requests", type=int, default=192)
    policies.add_argument("--prompt-len", type=int, default=8)
    policies.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32])
    policies.add_argument("--repeats", type=int, default=1)
    policies.add_argument("--seed", type=int, default=0)
    policies.add_argument("--tokenizer", type=Path, default=Path("models/demo"))
    return parser.parse_args(argv)


def _say(text: str) -> None:
    print(text, flush=True)


def drive_load(argv: list[str]) -> int:
    """`tandem bench`: exit status 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    args = bench_flags.make_parser().parse_args(argv)
    try:
        status: int = importlib.import_module("loadgen.bench").run(args, _say)
        return status
    except (ValueError, OSError, TandemError) as error:
        print(f"tandem bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def main() -> int:
    """Exit status 1 where a measurement is not complete."""
    if sys.argv[1:2] == ["bench"]:
        return drive_load(sys.argv[2:])
    args = parse(sys.argv[1:])
    try:
        importlib.import_module("loadgen.policy_bench").run(args, _say)
    except (ValueError, TandemError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
