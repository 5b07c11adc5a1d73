"""`scripts/bench run` drives a running system; `scripts/bench policies` compares batch policies."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadgen.arrivals import poisson_arrivals
from loadgen.checkpoint import Shape, write_checkpoint
from loadgen.measure import run_workload
from loadgen.open_loop import DueRequest, run_open_loop
from loadgen.policies import Comparison, compare, format_row
from loadgen.report import format_summary, json_line, machine, summarise, summarise_open
from loadgen.workload import Workload, read_lengths, sample_workload
from tandem.async_client import AsyncClient
from tandem.errors import TandemError


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Drive load and measure; the last line is JSON."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="drive a running system (see `tandem up`)")
    run.add_argument("--gateway", default="tcp://127.0.0.1:7301", help="client address")
    run.add_argument("--num-requests", type=int, default=64)
    run.add_argument("--max-in-flight", type=int, default=32)
    run.add_argument("--prompt-len", type=int, default=128, help="tokens of each prompt")
    run.add_argument("--output-len", type=int, default=64, help="tokens of each answer")
    run.add_argument("--lengths", type=Path, help="CSV trace to draw output lengths from")
    run.add_argument("--column", default="GeneratedTokens", help="its column")
    run.add_argument("--clip", type=int, default=256, help="longest output")
    run.add_argument("--vocab-size", type=int, default=4096, help="prompts are random ids below it")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument(
        "--rate", type=float, help="open loop: Poisson arrivals per second, whatever is in flight"
    )
    run.add_argument("--ttft-ms", type=float, default=2000.0, help="open loop: target of each")
    run.add_argument("--tpot-ms", type=float, default=100.0, help="open loop: target of each")
    run.add_argument("--drain-s", type=float, default=30.0, help="open loop: wait for the last")
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


def bench_run(args: argparse.Namespace) -> dict[str, Any]:
    """One workload on a system that is up."""
    if args.lengths is None:
        lens = (args.output_len,) * args.num_requests
        workload = Workload("equal", (args.prompt_len,) * args.num_requests, lens)
    else:
        workload = sample_workload(
            args.lengths.stem,
            read_lengths(args.lengths, args.column, clip=args.clip),
            num_requests=args.num_requests,
            prompt_len=args.prompt_len,
            seed=args.seed,
        )
    measure = _drive if args.rate is None else _drive_open
    summary = asyncio.run(measure(args, workload))
    print(format_summary(summary))
    return {"benchmark": "run", "workload": workload.name, **summary}


async def _drive(args: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    async with AsyncClient(args.gateway) as client:
        await client.wait_until_ready(10.0)
        measured = await run_workload(
            client,
            workload,
            vocab_size=args.vocab_size,
            max_in_flight=args.max_in_flight,
            seed=args.seed,
        )
    return summarise(measured)


async def _drive_open(args: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    times = poisson_arrivals(args.rate, len(workload.output_lens), args.seed)
    requests = [
        DueRequest(at_s, prompt_len, num_tokens, args.ttft_ms / 1e3, args.tpot_ms / 1e3)
        for at_s, prompt_len, num_tokens in zip(
            times, workload.prompt_lens, workload.output_lens, strict=True
        )
    ]
    async with AsyncClient(args.gateway) as client:
        await client.wait_until_ready(10.0)
        measured = await run_open_loop(
            client, requests, vocab_size=args.vocab_size, drain_s=args.drain_s, seed=args.seed
        )
    return summarise_open(measured)


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


def main() -> int:
    """Exit status 1 where a measurement is not complete."""
    args = parse(sys.argv[1:])
    try:
        document = bench_run(args) if args.command == "run" else bench_policies(args)
    except (ValueError, TandemError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json_line(document | {"machine": machine()}))
    is_open = "num_offered" in document  # there refusals are what is measured
    return 1 if document.get("num_failed") and not is_open else 0


if __name__ == "__main__":
    sys.exit(main())
