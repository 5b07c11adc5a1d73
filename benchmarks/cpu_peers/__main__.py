"""`scripts/bench cpu_peers`: Tandem beside other engines on this CPU, the same work, one run."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.cpu_peers.catalogue import PEERS, Cell, Site, find_pythons
from benchmarks.cpu_peers.measure import measure_cell
from benchmarks.cpu_peers.plot import plot
from benchmarks.cpu_peers.processes import PeerError, worker_path
from benchmarks.cpu_peers.tables import cell_figures, cell_table, failures, ratio_table
from benchmarks.cpu_peers.work import FULL, QUICK, Ceilings, draw_work, roofline
from benchmarks.report import ROOT, Report, publish, say
from loadgen.checkpoint import ITEM_BYTES, PRESETS, write_checkpoint

MODELS = {"tiny": "35m", "mid": "300m"}
CELLS = "tiny:bfloat16,mid:bfloat16,tiny:float32"
CEILINGS_S = 120.0
TOKENIZER = ROOT / "models" / "demo"
NOTES = (
    "x static, and ratios: of the same run, then the median; tokens/s: from the first submit to "
    "the last token of all",
    "roofline: every weight read once per step, products at the machine's best rate; attention is "
    "left out",
    "RSS: after the batch, shared pages counted once; equal: answers that are transformers' own, "
    "token for token (float32 only: in bfloat16 rounding decides between tokens of a random net)",
)


def main(argv: list[str]) -> int:
    """Exit status 1 where nothing could be measured."""
    args = _parse(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends engines, too
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
    try:
        publish("cpu_peers", lambda: _measure(args, len(cores)), _settings(args, len(cores)))
    except (ValueError, OSError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(args: argparse.Namespace, num_threads: int) -> Report:
    scale = QUICK if args.quick else FULL
    starts = {name: PEERS[name] for name in PEERS if name in args.peers}
    tables, notes, figures = [], list(NOTES), []
    with worker_path() as path, tempfile.TemporaryDirectory(prefix="tandem-peers-") as logs:
        pythons = find_pythons(args.envs, dict(args.env))
        site = Site(pythons, args.logs or Path(logs), path, num_threads)
        site.logs.mkdir(parents=True, exist_ok=True)
        ceilings = _ceilings(site)
        for model, dtype in args.cells:
            cell = _cell(model, dtype, args.envs / "checkpoints")
            records = measure_cell(
                cell, site, starts, scale, num_runs=args.runs, once=args.once, seed=args.seed
            )
            work = draw_work(scale, cell.shape.vocab_size, args.seed, 0)
            limit = roofline(cell.shape, dtype, ceilings, scale, work)
            tables += [cell_table(cell, records, limit), ratio_table(cell, records)]
            notes += failures(cell, records)
            figures.append(cell_figures(cell, records, limit))
    if args.plot is not None:
        say(plot(args.plot, figures))
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in ceilings.gflop_per_s.items())
    notes.append(f"machine: reads {ceilings.read_gb_per_s:.1f} GB/s, products GFLOP/s {rates}")
    document = {"ceilings": msgspec.to_builtins(ceilings), "cells": figures}
    return Report(tables, notes, document)


def _ceilings(site: Site) -> Ceilings:
    module = "benchmarks.cpu_peers.workers.ceilings"
    done = subprocess.run(
        [sys.executable, "-m", module, str(site.num_threads)],
        env=site.environment, capture_output=True, text=True, timeout=CEILINGS_S,
    )  # fmt: skip
    if done.returncode:
        raise PeerError(f"the machine's ceilings: {done.stderr.strip()[-300:]}")
    return msgspec.json.decode(done.stdout, type=Ceilings)


def _cell(model: str, dtype: str, checkpoints: Path) -> Cell:
    """Weights of all cells of a model are the same, rounded to bfloat16."""
    shape = PRESETS[MODELS[model]]
    folder = checkpoints / f"{model}-{shape.num_parameters}"
    if not (folder / "complete").exists():
        say(f"writing {folder}")
        write_checkpoint(folder, shape, TOKENIZER, dtype="bfloat16")
        (folder / "complete").touch()
    return Cell(model, dtype, shape, folder)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench cpu_peers", description=__doc__)
    parser.add_argument(
        "--cells", type=_cells, default=CELLS, metavar="MODEL:DTYPE,...",
        help=f"models: {', '.join(MODELS)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--peers", type=_peers, default=list(PEERS), metavar="NAME,...",
                        help=f"of {', '.join(PEERS)} (default: all)")  # fmt: skip
    parser.add_argument("--runs", type=int, default=3, help="rounds over all engines")
    parser.add_argument("--once", type=_peers, default=[], metavar="NAME,...",
                        help="engines measured in the first round only")  # fmt: skip
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache/tandem-peers",
                        help="what scripts/setup_peers made (default: %(default)s)")  # fmt: skip
    parser.add_argument("--env", type=_env, action="append", default=[], metavar="NAME=PYTHON",
                        help="interpreter of vllm, openvino, llama or transformers")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="cores that everybody shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="as PNG")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what engines wrote")
    parser.add_argument("--quick", action="store_true", help="small: does it run, not how fast")
    args = parser.parse_args(argv)
    if min(args.runs, args.threads) < 1:
        parser.error("--runs and --threads must be at least 1")
    return args


def _settings(args: argparse.Namespace, num_threads: int) -> dict[str, Any]:
    return {
        "cells": [":".join(each) for each in args.cells],
        "peers": args.peers,
        "runs": args.runs,
        "once": args.once,
        "threads": num_threads,
        "seed": args.seed,
        "quick": args.quick,
    }


def _cells(text: str) -> list[tuple[str, str]]:
    cells: list[tuple[str, str]] = []
    for each in text.split(","):
        model, _, dtype = each.partition(":")
        if model not in MODELS or dtype not in ITEM_BYTES:
            raise argparse.ArgumentTypeError(
                f"{each!r} is not MODEL:DTYPE of {', '.join(MODELS)} and {', '.join(ITEM_BYTES)}"
            )
        cells.append((model, dtype))
    return cells


def _peers(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - PEERS.keys():
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}: there are {', '.join(PEERS)}")
    return names


def _env(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON")
    return name, Path(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
