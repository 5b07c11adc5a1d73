"""`scripts/bench policies`: continuous against static batching on the real engine."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from loadgen.checkpoint import Shape, write_checkpoint
from loadgen.policies import Comparison, compare, format_row
from loadgen.report import json_line, machine
from loadgen.workload import Workload, read_lengths, sample_workload


def run(args: argparse.Namespace, say: Callable[[str], None]) -> None:
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
        rows = compare(comparison, workloads, say=say)
    say("")
    for row in rows:
        say(format_row(row))
    say(json_line({"benchmark": "policies", "rows": rows, "machine": machine()}))


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
