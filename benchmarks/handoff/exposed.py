"""The exposed time of a hand-off: from the end of a prompt's last step to its first decode step.

Real processes on one clock. Its four parts: the last chunk's copy and checksum, the Commit's way
to the decode node, the comparison of all checksums there, the way into a step. One prompt at a
time; in the last rows beside streams that keep the decode node busy, whose steps are waited for.
"""

import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.handoff.cases import STREAM_TOKENS, Case, cases, checkpoint
from benchmarks.handoff.copying import CopyCosts, copy_costs
from benchmarks.interference.streams import Streams
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from benchmarks.stamped import ADMITTED, MOMENTS, StampBook, stamped
from loadgen.measure import run_workload
from loadgen.workload import Workload
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster

TARGET_SHARE = 0.01
NUM_OUTPUT = 3  # token 0, and decode steps enough to see that it goes on
PARTS = ("copy", "commit", "verify", "admit")
SHARED_MEMORY, ZMQ = TRANSPORTS = ("shared_memory", "zmq")


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
    for case in cases(options):
        costs = copy_costs(case.page_bytes)
        with checkpoint(case.shape) as model:
            for transport in TRANSPORTS:
                rows += asyncio.run(_measure(case, model, transport, costs, options.seed))
    measured = ("MB", "TTFT ms", "exposed ms", "of TTFT", *PARTS)
    header = ("model, transport", "prompt", *measured, "all copies ms", "of TTFT")
    table = Table("exposed time of a hand-off, medians", header, [_cells(row) for row in rows])
    notes = (
        "exposed: end of the prompt's last step to the request's admission into a decode step",
        "parts in ms: last copies and checksums, Commit's way, verification, way into the step",
        "all copies: processor time of copying and hashing all of the prompt's pages through "
        "shared memory, most of it while the prompt computes",
        f"target: below {TARGET_SHARE:.0%} of TTFT over shared memory, decode node idle; TTFT is "
        "the client's",
    )
    return Report([table], notes, {"handoffs": rows})


async def _measure(
    case: Case, model: Path, transport: str, costs: CopyCosts, seed: int
) -> list[dict[str, Any]]:
    book = StampBook()
    cluster = LocalCluster(
        model=str(model),
        node_args=("--transport", transport, *case.node_args),
        coordinator_args=("--early-rejection", "off"),
        sink=book.take_line,
        started_as=stamped,
    )
    rows: list[dict[str, Any]] = []

    async def add(name: str, prompt_len: int, num: int, seed: int) -> None:
        handoffs = await _run(client, book, case, prompt_len, num, seed)
        rows.append(summarise(name, prompt_len, handoffs, costs))
        say("  ".join(_cells(rows[-1])))

    with cluster:
        async with AsyncClient(cluster.gateway_address) as client:
            await client.wait_until_ready(30.0)
            shortest = case.prompt_lens[0]
            await _run(client, book, case, shortest, 1, seed)  # opens the nodes' link
            counts = zip(case.prompt_lens, case.num_repeats, strict=True)
            for number, (prompt_len, num) in enumerate(counts, 1):
                await add(f"{case.name}, {transport}", prompt_len, num, seed + 100 * number)
            if case.num_busy:
                async with _streams(client, case, seed):
                    name = f"{case.name}, {transport}, {case.num_streams} streams"
                    await add(name, shortest, case.num_busy, seed + 50)
    return rows


@asynccontextmanager
async def _streams(client: AsyncClient, case: Case, seed: int) -> AsyncIterator[None]:
    streams = Streams(
        client,
        num_streams=case.num_streams,
        vocab_size=case.shape.vocab_size,
        max_tokens=STREAM_TOKENS,
        seed=seed,
    )
    try:
        await asyncio.sleep(1.0)  # all of them decode
        yield
        streams.check()
    finally:
        await streams.stop()


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


def summarise(
    name: str, prompt_len: int, handoffs: Sequence[Handoff], costs: CopyCosts
) -> dict[str, Any]:
    """Medians; the share's worst beside them."""

    def median_ms(values: Iterator[float]) -> float:
        return round(statistics.median(values) * 1e3, 3)

    parts = zip(PARTS, zip(*(h.parts_s for h in handoffs), strict=True), strict=True)
    copies_s = handoffs[0].num_bytes * costs.with_checksum
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
        "copies_ms": round(copies_s * 1e3, 3),
        "copies_share": round(copies_s / statistics.median(h.ttft_s for h in handoffs), 5),
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
        f"{row['copies_ms']:.1f}",
        f"{row['copies_share']:.2%}",
    ]
