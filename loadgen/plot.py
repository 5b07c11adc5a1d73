"""A run as a picture: latencies over time and their distributions (needs matplotlib)."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def plot(path: Path, runs: Sequence[tuple[str, list[dict[str, Any]]]]) -> str:
    """Write a PNG of one run or several; returns what to tell the user of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plot: matplotlib is not installed; pip install 'tandem-serve[bench]'"
    figure = importlib.import_module("matplotlib.figure").Figure((11, 7), layout="constrained")
    (over_time, ttft), (tpot, itl) = figure.subplots(2, 2)
    for label, records in runs:
        done = [each for each in records if "ttft_s" in each]
        due = [each["due_s"] for each in done]
        over_time.plot(due, [each["ttft_s"] * 1e3 for each in done], ".", ms=4, label=label)
        _distribution(ttft, [each["ttft_s"] for each in done], label)
        _distribution(tpot, [_tpot_s(each) for each in done], label)
        _distribution(itl, [gap for each in done for gap in each["gaps_s"]], label)
    over_time.set(title="TTFT over the run", xlabel="due, s", ylabel="ms")
    for axes, name in ((ttft, "TTFT"), (tpot, "TPOT"), (itl, "time between tokens")):
        axes.set(title=name, xlabel="ms", ylabel="share of them at most", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    over_time.legend()
    figure.savefig(path, dpi=120)
    return f"plot: {path}"


def _tpot_s(record: dict[str, Any]) -> float:
    rest = record["num_output_tokens"] - 1
    seconds: float = record["end_s"] - record["ttft_s"]
    return seconds / rest if rest > 0 else 0.0


def _distribution(axes: Any, values_s: Sequence[float], label: str) -> None:  # noqa: ANN401
    if values_s:
        ordered = np.sort(np.asarray(values_s)) * 1e3
        axes.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), label=label)
