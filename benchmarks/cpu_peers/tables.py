"""From records to tables, notes and figures. Pure."""

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.cpu_peers.catalogue import BASELINE, Cell
from benchmarks.cpu_peers.measure import Record
from benchmarks.cpu_peers.work import Roofline
from benchmarks.report import Table

OURS = "tandem-"
FIGURES = ("tokens_per_s", "tpot_ms", "ttft_ms", "memory_mb")
HEADER = (
    "engine", "version", "tokens/s", "least-most", "x static", "% roofline", "TPOT ms",
    "least-most", "TTFT ms", "least-most", "RSS MB", "equal", "runs",
)  # fmt: skip


def cell_table(cell: Cell, records: Mapping[str, Record], limit: Roofline) -> Table:
    """One row per engine, the fastest first; those that failed say why."""
    done = sorted(
        (name for name in records if records[name].runs),
        key=lambda name: -records[name].median("tokens_per_s"),
    )
    rows = [_row(name, records, limit) for name in done]
    speed, tpot, ttft = f"{limit.tokens_per_s:.0f}", f"{limit.tpot_ms:.2f}", f"{limit.ttft_ms:.0f}"
    rows.append(["roofline", "", speed, "", "", "100", tpot, "", ttft, "", "", "", ""])
    return Table(f"{cell}: medians over runs", HEADER, rows)


def _row(name: str, records: Mapping[str, Record], limit: Roofline) -> list[str]:
    record = records[name]
    speed = record.median("tokens_per_s")
    static = paired(records, name, BASELINE, "tokens_per_s")
    equal = num_equal(records, name)
    return [
        name,
        record.version,
        f"{speed:.0f}",
        _spread(record.values("tokens_per_s"), 0),
        "-" if static is None else f"{static:.2f}",
        f"{100 * speed / limit.tokens_per_s:.0f}",
        f"{record.median('tpot_ms'):.2f}",
        _spread(record.values("tpot_ms"), 1),
        f"{record.median('ttft_ms'):.0f}",
        _spread(record.values("ttft_ms"), 0),
        f"{record.median('memory_mb'):.0f}",
        "" if equal is None else f"{equal[0]}/{equal[1]}",
        str(len(record.runs)),
    ]


def ratio_table(cell: Cell, records: Mapping[str, Record]) -> Table:
    """Each layout of ours beside every other engine; above 1 ours is better."""
    ours = [name for name in records if name.startswith(OURS) and records[name].runs]
    others = [name for name in records if not name.startswith(OURS) and records[name].runs]
    rows = []
    for name in ours:
        for other in others:
            ratios = ratios_of(records, name, other)
            rows.append([name, other, *(f"{ratios[key]:.2f}" for key in FIGURES[:3])])
    header = ("ours", "theirs", "tokens/s", "TPOT", "TTFT")
    return Table(f"{cell}: how many times better ours is (medians of pairs)", header, rows)


def ratios_of(records: Mapping[str, Record], name: str, other: str) -> dict[str, float]:
    """Above 1: `name` is better than `other`."""
    speed = paired(records, name, other, "tokens_per_s")
    latencies = {key: paired(records, other, name, key) for key in FIGURES[1:3]}
    found = {"tokens_per_s": speed, **latencies}
    return {key: value for key, value in found.items() if value is not None}


def paired(records: Mapping[str, Record], name: str, other: str, key: str) -> float | None:
    """Median over runs of the ratio within each; of medians where runs are not as many."""
    if other not in records or not records[other].runs or not records[name].runs:
        return None
    mine, theirs = records[name].values(key), records[other].values(key)
    if len(mine) != len(theirs):
        return statistics.median(mine) / statistics.median(theirs)
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def num_equal(records: Mapping[str, Record], name: str) -> tuple[int, int] | None:
    """How many compared answers are the baseline's, token for token, and of how many."""
    if BASELINE not in records or not records[BASELINE].runs:
        return None
    theirs, mine = records[BASELINE].runs[0].exact_ids, records[name].runs[0].exact_ids
    if not theirs or not mine:
        return None
    return sum(a == b for a, b in zip(mine, theirs, strict=True)), len(theirs)


def failures(cell: Cell, records: Mapping[str, Record]) -> list[str]:
    """Why engines have no row, or fewer runs."""
    return [f"{cell}: {name}: {r.failure}" for name, r in records.items() if r.failure]


def cell_figures(cell: Cell, records: Mapping[str, Record], limit: Roofline) -> dict[str, Any]:
    """For programs: all runs of all engines, ratios, the roofline."""
    engines = {}
    for name, record in records.items():
        engine: dict[str, Any] = {"version": record.version, "failure": record.failure}
        if record.runs:
            engine |= {key: [round(v, 2) for v in record.values(key)] for key in FIGURES}
            engine["of_roofline"] = round(record.median("tokens_per_s") / limit.tokens_per_s, 4)
            engine["x_static"] = paired(records, name, BASELINE, "tokens_per_s")
            engine["equal"] = num_equal(records, name)
            engine["better_than"] = {
                other: ratios_of(records, name, other)
                for other in records
                if name.startswith(OURS) and other != name and records[other].runs
            }
        engines[name] = engine
    return {
        "model": cell.model,
        "dtype": cell.dtype,
        "num_parameters": cell.shape.num_parameters,
        "roofline": {
            "tokens_per_s": limit.tokens_per_s,
            "tpot_ms": limit.tpot_ms,
            "ttft_ms": limit.ttft_ms,
        },
        "engines": engines,
    }


def _spread(values: list[float], num_digits: int) -> str:
    return f"{min(values):.{num_digits}f}-{max(values):.{num_digits}f}"
