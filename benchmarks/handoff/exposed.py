"""The exposed time of a hand-off: from the end of a prompt's last step to its first decode step.

Real processes on one clock. Its four parts: the last chunk's copy and checksum, the Commit's way
to the decode node, the comparison of all checksums there, the way into a step. One request at a
time, so nothing that a busy decode node adds is in it: that is at most the rest of a running step.
"""

import asyncio
import itertools
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.claims.systems import DEMO_MODEL
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from benchmarks.stamped import ADMITTED, MOMENTS, StampBook, stamped
from loadgen.checkpoint import Shape, write_checkpoint
from loadgen.measure import run_workload
from loadgen.workload import Workload
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster

TARGET_SHARE = 0.01
NUM_OUTPUT = 3  # token 0, and decode steps enough to see that it goes on
ROOM = 64  # tokens of a context beside the prompt
PARTS = ("copy", "commit", "verify", "admit")


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what it is asked: prompts of these lengths, each so many times."""

    name: str
    shape: Shape
    prompt_lens: tuple[int, ...]
    num_repeats: tuple[int, ...]

    @property
    def node_args(self) -> tuple[str, ...]:
        """Pages of 16 tokens for two of the longest prompts."""
        longest = max(self.prompt_lens) + ROOM
        return ("--max-model-len", str(longest), "--num-pages", str(2 * longest // 16))


def _shape(hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int) -> Shape:
    return Shape(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads // 2,
        intermediate_size=intermediate_size,
        max_position_embeddings=16_384,
    )


LENGTHS = (1024, 2048, 4096, 8192)
FULL = (
    Case("38 M parameters", _shape(640, 8, 10, 1792), LENGTHS, (7, 5, 3, 3)),
    Case("96 M parameters", _shape(768, 12, 12, 2304), LENGTHS, (5, 3, 3, 1)),
)
QUICK = (Case("1 M parameters", _shape(128, 2, 4, 256), (256, 512), (2, 2)),)
TRANSPORTS = ("shared_memory", "zmq")


@dataclass(frozen=True, slots=True)
class Handoff:
    """One request, in seconds."""

    ttft_s: float  # at the client
    parts_s: tuple[float, ...]  # see `PARTS`
    num_bytes: int

    @property
    def exposed_s(self) -> float:
        """From the end of prefill to the decode step."""
        return sum(self.parts_s)

    @property
    def share(self) -> float:
        """Of TTFT."""
        return self.exposed_s / self.ttft_s


def run(options: Options) -> Report:
    """Each model over each transport."""
    rows: list[dict[str, Any]] = []
    for case in QUICK if options.quick else FULL:
        with checkpoint(case.shape) as model:
            for transport in TRANSPORTS:
                rows += asyncio.run(_measure(case, model, transport, options.seed))
    header = ("model, transport", "prompt", "MB", "TTFT ms", "exposed ms", "of TTFT", *PARTS)
    table = Table("exposed time of a hand-off, medians", header, [_cells(row) for row in rows])
    notes = (
        "exposed: end of the prompt's last step to the request's admission into a decode step",
        "parts in ms: last copies and checksums, Commit's way, verification, way into the step",
        f"target: below {TARGET_SHARE:.0%} of TTFT over shared memory; TTFT is the client's",
    )
    return Report([table], notes, {"handoffs": rows})


@contextmanager
def checkpoint(shape: Shape) -> Iterator[Path]:
    """A model folder with random weights, for as long as it is needed."""
    with TemporaryDirectory(prefix="tandem-bench-") as folder:
        model = Path(folder) / "model"
        write_checkpoint(model, shape, DEMO_MODEL)
        yield model


async def _measure(case: Case, model: Path, transport: str, seed: int) -> list[dict[str, Any]]:
    book = StampBook()
    cluster = LocalCluster(
        model=str(model),
        node_args=("--transport", transport, *case.node_args),
        coordinator_args=("--early-rejection", "off"),
        sink=book.take_line,
        started_as=stamped,
    )
    rows = []
    with cluster:
        async with AsyncClient(cluster.gateway_address) as client:
            await client.wait_until_ready(30.0)
            await _run(client, book, case, case.prompt_lens[0], 1, seed)  # opens the nodes' link
            counts = zip(case.prompt_lens, case.num_repeats, strict=True)
            for number, (prompt_len, num) in enumerate(counts, 1):
                found = await _run(client, book, case, prompt_len, num, seed + 100 * number)
                rows.append(summarise(f"{case.name}, {transport}", prompt_len, found))
                say("  ".join(_cells(rows[-1])))
    return rows


async def _run(
    client: AsyncClient, book: StampBook, case: Case, prompt_len: int, num: int, seed: int
) -> list[Handoff]:
    workload = Workload("handoff", (prompt_len,) * num, (NUM_OUTPUT,) * num)
    vocab_size = case.shape.vocab_size
    measured = await run_workload(
        client, workload, vocab_size=vocab_size, max_in_flight=1, seed=seed
    )
    if measured.num_failed:
        raise ValueError(f"{measured.num_failed} requests failed: {measured.errors}")
    handoffs = []
    for sample in measured.samples:
        await asyncio.to_thread(book.wait_for, ADMITTED, sample.request_id)
        at = [await asyncio.to_thread(book.wait_for, m, sample.request_id) for m in MOMENTS]
        parts = tuple(late - early for early, late in itertools.pairwise(at))
        handoffs.append(Handoff(sample.ttft_s, parts, sample.timeline.transfer_bytes))
    return handoffs


def summarise(name: str, prompt_len: int, handoffs: Sequence[Handoff]) -> dict[str, Any]:
    """Medians; the share's worst beside them."""

    def median_ms(values: Iterator[float]) -> float:
        return round(statistics.median(values) * 1e3, 3)

    parts = zip(PARTS, zip(*(h.parts_s for h in handoffs), strict=True), strict=True)
    return {
        "name": name,
        "prompt_len": prompt_len,
        "num_requests": len(handoffs),
        "num_bytes": handoffs[0].num_bytes,
        "ttft_ms": median_ms(h.ttft_s for h in handoffs),
        "exposed_ms": median_ms(h.exposed_s for h in handoffs),
        "share": round(statistics.median(h.share for h in handoffs), 5),
        "worst_share": round(max(h.share for h in handoffs), 5),
        "parts_ms": {part: median_ms(iter(values)) for part, values in parts},
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        str(row["prompt_len"]),
        f"{row['num_bytes'] / 1e6:.0f}",
        f"{row['ttft_ms']:.0f}",
        f"{row['exposed_ms']:.2f}",
        f"{row['share']:.2%}",
        *(f"{row['parts_ms'][part]:.2f}" for part in PARTS),
    ]
