"""Percentiles, and measurements as one JSON line for programs."""

import json
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 99)


def percentiles_ms(values_s: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest, in milliseconds."""
    if not values_s:
        return {}
    points = {f"p{p}": float(np.percentile(values_s, p)) * 1e3 for p in PERCENTILES}
    return {k: round(v, 3) for k, v in (points | {"max": max(values_s) * 1e3}).items()}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {"python": platform.python_version(), "machine": platform.processor() or "unknown"}


def json_line(document: dict[str, Any]) -> str:
    """The document on one line: the last line of a benchmark's output."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
