"""What to send: output lengths from a trace, and what batching can make of them. Pure.

`static_steps` and `continuous_steps` count decode steps for a list of output lengths; their ratio
is the most that continuous batching can win over static batching when every step takes as long.
"""

import csv
import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by length, in the order in which they are sent."""

    name: str
    prompt_lens: tuple[int, ...]
    output_lens: tuple[int, ...]

    @property
    def num_output_tokens(self) -> int:
        """Tokens that a run produces."""
        return sum(self.output_lens)


def read_lengths(path: Path, column: str, *, clip: int) -> list[int]:
    """A column of a CSV trace, clipped to [1, clip]. ValueError names the columns there are."""
    if not path.is_file():
        raise ValueError(f"no trace at {path}: give the path of a CSV file with a length column")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"{path.name} has no column {column!r}, only {reader.fieldnames}")
        return [min(clip, max(1, int(float(row[column])))) for row in reader]


def sample_workload(
    name: str, lengths: Sequence[int], *, num_requests: int, prompt_len: int, seed: int
) -> Workload:
    """`num_requests` lengths drawn without replacement; equal prompt lengths."""
    if num_requests > len(lengths):
        raise ValueError(f"{name} has {len(lengths)} rows, {num_requests} were asked for")
    drawn = random.Random(seed).sample(list(lengths), num_requests)
    return Workload(name, (prompt_len,) * num_requests, tuple(drawn))


def decode_steps(output_lens: Sequence[int]) -> list[int]:
    """Decode steps of each request: prefill makes the first token."""
    return [n - 1 for n in output_lens if n > 1]


def static_steps(steps: Sequence[int], batch_size: int) -> int:
    """Batches in order, each as long as its longest member."""
    return sum(max(steps[i : i + batch_size]) for i in range(0, len(steps), batch_size))


def continuous_steps(steps: Sequence[int], batch_size: int) -> int:
    """Rows refilled the moment they are free; the last row to end ends the run."""
    rows = [0] * min(batch_size, len(steps))
    for num_steps in steps:
        heapq.heapreplace(rows, rows[0] + num_steps)
    return max(rows, default=0)


def step_bound(output_lens: Sequence[int], batch_size: int) -> float:
    """Static over continuous, in steps."""
    steps = decode_steps(output_lens)
    return static_steps(steps, batch_size) / max(1, continuous_steps(steps, batch_size))
