"""Runs cells of the fault matrix and prints what each showed; the last line is JSON.

scripts/faults                     the cells of the test suite
scripts/faults --all               the whole matrix
scripts/faults --match decode      cells whose name contains a word
scripts/faults --list              names only
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from scripts.fault_matrix.cells import Cell, all_cells
from scripts.fault_matrix.chosen import CHOSEN
from scripts.fault_matrix.deployment import Deployment
from scripts.fault_matrix.experiment import Outcome, run_cell
from scripts.fault_matrix.load import Violations
from tandem.tables import format_table

MODEL = Path(__file__).resolve().parents[2] / "models/demo"


def run_cells(cells: Iterable[Cell], seed: int) -> Iterable[Outcome]:
    """Cells of one shape share a deployment, which is replaced after a cell that failed."""
    for shape, group in groupby(cells, key=lambda cell: cell.shape):
        deployment: Deployment | None = None
        try:
            for cell in group:
                if deployment is None:
                    deployment = Deployment(shape, str(MODEL), seed)
                    deployment.start()
                outcome = _run_one(deployment, cell, seed)
                if not outcome.has_passed:
                    print(deployment.all_logs(), file=sys.stderr)
                    deployment.close()
                    deployment = None
                yield outcome
        finally:
            if deployment is not None:
                deployment.close()


def _run_one(deployment: Deployment, cell: Cell, seed: int) -> Outcome:
    begin = time.monotonic()
    try:
        return run_cell(deployment, cell, seed)
    except (RuntimeError, AssertionError, OSError) as error:
        return Outcome(
            name=cell.name,
            problems=(f"{type(error).__name__}: {error}",),
            num_requests=cell.num_requests,
            num_tokens=0,
            violations=Violations(),
            has_leaked=False,
            detection_s=None,
            recovery_s=0.0,
            seconds=time.monotonic() - begin,
        )


def report(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The table for people on stdout; the summary for programs."""
    rows = [
        (
            o.name,
            "pass" if o.has_passed else "FAIL",
            "-" if o.detection_s is None else f"{o.detection_s:.2f}",
            f"{o.recovery_s:.2f}",
            str(o.num_requests),
            str(o.num_tokens),
        )
        for o in outcomes
    ]
    head = ("role x phase x fault", "result", "detected s", "recovered s", "requests", "tokens")
    print("\n".join(format_table(head, rows)))
    for outcome in outcomes:
        for problem in outcome.problems:
            print(f"  {outcome.name}: {problem}")
    violations = {
        "I1 tokens missing, doubled, reordered or changed": sum(
            o.violations.tokens for o in outcomes
        ),
        "I2 requests without an end": sum(o.violations.ends for o in outcomes),
        "I3 cells after which pages or requests were left": sum(o.has_leaked for o in outcomes),
        "I14 requests that failed": sum(o.violations.failures for o in outcomes),
    }
    for promise, number in violations.items():
        print(f"{number:>6}  {promise}")
    detections = [o.detection_s for o in outcomes if o.detection_s is not None]
    recoveries = [o.recovery_s for o in outcomes]
    return {
        "num_cells": len(outcomes),
        "num_passed": sum(o.has_passed for o in outcomes),
        "detection_s": _spread(detections),
        "recovery_s": _spread(recoveries),
        "num_requests": sum(o.num_requests for o in outcomes),
        "num_tokens_compared": sum(o.num_tokens for o in outcomes),
        "violations": violations,
        "cells": {
            o.name: {"passed": o.has_passed, "problems": o.problems, "seconds": round(o.seconds, 1)}
            for o in outcomes
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": round(statistics.median(values), 3), "worst": round(max(values), 3)}


def choose(options: argparse.Namespace) -> list[Cell]:
    """The cells asked for, those of one shape together."""
    cells = all_cells()
    names = list(cells) if options.all or options.match else list(CHOSEN)
    chosen = [cells[name] for name in names if all(word in name for word in options.match)]
    return sorted(chosen, key=lambda cell: cell.shape.name)


def main() -> int:
    """Exit status: 0 when every cell passed."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="the whole matrix")
    parser.add_argument("--match", action="append", default=[], help="only names with this word")
    parser.add_argument("--list", action="store_true", help="only say which cells these are")
    parser.add_argument("--seed", type=int, default=1, help="of prompts, lengths, the proxy")
    options = parser.parse_args()
    cells = choose(options)
    if options.list:
        print(*(cell.name for cell in cells), sep="\n")
        return 0
    outcomes = []
    for outcome in run_cells(cells, options.seed):
        outcomes.append(outcome)
        mark = "pass" if outcome.has_passed else "FAIL"
        print(
            f"[{len(outcomes)}/{len(cells)}] {outcome.name} {mark} {outcome.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )
    summary = report(outcomes)
    print(json.dumps(summary))
    return 0 if summary["num_passed"] == len(cells) else 1


if __name__ == "__main__":
    sys.exit(main())
