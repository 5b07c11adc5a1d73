"""Measurements as a table for people and as one JSON line for programs."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadgen.measure import Measurement
from loadgen.open_loop import UNFINISHED, OpenMeasurement

PERCENTILES = (50, 90, 99)


def percentiles_ms(values_s: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest, in milliseconds."""
    if not values_s:
        return {}
    points = {f"p{p}": float(np.percentile(values_s, p)) * 1e3 for p in PERCENTILES}
    return {k: round(v, 3) for k, v in (points | {"max": max(values_s) * 1e3}).items()}


def summarise(measurement: Measurement) -> dict[str, Any]:
    """The figures of one run."""
    samples = measurement.samples
    return {
        "num_requests": len(samples),
        "num_failed": measurement.num_failed,
        "errors": list(measurement.errors),
        "duration_s": round(measurement.duration_s, 3),
        "num_output_tokens": measurement.num_tokens,
        "tokens_per_s": round(measurement.tokens_per_s, 2),
        "requests_per_s": round(len(samples) / measurement.duration_s, 3),
        "sla_attained": sum(s.sla_attained for s in samples),
        "ttft_ms": percentiles_ms([s.ttft_s for s in samples]),
        "tpot_ms": percentiles_ms([s.tpot_s for s in samples if s.tpot_s is not None]),
        "itl_ms": percentiles_ms([gap for s in samples for gap in s.gaps_s]),
    }


def summarise_open(measurement: OpenMeasurement) -> dict[str, Any]:
    """The figures of an open-loop run: as of a closed one, and what became of the others.

    Rates are over the time in which requests were due. `late_ms`: how long after its time a request
    was sent, the sender's own fault and part of every latency.
    """
    refused = measurement.refusals
    errors = Counter(o.error_code for o in measurement.outcomes if o.error_code is not None)
    closed = Measurement(measurement.samples, len(refused), (), measurement.span_s)
    return summarise(closed) | {
        "errors": [f"{code}: {count}" for code, count in sorted(errors.items())],
        "num_offered": len(measurement.outcomes),
        "num_unfinished": errors[UNFINISHED],
        "offered_per_s": round(len(measurement.outcomes) / measurement.span_s, 3),
        "goodput_per_s": round(measurement.goodput_per_s, 3),
        "refusal_ms": percentiles_ms([o.error_after_s for o in refused]),
        "late_ms": percentiles_ms([o.late_s for o in measurement.outcomes]),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The figures of one run as a table."""
    lines = [
        f"requests   {summary['num_requests']} done, {summary['num_failed']} failed, "
        f"{summary['sla_attained']} within their SLA",
        f"time       {summary['duration_s']:.2f} s",
        f"throughput {summary['tokens_per_s']:.1f} tokens/s, "
        f"{summary['requests_per_s']:.2f} requests/s",
        *_open_lines(summary),
        "",
        f"{'ms':<8}" + "".join(f"{name:>10}" for name in ("p50", "p90", "p99", "max")),
    ]
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        cells = "".join(f"{value:>10.2f}" for value in summary[name].values())
        lines.append(f"{name[:-3].upper():<8}{cells}")
    lines += [f"error: {text}" for text in summary["errors"]]
    return "\n".join(lines)


def _open_lines(summary: dict[str, Any]) -> list[str]:
    if "num_offered" not in summary:
        return []
    return [
        f"offered    {summary['num_offered']} requests, {summary['offered_per_s']:.2f}/s, "
        f"goodput {summary['goodput_per_s']:.2f}/s, {summary['num_unfinished']} unfinished"
    ]


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {"python": platform.python_version(), "machine": platform.processor() or "unknown"}


def json_line(document: dict[str, Any]) -> str:
    """The document on one line: the last line of a benchmark's output."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
