"""The load turns from long prompts to long answers: who still gets an answer in time.

Two nodes without a model, whose steps take what a linear cost model says: 710 prompt tokens/s each,
or 48 rows in 70 ms. They are slow on purpose: at 900 tokens/s clients and processes need little of
two cores. Either workload is about 1.3 times what one node of its role can do, and well within what
two can that share the work. Beside the balancer, on the same arrivals, roles stay as at the start.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.arrivals import poisson_arrivals
from loadgen.open_loop import DueRequest, OpenMeasurement, Outcome, run_open_loop
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster
from tandem.messages.membership import ClusterStatus
from tandem.status import query_status

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo"
VOCAB_SIZE = 4000
COSTS = "0.010:0.00125:0:0.00125:0"
NODE_ARGS = (
    "--device", "fake", "--fake-costs", COSTS, "--num-pages", "4000",
    "--max-num-batched-tokens", "96", "--max-num-seqs", "48",
)  # fmt: skip
TTFT_S, TPOT_S = 2.0, 0.13
RATE_PER_S = 7.0
DWELL_S = 5.0
SETTLED_S = 10.0  # requests that arrive later after the step shall be served as before
DRAIN_S = 30.0  # an answer of 130 tokens at the slowest pace that is in time, and a wait


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests of one kind."""

    name: str
    num_prompt: int
    num_output: int


PHASES = (Phase("long prompts", 128, 8), Phase("long answers", 16, 130))


def run(options: Options) -> Report:
    """The same arrivals twice: with the balancer, and with a static ratio."""
    phase_s = 14.0 if options.quick else 40.0
    runs = {mode: asyncio.run(_measure(mode, phase_s, options.seed)) for mode in ("on", "off")}
    figures: dict[str, Any] = {
        mode: {
            "windows": {name: _window(part) for name, part in _windows(measured, phase_s).items()},
            "decisions": decisions,
        }
        for mode, (measured, decisions) in runs.items()
    }
    rows = [
        [
            "balanced" if mode == "on" else "static",
            name,
            str(window["num_offered"]),
            f"{window['attainment']:.1%}",
            str(window["num_refused"]),
            *(_ms(window[key]) for key in ("ttft_p50_ms", "ttft_p95_ms", "tpot_p95_ms")),
        ]
        for mode, figure in figures.items()
        for name, window in figure["windows"].items()
    ]
    header = (
        "roles", "arrived", "offered", "attained", "refused", "TTFT p50 ms", "p95", "TPOT p95",
    )  # fmt: skip
    notes = (
        f"attained: TTFT within {TTFT_S:g} s and TPOT within {TPOT_S * 1e3:g} ms, of all that were "
        "offered, refused ones included",
        f"one prefill and one decode node at the start, {RATE_PER_S:g} requests/s, dwell "
        f"{DWELL_S:g} s; the step comes after {phase_s:g} s",
        *(f"decided: {text}" for text in figures["on"]["decisions"]),
    )
    return Report([Table("A step from long prompts to long answers", header, rows)], notes, figures)


async def _measure(mode: str, phase_s: float, seed: int) -> tuple[OpenMeasurement, list[str]]:
    with (
        tempfile.TemporaryDirectory(prefix="tandem-balance-") as folder,
        LocalCluster(
            model=str(MODEL),
            node_args=NODE_ARGS,
            coordinator_args=["--balance", mode, "--balance-dwell-s", str(DWELL_S)],
            run_dir=Path(folder),
        ) as cluster,
    ):
        say(f"balance {mode}: {2 * phase_s:g} s of arrivals")
        async with AsyncClient(cluster.gateway_address) as client:
            await client.wait_until_ready(30.0)
            measured = await run_open_loop(
                client,
                arrivals(phase_s, seed),
                vocab_size=VOCAB_SIZE,
                drain_s=DRAIN_S,
                seed=seed,
            )
        status: ClusterStatus = await query_status(cluster.coordinator_address)
    return measured, [f"{d.kind}: {d.message}" for d in reversed(status.decisions)]


def arrivals(phase_s: float, seed: int) -> list[DueRequest]:
    """Poisson arrivals of one phase after the other."""
    requests = []
    for number, phase in enumerate(PHASES):
        times = poisson_arrivals(RATE_PER_S, 2 * round(RATE_PER_S * phase_s), seed + number)
        requests += [
            DueRequest(number * phase_s + at_s, phase.num_prompt, phase.num_output, TTFT_S, TPOT_S)
            for at_s in times
            if at_s < phase_s
        ]
    return requests


def _windows(measured: OpenMeasurement, phase_s: float) -> dict[str, Sequence[Outcome]]:
    """Outcomes by when they were due."""
    outcomes = measured.outcomes
    settled, after = min(SETTLED_S, phase_s / 2), phase_s + SETTLED_S
    return {
        f"first {settled:g} s": [o for o in outcomes if o.request.at_s < settled],
        "before the step": [o for o in outcomes if settled <= o.request.at_s < phase_s],
        f"first {SETTLED_S:g} s after": [o for o in outcomes if phase_s <= o.request.at_s < after],
        "later": [o for o in outcomes if o.request.at_s >= after],
    }


def _window(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    samples = [o.sample for o in outcomes if o.sample is not None]
    ttfts = sorted(s.ttft_s * 1e3 for s in samples)
    tpots = sorted(s.tpot_s * 1e3 for s in samples if s.tpot_s is not None)
    return {
        "num_offered": len(outcomes),
        "attainment": round(sum(o.is_good for o in outcomes) / max(1, len(outcomes)), 4),
        "num_refused": sum(o.error_code not in (None, "unfinished") for o in outcomes),
        "num_unfinished": sum(o.error_code == "unfinished" for o in outcomes),
        "ttft_p50_ms": _quantile(ttfts, 0.5),
        "ttft_p95_ms": _quantile(ttfts, 0.95),
        "tpot_p95_ms": _quantile(tpots, 0.95),
    }


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[int(share * (len(ordered) - 1))], 1) if ordered else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
