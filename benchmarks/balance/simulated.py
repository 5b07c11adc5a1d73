"""The step from long prompts to long answers at a hundred nodes, in the performance simulator.

OPT-13B on A100s as DistServe's authors fitted it. The production balancer, traffic meter and
placement run in virtual time. The same requests come at the same times to roles that stay.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.arrivals import poisson_arrivals
from loadgen.traces import Trace, TraceRequest
from simulator.performance.arrivals import Load
from simulator.performance.profiles import load_profile
from simulator.performance.requests import SimRequest
from simulator.performance.results import Result
from simulator.performance.scenario import Layout, Scenario, simulate

PROFILE = "a100-opt13b"
SLA = "standard:2000:60:0.9"
DWELL_S = 5.0
SETTLED_S = 10.0
MAX_CANDIDATES = 32


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests of one kind: mean lengths in tokens, and how many per second and node."""

    num_prompt: int
    num_output: int
    rate_per_node: float


PHASES = (Phase(1024, 32, 3.0), Phase(128, 384, 3.0))


def run(options: Options) -> Report:
    """The same arrivals twice: with the balancer, and with a static ratio."""
    num_nodes, phase_s = (20, 20.0) if options.quick else (100, 40.0)
    figures: dict[str, Any] = {}
    rows = []
    for name, balance in (("balanced", True), ("static", False)):
        say(f"{name}: {num_nodes} nodes, {2 * phase_s:g} s")
        result = simulate(scenario(num_nodes, phase_s, options.seed, balance=balance))
        found = {key: window(part) for key, part in windows(result.requests, phase_s).items()}
        figures[name] = {"windows": found, "role_changes": summarise_changes(result)}
        rows += [[name, key, *_cells(each)] for key, each in found.items()]
    header = (
        "roles", "arrived", "offered", "attained", "refused", "unfinished",
        "TTFT p95 ms", "TPOT p95 ms",
    )  # fmt: skip
    notes = (
        f"attained: TTFT within 2 s and TPOT within 60 ms, of all that were offered; {PROFILE}, "
        f"{layout(num_nodes)}, dwell {DWELL_S:g} s; the step comes after {phase_s:g} s",
        *(f"changed: {text}" for text in figures["balanced"]["role_changes"]),
    )
    title = f"A step from long prompts to long answers, {num_nodes} simulated nodes"
    return Report([Table(title, header, rows)], notes, figures)


def layout(num_nodes: int) -> Layout:
    """What suits the first phase."""
    num_prefill = round(0.7 * num_nodes)
    return Layout(num_prefill=num_prefill, num_decode=num_nodes - num_prefill)


def scenario(num_nodes: int, phase_s: float, seed: int, *, balance: bool) -> Scenario:
    """One run."""
    requests = arrivals(num_nodes, phase_s, seed)
    trace = Trace("step change", requests, has_times=True)
    return Scenario(
        profile=load_profile(PROFILE),
        layout=layout(num_nodes),
        load=Load(trace=trace, num_requests=len(requests), process="trace"),
        seed=seed,
        sla=(SLA,),
        sla_class="standard",
        warmup=0.0,
        drain_s=300.0,
        max_candidates=MAX_CANDIDATES,
        balance=balance,
        balance_dwell_s=DWELL_S,
    )


def arrivals(num_nodes: int, phase_s: float, seed: int) -> tuple[TraceRequest, ...]:
    """Poisson arrivals of one phase after the other; lengths vary by half of their mean."""
    rng = random.Random(f"step {seed}")
    requests = []
    for number, phase in enumerate(PHASES):
        rate = phase.rate_per_node * num_nodes
        times = poisson_arrivals(rate, 2 * round(rate * phase_s), seed + number)
        requests += [
            TraceRequest(
                number * phase_s + at,
                round(phase.num_prompt * rng.uniform(0.5, 1.5)),
                round(phase.num_output * rng.uniform(0.5, 1.5)),
            )
            for at in times
            if at < phase_s
        ]
    return tuple(requests)


def windows(requests: Sequence[SimRequest], phase_s: float) -> dict[str, list[SimRequest]]:
    """Requests by when they arrived."""
    settled, after = min(SETTLED_S, phase_s / 2), phase_s + SETTLED_S
    return {
        "before the step": [r for r in requests if settled <= r.arrived_at < phase_s],
        f"first {SETTLED_S:g} s after": [r for r in requests if phase_s <= r.arrived_at < after],
        "later": [r for r in requests if r.arrived_at >= after],
        "last 10 s of it": [r for r in requests if r.arrived_at >= 2 * phase_s - SETTLED_S],
    }


def window(requests: Sequence[SimRequest]) -> dict[str, Any]:
    """What became of them."""
    ttfts = sorted(r.ttft * 1e3 for r in requests if r.ttft is not None)
    tpots = sorted(r.tpot * 1e3 for r in requests if r.tpot is not None)
    ended = [r for r in requests if r.finished_at is not None or r.refusal is not None]
    return {
        "num_offered": len(requests),
        "attainment": round(sum(r.is_attained for r in requests) / max(1, len(requests)), 4),
        "num_refused": sum(r.refusal is not None for r in requests),
        "num_unfinished": len(requests) - len(ended),
        "ttft_p95_ms": _p95(ttfts),
        "tpot_p95_ms": _p95(tpots),
    }


def _cells(found: dict[str, Any]) -> list[str]:
    counts = [str(found[key]) for key in ("num_refused", "num_unfinished")]
    times = [_ms(found[key]) for key in ("ttft_p95_ms", "tpot_p95_ms")]
    return [str(found["num_offered"]), f"{found['attainment']:.1%}", *counts, *times]


def summarise_changes(result: Result) -> list[str]:
    """One line for each decision."""
    decisions: dict[float, list[Any]] = {}
    for at, change in result.role_changes:
        decisions.setdefault(at, []).append(change)
    return [
        f"{at:.0f} s: {len(made)} nodes to prefill {made[0].prefill_weight:g}, decode "
        f"{made[0].decode_weight:g}: {made[0].reason}"
        for at, made in decisions.items()
    ]


def _p95(ordered: Sequence[float]) -> float | None:
    return round(ordered[int(0.95 * (len(ordered) - 1))], 1) if ordered else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
