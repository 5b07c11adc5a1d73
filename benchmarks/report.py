"""What a benchmark of this folder hands back: a table for people, one JSON line for programs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadgen.report import json_line, machine
from tandem.tables import format_table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under a heading that says what they are."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Report:
    """A measurement: its tables, what to know when reading them, its figures for programs."""

    tables: Sequence[Table]
    notes: Sequence[str] = ()
    figures: dict[str, Any] = field(default_factory=dict)


def render(report: Report) -> str:
    """The tables and notes as text."""
    blocks = []
    for table in report.tables:
        blocks.append("\n".join([table.title, *format_table(table.header, table.rows)]))
    if report.notes:
        blocks.append("\n".join(f"- {note}" for note in report.notes))
    return "\n\n".join(blocks)


def surroundings() -> dict[str, Any]:
    """Where, when and of what it was measured; `load_before` tells a busy machine."""
    show = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(show, capture_output=True, text=True, check=False).stdout.strip()
    return {
        **machine(),
        "num_cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit or "unknown",
    }


def publish(name: str, measure: Callable[[], Report], settings: dict[str, Any]) -> None:
    """Measure, print the tables, and as the last line the JSON of figures and surroundings."""
    where, began_at = surroundings(), time.monotonic()
    report = measure()
    print(render(report), flush=True)
    document = {
        "benchmark": name,
        "settings": settings,
        "figures": report.figures,
        "notes": list(report.notes),
        "machine": where,
        "seconds": round(time.monotonic() - began_at, 1),
    }
    print(json_line(document), flush=True)


def say(text: str) -> None:
    """For whoever waits: progress goes beside the tables."""
    print(text, file=sys.stderr, flush=True)
