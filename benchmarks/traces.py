"""Lengths of real workloads, or drawn ones of about that kind where no trace is at hand.

A folder of traces holds `sharegpt_lengths.csv` (as processed for Sarathi-Serve),
`azure_code_2023.csv` (Azure LLM inference trace 2023, code; Patel et al., ISCA 2024) and
`mooncake_conversation.jsonl` (Mooncake, FAST 2025). Without it lengths are drawn from log-normal
distributions with medians and spreads of these traces: their tails are not the traces'.
"""

import csv
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one request: its prompt, and its answer."""

    num_prompt: int
    num_output: int

    @property
    def num_final(self) -> int:
        """Tokens at its end."""
        return self.num_prompt + self.num_output


@dataclass(frozen=True, slots=True)
class Source:
    """Where a trace is, and what drawn lengths look like: median, deviation of the log, longest."""

    file: str
    columns: tuple[str, str]
    prompt: tuple[int, float, int]
    output: tuple[int, float, int]


SOURCES = {
    "sharegpt": Source(
        "sharegpt_lengths.csv",
        ("num_prefill_tokens", "num_decode_tokens"),
        (1730, 1.2, 8141),
        (415, 0.8, 1024),
    ),
    "azure-code": Source(
        "azure_code_2023.csv",
        ("ContextTokens", "GeneratedTokens"),
        (1469, 1.0, 7437),
        (13, 1.1, 1899),
    ),
    "mooncake": Source(
        "mooncake_conversation.jsonl",
        ("input_length", "output_length"),
        (6909, 1.1, 126_195),
        (350, 0.9, 2000),
    ),
}
NUM_DRAWN = 10_000


def load_lengths(name: str, folder: Path | None) -> list[Lengths]:
    """All requests of a trace, in its order; drawn ones where `folder` is None.

    Raises ValueError where the folder has no such trace.
    """
    source = SOURCES[name]
    if folder is None:
        return _drawn(source)
    path = folder / source.file
    if not path.is_file():
        raise ValueError(f"no {source.file} in {folder}: name the folder that has it (--traces)")
    with path.open(newline="") as file:
        is_csv = path.suffix == ".csv"
        rows = list(csv.DictReader(file)) if is_csv else [json.loads(line) for line in file]
    prompt, output = source.columns
    return [Lengths(max(1, int(row[prompt])), max(1, int(row[output]))) for row in rows]


def sample_lengths(
    name: str, folder: Path | None, count: int, seed: int, *, longest: int | None = None
) -> list[Lengths]:
    """`count` requests of a trace without repetition; those above `longest` tokens are left out."""
    fitting = [
        each for each in load_lengths(name, folder) if longest is None or each.num_final <= longest
    ]
    if count > len(fitting):
        raise ValueError(f"{name} has {len(fitting)} requests that fit, {count} were asked for")
    return random.Random(seed).sample(fitting, count)


def describe_source(name: str, folder: Path | None) -> str:
    """For a note: what the lengths are."""
    if folder is None:
        return f"lengths drawn, log-normal with median and spread of {SOURCES[name].file}"
    return f"lengths of {SOURCES[name].file}"


def _drawn(source: Source) -> list[Lengths]:
    rng = random.Random(source.file)

    def draw(median: int, deviation: float, longest: int) -> int:
        value = math.exp(rng.gauss(math.log(median), deviation))
        return min(longest, max(1, round(value)))

    return [Lengths(draw(*source.prompt), draw(*source.output)) for _ in range(NUM_DRAWN)]
