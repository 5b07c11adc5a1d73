"""What every benchmark of this folder may be told on its command line."""

from dataclasses import dataclass
from pathlib import Path

TRACES_VARIABLE = "TANDEM_TRACES"


@dataclass(frozen=True, slots=True)
class Options:
    """quick: a smoke run whose figures mean little. traces: folder, see `benchmarks.traces`."""

    quick: bool
    traces: Path | None
    seed: int
