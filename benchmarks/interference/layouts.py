"""P99 of the time between tokens while long prompts arrive, over that of the same load undisturbed.

The same streams and prompts for three layouts: a decode node on a core of its own with everything
else on the other one; the same decode node beside nothing but a load on memory, which is what the
hardware alone takes; one mixed node with chunked prefill that has both cores.

Times are the decode node's own, on its step thread: gateway and client share the other core with
the prefill node, and waiting for it there is no interference with decoding. The client's view is
told beside them. A prompt asks for two tokens: each is handed over and decoded once.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from benchmarks.handoff.cases import checkpoint
from benchmarks.interference.cores import here, memory_load, pin
from benchmarks.interference.streams import Streams, Windows
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from benchmarks.stamped import StampBook, stamped
from loadgen.checkpoint import Shape
from loadgen.measure import measure_request
from loadgen.report import percentiles_ms
from tandem.async_client import AsyncClient
from tandem.launch import LocalCluster

CALM, DISTURBED = "calm", "disturbed"
PROMPT_OUTPUT = 2
SETTLE_S = 1.0
STAMPS_S = 0.5  # nodes tell ten times per second


@dataclass(frozen=True, slots=True)
class Load:
    """Streams, and prompts that come one after another in each of the disturbed windows."""

    shape: Shape
    num_streams: int
    prompt_len: int
    num_prompts: int
    window_s: float
    num_windows: int  # of each kind

    @property
    def max_len(self) -> int:
        """A stream's context: more than the run can fill."""
        return self.shape.max_position_embeddings

    @property
    def node_args(self) -> tuple[str, ...]:
        """Pages for streams of any length, and for two prompts."""
        num_tokens = self.num_streams * self.max_len + 4 * self.prompt_len
        return ("--num-pages", str(num_tokens // 16))


FULL = Load(
    Shape(max_position_embeddings=16_384),
    num_streams=8,
    prompt_len=4096,
    num_prompts=3,
    window_s=10.0,
    num_windows=2,
)
QUICK = Load(
    Shape(128, 2, 4, 2, 256, max_position_embeddings=8192),
    num_streams=2,
    prompt_len=512,
    num_prompts=2,
    window_s=0.5,
    num_windows=1,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which nodes there are, and which cores the decode node and everything else have."""

    name: str
    num_prefill: int
    num_threads: int  # of each node
    decode: frozenset[int]
    others: frozenset[int]
    has_prompts: bool = True  # else a load on memory


def layouts(cores: Sequence[int]) -> tuple[Layout, ...]:
    """The three. Raises ValueError with fewer than two cores."""
    if len(cores) < 2:
        raise ValueError("interference is measured between two cores, and this process has one")
    decode, other = frozenset(cores[:1]), frozenset(cores[1:2])
    both = decode | other
    return (
        Layout("disaggregated", 1, 1, decode, other),
        Layout("decode and a memory load", 1, 1, decode, other, has_prompts=False),
        Layout("colocated, chunked prefill", 0, 2, both, both),
    )


def run(options: Options) -> Report:
    """All layouts, one after the other."""
    load = QUICK if options.quick else FULL
    rows = []
    with checkpoint(load.shape) as model:
        for layout in layouts(sorted(os.sched_getaffinity(0))):
            with here(layout.others):
                rows.append(asyncio.run(_measure(layout, load, str(model), options.seed)))
            say("  ".join(_cells(rows[-1])))
    header = (
        "layout",
        "calm P50",
        "P99",
        "disturbed P50",
        "P99",
        "P50 ratio",
        "P99 ratio",
        "client P99 ratio",
    )
    notes = (
        f"ms at the decode node; {load.num_streams} streams; prompts of {load.prompt_len} tokens "
        "one after another",
        "ratios: disturbed over calm of the same layout; client: where tokens arrive, on the core "
        "that prefill keeps busy",
        "memory load: copies of buffers that no cache holds, on the other core: the floor that "
        "this hardware gives",
        "two cores share memory and caches: 1.1 is a bound for two devices, and is claimed only "
        "where two were measured",
    )
    table = Table("time between tokens", header, [_cells(row) for row in rows])
    return Report([table], notes, {"layouts": rows})


async def _measure(layout: Layout, load: Load, model: str, seed: int) -> dict[str, Any]:
    book = StampBook()
    cluster = LocalCluster(
        model=model,
        num_prefill=layout.num_prefill,
        threads_per_node=layout.num_threads,
        node_args=load.node_args,
        coordinator_args=("--early-rejection", "off"),
        sink=book.take_line,
        started_as=stamped,
    )
    with cluster:
        for name, process in cluster.processes.items():
            pin(process.pid, layout.decode if name == "decode-0" else layout.others)
        async with AsyncClient(cluster.gateway_address) as client:
            await client.wait_until_ready(30.0)
            streams = Streams(
                client,
                num_streams=load.num_streams,
                vocab_size=load.shape.vocab_size,
                max_tokens=load.max_len - 64,
                seed=seed,
            )
            try:
                windows = await _run_windows(layout, load, client, streams)
            finally:
                await streams.stop()
    return _row(layout.name, windows, streams.node_times(book), streams.client_times())


async def _run_windows(
    layout: Layout, load: Load, client: AsyncClient, streams: Streams
) -> Windows:
    windows = Windows()
    await measure_request(client, streams.prompt(load.prompt_len), PROMPT_OUTPUT)  # opens links
    for _ in range(load.num_windows):
        await asyncio.sleep(SETTLE_S)
        with windows.open(CALM):
            await asyncio.sleep(load.window_s)
        with _memory(layout), windows.open(DISTURBED):
            if not layout.has_prompts:
                await asyncio.sleep(load.window_s)
            else:
                for _ in range(load.num_prompts):
                    await measure_request(client, streams.prompt(load.prompt_len), PROMPT_OUTPUT)
        streams.check()
    await asyncio.sleep(STAMPS_S)
    return windows


def _memory(layout: Layout) -> AbstractContextManager[None]:
    return nullcontext() if layout.has_prompts else memory_load(min(layout.others))


def _row(
    name: str, windows: Windows, node: list[list[float]], client: list[list[float]]
) -> dict[str, Any]:
    figures = {
        where: {kind: percentiles_ms(windows.gaps_s(kind, times)) for kind in (CALM, DISTURBED)}
        for where, times in (("node", node), ("client", client))
    }
    if not all(percentiles for kinds in figures.values() for percentiles in kinds.values()):
        raise ValueError(f"{name}: no tokens came in a window")
    ratios = {
        where: {p: round(kinds[DISTURBED][p] / kinds[CALM][p], 3) for p in ("p50", "p99")}
        for where, kinds in figures.items()
    }
    return {"name": name, "itl_ms": figures, "ratios": ratios}


def _cells(row: dict[str, Any]) -> list[str]:
    calm, disturbed = row["itl_ms"]["node"][CALM], row["itl_ms"]["node"][DISTURBED]
    times = (calm["p50"], calm["p99"], disturbed["p50"], disturbed["p99"])
    ratios = (
        row["ratios"]["node"]["p50"],
        row["ratios"]["node"]["p99"],
        row["ratios"]["client"]["p99"],
    )
    return [row["name"], *(f"{ms:.1f}" for ms in times), *(f"{ratio:.2f}" for ratio in ratios)]
