"""`tandem simulate`, `tandem plan`: tables on stdout, JSON as the last line, progress on stderr."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.performance import flags, report
from simulator.performance.plan import Plan
from simulator.performance.planning import PlanQuestion, make_plan
from simulator.performance.plots import draw_plots, explain_missing_plots
from simulator.performance.results import Result
from simulator.performance.scenario import Layout, parse_layout, simulate

INTERRUPTED = 130
PROGRESS_S = 1.0


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 failed, 130 interrupted."""
    args = make_parser().parse_args(argv)
    try:
        document = run_simulate(args) if args.command == "simulate" else run_plan(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:
        print(f"tandem {args.command}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document, separators=(",", ":"), sort_keys=True))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of both commands."""
    parser = argparse.ArgumentParser(prog="tandem", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    simulated = commands.add_parser(
        "simulate",
        description="Runs the production policies over a workload in virtual time, on nodes that "
        "take the time of a hardware profile.",
        allow_abbrev=False,
    )
    flags.add_common_flags(simulated)
    flags.add_batch_policy(simulated)
    simulated.add_argument(
        "--nodes",
        default="1p1d",
        metavar="LAYOUT",
        help="2p3d: 2 prefill and 3 decode nodes; 4m: 4 mixed ones; default %(default)s",
    )
    simulated.add_argument(
        "--rate", type=float, metavar="X", help="requests per second; default: the trace's own"
    )
    simulated.add_argument(
        "--chunk-tokens", type=int, metavar="N", help="tokens of a step; default: the profile's"
    )
    simulated.add_argument(
        "--num-seeds", type=int, default=1, metavar="N", help="runs, for confidence intervals"
    )
    simulated.add_argument(
        "--every-step",
        action="store_true",
        help="plan every single step; same results, for checking the simulator",
    )
    flags.add_coordinator_flags(simulated)
    _add_plan(commands)
    return parser


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    planned = commands.add_parser(
        "plan",
        description="Finds how many nodes of which role keep the SLA at a rate, which chunk size "
        "and batch policy, and whether to disaggregate at all.",
        allow_abbrev=False,
    )
    flags.add_common_flags(planned)
    planned.add_argument("--rate", type=float, required=True, metavar="X", help="requests/s")
    planned.add_argument(
        "--max-nodes", type=int, default=32, metavar="N", help="default %(default)s"
    )
    planned.add_argument(
        "--batch-policies",
        nargs="+",
        default=["fifo"],
        metavar="NAME",
        help="to choose from; default %(default)s",
    )
    planned.add_argument(
        "--chunk-tokens",
        type=int,
        nargs="+",
        default=[512, 1024, 2048],
        metavar="N",
        help="sizes to choose from, for both kinds of deployment; default %(default)s",
    )
    planned.add_argument(
        "--num-seeds", type=int, default=3, metavar="N", help="of the comparison; default 3"
    )
    planned.add_argument("--plots", type=Path, metavar="FOLDER", help="also draw PNG files")


def run_simulate(args: argparse.Namespace) -> dict[str, Any]:
    """`tandem simulate`."""
    if args.num_seeds < 1:
        raise ValueError(f"--num-seeds {args.num_seeds}: give at least 1")
    scenario = flags.make_scenario(args, parse_layout(args.nodes), args.rate)
    scenario = replace(
        scenario,
        max_num_batched_tokens=args.chunk_tokens,
        fast_forward=not args.every_step,
        balance=args.balance == "on",
        balance_dwell_s=args.balance_dwell_s,
        early_rejection_tolerance=args.early_rejection_tolerance
        if args.early_rejection == "on"
        else None,
    )
    results: list[Result] = []
    for seed in range(args.seed, args.seed + args.num_seeds):
        show = _Progress(f"seed {seed}")
        results.append(simulate(replace(scenario, seed=seed), show))
        show.end()
    summary = results[0].summary()
    print(report.format_result(summary))
    document: dict[str, Any] = {
        "command": "simulate",
        "profile": scenario.profile.name,
        "trace": scenario.load.trace.name,
        "nodes": str(scenario.layout),
        "batch_policy": scenario.batch_policy,
        "seed": args.seed,
        "result": summary,
    }
    if len(results) > 1:
        document["intervals"] = report.intervals(results)
        print("\n" + report.format_intervals(document["intervals"], len(results)))
    return document


def run_plan(args: argparse.Namespace) -> dict[str, Any]:
    """`tandem plan`."""
    args.batch_policy = args.batch_policies[0]
    question = PlanQuestion(
        base=flags.make_scenario(args, Layout(num_mixed=1), args.rate),
        rate=args.rate,
        max_nodes=args.max_nodes,
        batch_policies=tuple(args.batch_policies),
        chunk_sizes=tuple(args.chunk_tokens),
        num_seeds=args.num_seeds,
    )
    started = time.monotonic()
    plan = make_plan(question, _say_since(started))
    print(plan.text())
    return plan.document() | {"plots": _plots(args.plots, plan)}


def _plots(folder: Path | None, plan: Plan) -> list[str]:
    if folder is None:
        return []
    missing = explain_missing_plots()
    if missing is not None:
        print(f"tandem plan: {missing}", file=sys.stderr)
        return []
    names = [str(path) for path in draw_plots(folder, plan)]
    print("plots: " + ", ".join(names))
    return names


class _Progress:
    """How far a run is, at most once a second."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            print(f"{self._name}: {done} of {total} requests", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The run is over."""
        seconds = time.monotonic() - self._started
        print(f"{self._name}: done after {seconds:.1f} s", file=sys.stderr, flush=True)


def _say_since(started: float) -> Callable[[str], None]:
    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
