"""Measurements as a table for people and as one JSON line for programs."""

import json
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadgen.measure import Measurement

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


def format_summary(summary: dict[str, Any]) -> str:
    """The figures of one run as a table."""
    lines = [
        f"requests   {summary['num_requests']} done, {summary['num_failed']} failed, "
        f"{summary['sla_attained']} within their SLA",
        f"time       {summary['duration_s']:.2f} s",
        f"throughput {summary['tokens_per_s']:.1f} tokens/s, "
        f"{summary['requests_per_s']:.2f} requests/s",
        "",
        f"{'ms':<8}" + "".join(f"{name:>10}" for name in ("p50", "p90", "p99", "max")),
    ]
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        cells = "".join(f"{value:>10.2f}" for value in summary[name].values())
        lines.append(f"{name[:-3].upper():<8}{cells}")
    lines += [f"error: {text}" for text in summary["errors"]]
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {"python": platform.python_version(), "machine": platform.processor() or "unknown"}


def json_line(document: dict[str, Any]) -> str:
    """The document on one line: the last line of a benchmark's output."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
