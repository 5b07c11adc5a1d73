"""`tandem bench` drives a running system; `scripts/bench policies` compares batch policies."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadgen import bench
from loadgen.checkpoint import Shape, write_checkpoint
from loadgen.policies import Comparison, compare, format_row
from loadgen.report import json_line, machine
from loadgen.workload import Workload, read_lengths, sample_workload
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


def bench_policies(args: argparse.Namespace) -> dict[str, Any]:
    """Batch policies side by side, on a random-weight model whose steps dominate."""
    workloads = [_traced(args, text) for text in args.lengths]
    if args.equal:
        count = args.num_requests
        workloads.append(Workload("equal", (args.prompt_len,) * count, (args.equal,) * count))
    if not workloads:
        raise ValueError("nothing to compare: give --lengths NAME=CSV:COLUMN or --equal N")
    shape = Shape()
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        model = Path(folder) / "model"
        write_checkpoint(model, shape, args.tokenizer)
        comparison = Comparison(str(model), tuple(args.batch_sizes), args.repeats, shape.vocab_size)
        rows = compare(comparison, workloads, say=lambda text: print(text, flush=True))
    print()
    for row in rows:
        print(format_row(row))
    return {"benchmark": "policies", "rows": rows}


def _traced(args: argparse.Namespace, text: str) -> Workload:
    name, _, source = text.partition("=")
    path, _, column = source.rpartition(":")
    if not (name and path and column):
        raise ValueError(f"--lengths {text!r} is not NAME=CSV:COLUMN")
    return sample_workload(
        name,
        read_lengths(Path(path), column, clip=args.clip),
        num_requests=args.num_requests,
        prompt_len=args.prompt_len,
        seed=args.seed,
    )


def drive_load(argv: list[str]) -> int:
    """`tandem bench`: exit status 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    args = bench.make_parser().parse_args(argv)
    try:
        return bench.run(args, lambda text: print(text, flush=True))
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
        document = bench_policies(args)
    except (ValueError, TandemError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json_line(document | {"machine": machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
