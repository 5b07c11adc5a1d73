"""The comparison as a picture: a row of panels per cell (needs matplotlib)."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

PANELS = (
    ("tokens_per_s", "output tokens/s of the batch"),
    ("tpot_ms", "ms per token, one stream"),
    ("ttft_ms", "ms to the first token, long prompt"),
)
OURS, THEIRS, LIMIT = "#1f5fa8", "#9aa5b1", "#c0392b"


def plot(path: Path, cells: list[dict[str, Any]]) -> str:
    """Write a PNG from `tables.cell_figures`; returns what to tell the user of it."""
    if importlib.util.find_spec("matplotlib") is None:
        return "no plot: matplotlib is not installed; pip install 'tandem-serve[bench]'"
    size = (13, 3.2 * len(cells))
    figure = importlib.import_module("matplotlib.figure").Figure(size, layout="constrained")
    grid = figure.subplots(len(cells), len(PANELS), squeeze=False)
    for cell, row in zip(cells, grid, strict=True):
        done = {name: each for name, each in cell["engines"].items() if "tpot_ms" in each}
        for (key, title), axes in zip(PANELS, row, strict=True):
            _bars(axes, key, done, cell["roofline"][key])
            axes.set_title(title, fontsize=9)
        row[0].set_ylabel(f"{cell['model']}, {cell['dtype']}")
    figure.savefig(path, dpi=120)
    return f"plot: {path}"


def _bars(axes: Any, key: str, engines: dict[str, Any], limit: float) -> None:  # noqa: ANN401
    """Medians with whiskers from the least to the most of the runs; the limit as a line."""
    names = list(engines)[::-1]
    runs = [sorted(engines[name][key]) for name in names]
    middle = [each[len(each) // 2] for each in runs]
    whiskers = [
        [m - each[0] for m, each in zip(middle, runs, strict=True)],
        [each[-1] - m for m, each in zip(middle, runs, strict=True)],
    ]
    colours = [OURS if name.startswith("tandem") else THEIRS for name in names]
    bars = axes.barh(names, middle, xerr=whiskers, color=colours, height=0.7)
    axes.bar_label(bars, [f"{value:,.4g}" for value in middle], padding=3, fontsize=7)
    axes.axvline(limit, color=LIMIT, lw=1, ls="--")
    axes.margins(x=0.18)
    axes.tick_params(labelsize=7)
