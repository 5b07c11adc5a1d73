"""`scripts/bench gpu_all`: everything a GPU can tell, by parts, in one command of under 9 minutes.

    scripts/bench gpu_all                       all parts, the most telling first
    scripts/bench gpu_all --only decode,step    some of them
    scripts/bench gpu_all --dry-run             the same code on the CPU, at sizes that mean nothing

Each part runs in a process of its own with a time limit, so that one that fails or hangs costs
itself alone; what it had found by then stands. Tables as they come, then one line of JSON with
figures, device, versions and commit ($TANDEM_COMMIT where there is no git), which
$OUT/gpu_all.json holds too where OUT names a folder, after every part. Ends 0 when all parts ended
well, 1 when not, 2 without a GPU. Needs torch, triton and numpy; parts that need more say so, and
find what PYTHONPATH brings along.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy
import torch
import triton

from benchmarks.gpu_all.setting import LeftOut, make_setting

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 500.0  # with the search for an interpreter before it, under nine minutes
DRY_LIMIT_S = 200.0
# In order of value: what is late may be cut. Seconds allowed; their sum may be more than LIMIT_S.
PARTS = {
    "ceilings": 40,
    "correctness": 60,
    "decode": 110,
    "step": 80,
    "generation": 60,
    "handoff": 90,
    "prefill": 80,
    "prompt": 50,
    "engine_step": 60,
    "transport": 60,
    "rows": 50,
}
CEILINGS = ("copy_gb_s", "matmul_tflop_s")
COMMIT_VARIABLE = "TANDEM_COMMIT"
LEFT_OUT = 3  # exit status of a part that cannot run here
OURS = ("benchmarks", "engine", "kernels", "kv_transfer", "node", "scheduling", "tandem", "tests")
Json = Any  # what a line of JSON holds
SAID_LINES = 40  # of a part that did not end well, in the last line
LEAST_WIDTHS = (34, 9)  # of the first column and of others: rows that come later stay in line


def main(argv: list[str]) -> int:
    """Runs the parts, or, told `--part`, one of them in this process."""
    options = parse(argv)
    if options.part:
        return run_part(options.part, options.dry_run, json.loads(options.ceilings))
    if not options.dry_run and not torch.cuda.is_available():
        print(
            f"gpu_all: torch {torch.__version__} of {sys.executable} sees no CUDA device. It needs "
            "an NVIDIA GPU, its driver, and torch built for CUDA; PYTHON names an interpreter. "
            "--dry-run tries the code on the CPU.",
            file=sys.stderr,
        )
        return 2
    begin = time.monotonic()
    where = machine(options.dry_run)
    print("\n".join(f"  {name:<10} {value}" for name, value in where.items()), flush=True)
    results: dict[str, dict[str, Any]] = {}
    document = {"benchmark": "gpu_all", "dry_run": options.dry_run, "machine": where,
                "parts": results, "seconds": 0}  # fmt: skip
    ceilings: dict[str, float] = {}
    for name in options.only or PARTS:
        left_s = options.limit_s - (time.monotonic() - begin)
        limit_s = min(DRY_LIMIT_S if options.dry_run else PARTS[name], left_s)
        results[name] = conduct(name, limit_s, options.dry_run, ceilings)
        found = results[name]["figures"]
        if name == "ceilings":
            ceilings = {key: found[key] for key in CEILINGS if key in found}
        document["seconds"] = round(time.monotonic() - begin)
        keep(document)
    print_summary(results)
    print(json.dumps(document, separators=(",", ":"), sort_keys=True), flush=True)
    return 0 if all(result["ended"] in ("well", "left out") for result in results.values()) else 1


def keep(document: dict[str, Any]) -> None:
    """What has been found so far, in $OUT/gpu_all.json where OUT names a folder."""
    if folder := os.environ.get("OUT"):
        (Path(folder) / "gpu_all.json").write_text(json.dumps(document, sort_keys=True))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; `--part` and `--ceilings` are for our own children."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench gpu_all", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--only", type=part_names, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def part_names(text: str) -> list[str]:
    """Parts by name, in their order."""
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"no part {', '.join(sorted(unknown))}: {', '.join(PARTS)}"
        )
    return [name for name in PARTS if name in names]


def machine(is_dry: bool) -> dict[str, str]:
    """Device, driver, versions, commit."""
    where = {
        "device": "none (dry run)" if is_dry else torch.cuda.get_device_name(0),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "commit": output_of("git", "rev-parse", "HEAD"),
    }
    where["commit"] = os.environ.get(COMMIT_VARIABLE) or where["commit"]
    return {name: value or "unknown" for name, value in where.items()}


def output_of(*command: str) -> str:
    """The first line that a command prints; empty where there is no such command."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""


def conduct(name: str, limit_s: float, is_dry: bool, ceilings: dict[str, float]) -> dict[str, Any]:
    """Runs a part in its own process; prints its tables as they come."""
    print(f"\n== {name}", flush=True)
    if limit_s < 5:
        print("  left out: no time is left", flush=True)
        return {"ended": "no time left", "seconds": 0.0, "figures": {}}
    command = [sys.executable, "-m", "benchmarks.gpu_all", "--part", name]
    command += ["--ceilings", json.dumps(ceilings)] + ["--dry-run"] * is_dry
    begin = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(is_dry),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    figures: dict[str, Any] = {}
    said: deque[str] = deque(maxlen=SAID_LINES)
    ended = follow(process, begin + limit_s, figures, said)
    seconds = round(time.monotonic() - begin, 1)
    print(f"-- {name}: {ended}, {seconds} s", flush=True)
    result = {"ended": ended, "seconds": seconds, "figures": figures}
    return result if ended == "well" else result | {"said": list(said)}


def environment(is_dry: bool) -> dict[str, str]:
    """Ours, set for imports of the checkout, threads that wait, and Triton's interpreter or not."""
    ours = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if is_dry:
        ours["TRITON_INTERPRET"] = "1"
    path = os.pathsep.join(filter(None, (str(ROOT), ours.get("PYTHONPATH"))))
    return ours | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def follow(
    process: "subprocess.Popen[bytes]",
    deadline: float,
    figures: dict[str, Any],
    said: deque[str],
) -> str:
    """Prints what the part says and takes its figures, until it or its time ends; how it ended.

    What is no table, such as why it failed, is kept in `said` besides.
    """
    assert process.stdout is not None
    buffered, title = b"", ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left_s := deadline - time.monotonic()) > 0:
            if not selector.select(left_s):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                title = show(line.decode(errors="replace"), figures, said, title)
            if not data:
                break
    process.stdout.close()
    try:
        status = process.wait(max(1.0, min(20.0, deadline - time.monotonic())))
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        kill_group(process)
    reasons = {0: "well", LEFT_OUT: "left out"}
    return reasons.get(status, f"failed, status {status}")


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """The part and the processes that it started: they are one session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show(line: str, figures: dict[str, Any], said: deque[str], title: str) -> str:
    """A table goes to the reader, its figures to the last line; anything else stands as it is.

    A table of the same title as the last one goes on with it. The title of the last table.
    """
    try:
        table = json.loads(line) if line.startswith('{"title"') else None
    except ValueError:
        table = None
    if table is None:
        print(line, flush=True)
        said.append(line)
        return title
    header, rows = table["header"], table["rows"]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    widths = [max(LEAST_WIDTHS[i > 0], width) for i, width in enumerate(widths)]
    if table["title"] != title:
        print(table["title"])
        rows = [header, *rows]
    for row in rows:
        cells = [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
    for note in table["notes"]:
        print(f"  - {note}")
    sys.stdout.flush()
    figures |= table["figures"]
    return str(table["title"])


def print_summary(results: dict[str, dict[str, Any]]) -> None:
    """How each part ended."""
    print("\n== summary")
    for name, result in results.items():
        print(f"  {name:<12} {result['seconds']:>6.1f} s  {result['ended']}")


def run_part(name: str, is_dry: bool, ceilings: dict[str, float]) -> int:
    """In this process: a JSON line per table; 0, or LEFT_OUT where this machine lacks something."""
    setting = make_setting(is_dry=is_dry, ceilings=ceilings)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for table in importlib.import_module(f"benchmarks.gpu_all.{name}").run(setting):
                print(json.dumps(rounded(asdict(table))), flush=True)
    except LeftOut as reason:
        print(f"  left out: {reason}", flush=True)
        return LEFT_OUT
    except ImportError as error:  # also a version that goes with no other package here
        if (error.name or "").split(".")[0] in OURS:
            raise
        print(f"  left out: this part cannot run with {sys.executable}: {error}", flush=True)
        return LEFT_OUT
    return 0


def rounded(value: Json) -> Json:
    """Floats to four digits: the last line goes where space is short."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
