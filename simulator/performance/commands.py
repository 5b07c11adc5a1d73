"""What `tandem simulate` and `tandem plan` do, once their flags are read.

`say` shows results, `tell` what is for whoever waits.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen.traces import Trace, constant_trace, read_trace
from scheduling.batch.options import split_options
from simulator.performance import report
from simulator.performance.arrivals import Load, Process
from simulator.performance.flags import SLA_NAME
from simulator.performance.plan import Plan
from simulator.performance.planning import PlanQuestion, make_plan
from simulator.performance.plots import draw_plots, explain_missing_plots
from simulator.performance.profiles import load_profile
from simulator.performance.results import Result
from simulator.performance.scenario import Layout, Scenario, parse_layout, simulate

PROGRESS_S = 1.0
Say = Callable[[str], object]


def run_simulate(args: argparse.Namespace, say: Say, tell: Say) -> dict[str, Any]:
    """`tandem simulate`."""
    if args.num_seeds < 1:
        raise ValueError(f"--num-seeds {args.num_seeds}: give at least 1")
    scenario = make_scenario(args, parse_layout(args.nodes), args.rate)
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
        show = _Progress(f"seed {seed}", tell)
        results.append(simulate(replace(scenario, seed=seed), show))
        show.end()
    summary = results[0].summary()
    say(report.format_result(summary))
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
        say("\n" + report.format_intervals(document["intervals"], len(results)))
    return document


def run_plan(args: argparse.Namespace, say: Say, tell: Say) -> dict[str, Any]:
    """`tandem plan`."""
    args.batch_policy = args.batch_policies[0]
    question = PlanQuestion(
        base=make_scenario(args, Layout(num_mixed=1), args.rate),
        rate=args.rate,
        max_nodes=args.max_nodes,
        batch_policies=tuple(args.batch_policies),
        chunk_sizes=tuple(args.chunk_tokens),
        num_seeds=args.num_seeds,
    )
    started = time.monotonic()
    plan = make_plan(question, _since(started, tell))
    say(plan.text())
    return plan.document() | {"plots": _plots(args.plots, plan, say, tell)}


def _plots(folder: Path | None, plan: Plan, say: Say, tell: Say) -> list[str]:
    if folder is None:
        return []
    missing = explain_missing_plots()
    if missing is not None:
        tell(f"tandem plan: {missing}")
        return []
    names = [str(path) for path in draw_plots(folder, plan)]
    say("plots: " + ", ".join(names))
    return names


class _Progress:
    """How far a run is, at most once a second."""

    def __init__(self, name: str, tell: Say) -> None:
        self._name = name
        self._tell = tell
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_S:
            self._last = now
            self._tell(f"{self._name}: {done} of {total} requests")

    def end(self) -> None:
        """The run is over."""
        seconds = time.monotonic() - self._started
        self._tell(f"{self._name}: done after {seconds:.1f} s")


def _since(started: float, tell: Say) -> Callable[[str], None]:
    def tell_time(text: str) -> None:
        tell(f"{time.monotonic() - started:6.1f} s  {text}")

    return tell_time


def make_trace(text: str) -> Trace:
    """The trace of `--trace`. Raises ValueError with advice."""
    prompt, separator, output = text.partition(":")
    if separator and prompt.isdigit() and output.isdigit():
        return constant_trace(int(prompt), int(output))
    return read_trace(Path(text))


def make_scenario(args: argparse.Namespace, layout: Layout, rate: float | None) -> Scenario:
    """The scenario of the flags. Raises ValueError with advice."""
    trace = make_trace(args.trace)
    process: Process = args.arrivals or ("trace" if trace.has_times else "poisson")
    load = Load(trace=trace, num_requests=args.num_requests, rate=rate, process=process)
    return Scenario(
        profile=load_profile(args.profile),
        layout=layout,
        load=load,
        seed=args.seed,
        batch_policy=args.batch_policy,
        batch_options=split_options(args.batch_option, "batch"),
        prefill_policy=args.prefill_policy,
        prefill_options=split_options(args.prefill_option, "prefill"),
        placement_policy=args.placement_policy,
        placement_options=split_options(args.placement_option, "placement"),
        sla=(f"{SLA_NAME}:{args.sla}",),
        sla_class=SLA_NAME,
        max_num_seqs=args.max_num_seqs,
        max_output_tokens=args.max_output_tokens,
        max_candidates=args.max_candidates,
        reserve=args.reserve,
        max_queued_tokens_per_node=args.max_queued_tokens_per_node,
        max_queued_requests_per_node=args.max_queued_requests_per_node,
        predictor_sigma=args.predictor_sigma,
    )


RUN = {"simulate": run_simulate, "plan": run_plan}
