"""What a gateway's HTTP door costs: CPU per streamed token, time to the first byte, memory.

A real gateway process with the demo model's tokenizer, a node without a model (`fake_cluster`), and
callers that read bytes and throw them away. CPU is the gateway's alone, all its threads. What a
call's first byte took at the gateway is the time that its caller saw, less what the node says of
its own queue and prefill (`PrefillReport`): sockets, placement and both wake-ups stay in it.
"""

import asyncio
import json
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from benchmarks.options import Options
from benchmarks.report import ROOT, Report, Table
from tandem.child_process import ChildProcess, LineSink, ProcessPlan, child_environment
from tandem.launch import is_free

T = TypeVar("T")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TAIL_BYTES = 300
CALLS_STEP_MS, IDLE_STEP_MS = 2.0, 60_000.0
START_S, PATIENCE_S = 60.0, 300.0
CALL_TOKENS = 2  # the first is not the last, so no end is in its time
MODEL = ROOT / "models" / "demo"
HTTP_PORTS = range(18_000, 18_100)
NODE_TIME = re.compile(r"node (?P<request_id>[0-9a-f]{32}) (?P<ms>[0-9.]+)$")
ANSWER_ID = re.compile(rb'"id":"cmpl-([0-9a-f]{32})"')
SETTLED_S = 10.0  # within which the node's words of the last call come


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `steps_ms` are of the cluster: a token for each stream in each."""

    num_streams: int
    num_tokens: int
    steps_ms: tuple[float, ...]
    num_calls: int
    num_open: int


FULL = Scale(num_streams=200, num_tokens=400, steps_ms=(40.0, 20.0), num_calls=300, num_open=1000)
QUICK = Scale(num_streams=4, num_tokens=10, steps_ms=(5.0,), num_calls=5, num_open=10)


@dataclass(slots=True)
class Door:
    """A gateway that serves. `node_ms` by request: the node's own queue and prefill."""

    process: ChildProcess
    port: int
    node_ms: dict[str, float] = field(default_factory=dict)


def run(options: Options) -> Report:
    """Start everything, measure, end everything; for each rate anew."""
    scale = QUICK if options.quick else FULL
    streaming: dict[float, dict[str, float]] = {}
    for step_ms in scale.steps_ms:
        with _door(step_ms) as door:
            streaming[step_ms] = _within(_streaming(door, scale))
    with _door(CALLS_STEP_MS) as door:
        calls = _within(_calls(door, scale))
    with _door(IDLE_STEP_MS) as door:
        memory = _within(_memory(door, scale))
    return _report(streaming, calls, memory, scale)


def _within(measuring: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(asyncio.wait_for(measuring, PATIENCE_S))


@contextmanager
def _door(step_ms: float) -> Iterator[Door]:
    """A cluster and a gateway, with links and threads started."""
    node_ms: dict[str, float] = {}

    def note(name: str, line: str) -> None:
        if (match := NODE_TIME.match(line)) is not None:
            node_ms[match["request_id"]] = float(match["ms"])

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        port = next(port for port in HTTP_PORTS if is_free(port))
        fake = ("benchmarks.compare.fake_cluster", str(step_ms))
        cluster = _launch(stack, folder, "cluster", fake, note)
        flags = {
            "--model": str(MODEL),
            "--port": "0",
            "--http-port": str(port),
            "--coordinator": cluster.address or "",
            "--max-live-requests": "2048",
            "--drain-s": "1",
        }
        command = ("gateway", *(word for flag in flags.items() for word in flag))
        gateway = _launch(stack, folder, "gateway", command, lambda name, line: None)
        door = Door(gateway, port, node_ms)
        _within(_call_anew(door, 1))
        yield door


def _launch(
    stack: ExitStack, folder: Path, name: str, command: Sequence[str], sink: LineSink
) -> ChildProcess:
    env = child_environment(os.environ, 1)
    process = ChildProcess(
        ProcessPlan(name=name, module=command[0], flags=tuple(command[1:])),
        log=folder / f"{name}.log",
        env={**env, "PYTHONPATH": str(ROOT)},
        sink=sink,
    )
    stack.callback(_end, process)
    deadline = time.monotonic() + START_S
    while process.address is None:
        if process.exit_status is not None or time.monotonic() > deadline:
            lines = "\n".join(process.last_lines())
            raise ValueError(f"{name} does not start:\n{lines}")
        time.sleep(0.02)
    return process


def _end(process: ChildProcess) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10.0)


# --- time to the first byte ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirstByte:
    """When it came, by the caller's clock, and to which request."""

    ms: float
    request_id: str


async def _calls(door: Door, scale: Scale) -> dict[str, float]:
    """One call after the other, by turns on a kept connection and on one of its own."""
    kept = await asyncio.open_connection("127.0.0.1", door.port)
    cpu_before = _cpu_s(door.process)
    told: dict[str, list[FirstByte]] = {"kept": [], "new": []}
    for _ in range(scale.num_calls):
        told["kept"].append(await _call(*kept, CALL_TOKENS, is_kept=True))
        told["new"].append(await _call_anew(door, CALL_TOKENS))
    cpu_ms = (_cpu_s(door.process) - cpu_before) * 1e3 / (2 * scale.num_calls)
    kept[1].close()
    figures = {"cpu_ms_per_call": cpu_ms}
    deadline = time.monotonic() + SETTLED_S
    for kind, calls in told.items():
        while not all(call.request_id in door.node_ms for call in calls):
            if time.monotonic() > deadline:
                raise ValueError("the fake node does not say what its calls took it")
            await asyncio.sleep(0.05)
        own_ms = [call.ms - door.node_ms[call.request_id] for call in calls]
        figures[f"ttft_overhead_ms_p50_{kind}"] = statistics.median(own_ms)
        figures[f"ttft_overhead_ms_p90_{kind}"] = statistics.quantiles(own_ms, n=10)[-1]
        node_ms = [door.node_ms[call.request_id] for call in calls]
        figures[f"node_ms_p50_{kind}"] = statistics.median(node_ms)
    return figures


async def _call_anew(door: Door, num_tokens: int) -> FirstByte:
    """On a connection of its own, which is made before the clock starts and not used again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    called = await _call(reader, writer, num_tokens, is_kept=False)
    writer.close()
    return called


async def _call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_tokens: int, *, is_kept: bool
) -> FirstByte:
    """A call, read to its end."""
    started = time.perf_counter()
    writer.write(_request(num_tokens, is_kept=is_kept))
    await reader.readuntil(b"data: ")
    elapsed_ms = (time.perf_counter() - started) * 1e3
    rest = await reader.readuntil(b"0\r\n\r\n")
    found = ANSWER_ID.search(rest)
    if found is None:
        raise ValueError(f"an answer without an id: {rest!r}")
    return FirstByte(elapsed_ms, found[1].decode())


def _request(num_tokens: int, *, is_kept: bool = False) -> bytes:
    body = json.dumps({"prompt": "def f", "max_tokens": num_tokens, "stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"connection: {'keep-alive' if is_kept else 'close'}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# --- streams -------------------------------------------------------------------------------------


async def _streaming(door: Door, scale: Scale) -> dict[str, float]:
    cpu_before, started = _cpu_s(door.process), time.perf_counter()
    await asyncio.gather(*(_drink(door.port, scale.num_tokens) for _ in range(scale.num_streams)))
    elapsed_s, cpu_s = time.perf_counter() - started, _cpu_s(door.process) - cpu_before
    num_tokens = scale.num_streams * scale.num_tokens
    return {
        "tokens_per_cpu_s": num_tokens / max(cpu_s, 1 / TICKS_PER_S),
        "tokens_per_s": num_tokens / elapsed_s,
    }


async def _drink(port: int, num_tokens: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(num_tokens))
    tail = b""
    while chunk := await reader.read(1 << 16):
        tail = (tail + chunk)[-TAIL_BYTES:]
    if not (tail.endswith(b"0\r\n\r\n") and b"[DONE]" in tail):
        raise ValueError(f"a stream did not end as it should: {tail!r}")
    writer.close()


async def _memory(door: Door, scale: Scale) -> float:
    before = _resident_bytes(door.process)
    streams = []
    for _ in range(scale.num_open):
        streams.append(await asyncio.open_connection("127.0.0.1", door.port))
        streams[-1][1].write(_request(3000))
    for reader, _ in streams:
        await reader.readuntil(b"data: ")
    grown = _resident_bytes(door.process) - before
    for _, writer in streams:
        writer.close()
    return grown / scale.num_open / 1000


def _cpu_s(process: ChildProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _resident_bytes(process: ChildProcess) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE_BYTES


def _report(
    streaming: dict[float, dict[str, float]], calls: dict[str, float], memory: float, scale: Scale
) -> Report:
    rows = [
        row
        for step_ms, told in streaming.items()
        for row in (
            [
                f"tokens per CPU-second of the gateway, {scale.num_streams} streams, "
                f"{1e3 / step_ms:.0f} tokens/s each",
                f"{told['tokens_per_cpu_s']:,.0f}",
            ],
            ["at tokens/s, all together", f"{told['tokens_per_s']:,.0f}"],
        )
    ]
    rows += [
        ["CPU of the gateway per call of two tokens", f"{calls['cpu_ms_per_call']:.2f} ms"],
        *(
            [f"first byte, less the node's own time, {named}, {p}", f"{calls[key]:.2f} ms"]
            for kind, named in (("kept", "kept connection"), ("new", "new connection"))
            for p in ("p50", "p90")
            for key in (f"ttft_overhead_ms_{p}_{kind}",)
        ),
        [
            "the node's own time in it (queue and prefill), p50",
            f"{calls['node_ms_p50_kept']:.2f} ms",
        ],
        [f"memory per open stream, of {scale.num_open}", f"{memory:.0f} kB"],
    ]
    notes = (
        "first byte: one call after the other, by the caller's clock, over loopback sockets; the "
        "coordinator's placement and all wake-ups are in it",
        "memory: growth of the gateway's resident set, streams that got their first token",
    )
    figures: dict[str, float] = {**calls, "kb_per_open_stream": memory}
    for step_ms, told in streaming.items():
        suffix = "" if step_ms == scale.steps_ms[0] else f"_at_{1e3 / step_ms:.0f}_per_s"
        figures |= {f"{name}{suffix}": value for name, value in told.items()}
    return Report([Table("the HTTP door", ("what", "measured"), rows)], notes, figures)
