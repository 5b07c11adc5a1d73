"""Saved runs: one JSON file each, and two of them side by side. Pure but for the files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadgen.summary import LATENCIES

VERSION = 1
RATES = ("requests_per_s", "goodput_per_s", "output_tokens_per_s", "attainment")
ROW = "{:<24}{:>14}{:>14}{:>10}"


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write a run. Raises ValueError where the file cannot be written."""
    try:
        path.write_text(json.dumps({"version": VERSION, **document}, separators=(",", ":")) + "\n")
    except OSError as error:
        raise ValueError(f"cannot save the run: {error}") from None


def load(path: Path) -> dict[str, Any]:
    """A saved run. Raises ValueError for anything else."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"{path} is no run of this version: save one with `tandem bench --save`")
    return document


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Lines of a table: figures of both and second over first; of the steady part where both have
    one."""
    part = "steady" if "steady" in first and "steady" in second else None
    left, right = (each[part] if part else each for each in (first, second))
    lines = [
        f"{part or 'whole'} run; the last column is B over A",
        ROW.format("", "A", "B", "B / A"),
    ]
    lines += [_row(name, left[name], right[name]) for name in RATES]
    for name in LATENCIES:
        for point, value in left[name].items():
            if point in right[name]:
                lines.append(_row(f"{name[:-3]} {point}, ms", value, right[name][point]))
    unlike = [
        f"{name}: A {first['settings'].get(name)}, B {value}"
        for name, value in second["settings"].items()
        if first["settings"].get(name) != value
    ]
    return lines + [f"not alike: {text}" for text in unlike]


def _row(name: str, left: float, right: float) -> str:
    ratio = f"{right / left:.2f}" if left else "-"
    return ROW.format(name, f"{left:,.3f}", f"{right:,.3f}", ratio)
