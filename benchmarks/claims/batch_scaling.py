"""Throughput by batch size on the real engine: what 8 or 32 rows give over one."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.claims.systems import DEMO_MODEL
from benchmarks.engine_probe import EngineProbe
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from loadgen.checkpoint import Shape, write_checkpoint

BATCH_SIZES = (1, 8, 32)
CONTEXTS = (64, 512)


def run(options: Options) -> Report:
    """Decode steps of the demo model and of a larger one, with short and with longer contexts."""
    repeats = 3 if options.quick else 30
    rows = []
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        models = {"demo": DEMO_MODEL}
        if not options.quick:
            models["random, 8 layers of 640"] = larger = Path(folder) / "model"
            write_checkpoint(larger, Shape(), DEMO_MODEL)
        for name, path in models.items():
            say(f"{name}: building")
            rows += _of_model(name, path, repeats)
    cells = [
        [
            f"{row['model']}, context {row['context']}",
            str(row["batch_size"]),
            f"{row['step_ms']:.2f}",
            f"{row['tokens_per_s']:.0f}",
            f"{row['ratio']:.1f}",
        ]
        for row in rows
    ]
    return Report(
        [Table("decode steps", ("model", "batch", "ms", "tokens/s", "x batch 1"), cells)],
        (
            f"least of {repeats} steps, float32, invariant numerics, one thread; greedy "
            "sampling included, scheduling and sockets not",
            "the ratio is that of one device to itself: it says how far a step is bound by weights "
            "(then it is the batch size) or by arithmetic (then it is 1)",
        ),
        {"rows": rows},
    )


def _of_model(name: str, path: Path, repeats: int) -> list[dict[str, Any]]:
    num_pages = max(BATCH_SIZES) * -(-max(CONTEXTS) // 16)
    probe = EngineProbe(path, num_pages=num_pages)
    rows = []
    for context in CONTEXTS:
        rates: dict[int, float] = {}
        for size in BATCH_SIZES:
            seconds = probe.step([], [context] * size, repeats).seconds
            rates[size] = size / seconds
            rows.append(
                {
                    "model": name,
                    "context": context,
                    "batch_size": size,
                    "step_ms": round(seconds * 1e3, 3),
                    "tokens_per_s": round(rates[size], 1),
                    "ratio": round(rates[size] / rates[1], 2),
                }
            )
    return rows
