"""What a gateway's HTTP door costs: CPU per streamed token, time to the first byte, memory.

A real gateway process with the demo model's tokenizer, a node without a model (`fake_cluster`), and
callers that read bytes and throw them away. CPU is the gateway's alone, all its threads.
"""

import asyncio
import json
import os
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.options import Options
from benchmarks.report import ROOT, Report, Table
from tandem.child_process import ChildProcess, ProcessPlan, child_environment
from tandem.launch import is_free

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TAIL_BYTES = 300
IDLE_STEP_MS = 60_000.0
START_S, PATIENCE_S = 60.0, 300.0
MODEL = ROOT / "models" / "demo"
HTTP_PORTS = range(18_000, 18_100)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. `steps` are of the cluster: their time, and for how many streams."""

    num_streams: int
    num_tokens: int
    step_ms: float
    num_calls: int
    num_open: int


FULL = Scale(num_streams=200, num_tokens=400, step_ms=40.0, num_calls=300, num_open=1000)
QUICK = Scale(num_streams=4, num_tokens=10, step_ms=5.0, num_calls=5, num_open=10)


def run(options: Options) -> Report:
    """Start everything, measure, end everything."""
    scale = QUICK if options.quick else FULL
    with ExitStack() as stack:
        gateway, port = _start(stack, scale.step_ms)
        figures = uvloop.run(asyncio.wait_for(_measure(gateway, port, scale), PATIENCE_S))
    with ExitStack() as stack:
        gateway, port = _start(stack, IDLE_STEP_MS)
        memory = uvloop.run(asyncio.wait_for(_memory(gateway, port, scale), PATIENCE_S))
    return _report(figures | {"kb_per_open_stream": memory}, scale)


def _start(stack: ExitStack, step_ms: float) -> tuple[ChildProcess, int]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
    port = next(port for port in HTTP_PORTS if is_free(port))
    cluster = _launch(stack, folder, "cluster", "benchmarks.compare.fake_cluster",
                      str(step_ms))  # fmt: skip
    gateway = _launch(stack, folder, "gateway", "gateway", "--model", str(MODEL), "--port", "0",
                      "--http-port", str(port), "--coordinator", cluster.address or "",
                      "--max-live-requests", "2048", "--drain-s", "1")  # fmt: skip
    return gateway, port


def _launch(stack: ExitStack, folder: Path, name: str, module: str, *flags: str) -> ChildProcess:
    env = child_environment(os.environ, 1)
    process = ChildProcess(
        ProcessPlan(name=name, module=module, flags=flags),
        log=folder / f"{name}.log",
        env={**env, "PYTHONPATH": str(ROOT)},
        sink=lambda name, line: None,
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


async def _measure(gateway: ChildProcess, port: int, scale: Scale) -> dict[str, float]:
    await _first_byte_ms(port)  # links and threads are there from now on
    cpu_before = _cpu_s(gateway)
    first_bytes_ms = [await _first_byte_ms(port) for _ in range(scale.num_calls)]
    cpu_ms = (_cpu_s(gateway) - cpu_before) * 1e3 / scale.num_calls
    tokens_per_cpu_s, per_s = await _streaming(gateway, port, scale)
    return {
        "tokens_per_cpu_s": tokens_per_cpu_s,
        "tokens_per_s": per_s,
        "first_byte_ms_p50": statistics.median(first_bytes_ms),
        "first_byte_ms_p90": statistics.quantiles(first_bytes_ms, n=10)[-1],
        "cpu_ms_per_call": cpu_ms,
    }


def _report(figures: dict[str, float], scale: Scale) -> Report:
    rows = [
        ["tokens per CPU-second of the gateway", f"{figures['tokens_per_cpu_s']:,.0f}"],
        [f"at tokens/s, in {scale.num_streams} streams", f"{figures['tokens_per_s']:,.0f}"],
        ["CPU of the gateway per call of one token", f"{figures['cpu_ms_per_call']:.2f} ms"],
        ["first byte after the request, p50", f"{figures['first_byte_ms_p50']:.2f} ms"],
        ["first byte after the request, p90", f"{figures['first_byte_ms_p90']:.2f} ms"],
        [
            f"memory per open stream, of {scale.num_open}",
            f"{figures['kb_per_open_stream']:.0f} kB",
        ],
    ]
    notes = (
        "first byte: one call after the other, with placement and a node that answers at once, all "
        "over loopback sockets: callers, coordinator and node are in it",
        "memory: growth of the gateway's resident set, streams that got their first token",
    )
    return Report([Table("the HTTP door", ("what", "measured"), rows)], notes, figures)


def _request(num_tokens: int) -> bytes:
    body = json.dumps({"prompt": "def f", "max_tokens": num_tokens, "stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _first_byte_ms(port: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(_request(1))
    await reader.readuntil(b"data: ")
    elapsed_ms = (time.perf_counter() - started) * 1e3
    await reader.read()
    writer.close()
    return elapsed_ms


async def _streaming(gateway: ChildProcess, port: int, scale: Scale) -> tuple[float, float]:
    cpu_before, started = _cpu_s(gateway), time.perf_counter()
    await asyncio.gather(*(_drink(port, scale.num_tokens) for _ in range(scale.num_streams)))
    elapsed_s, cpu_s = time.perf_counter() - started, _cpu_s(gateway) - cpu_before
    num_tokens = scale.num_streams * scale.num_tokens
    return num_tokens / max(cpu_s, 1 / TICKS_PER_S), num_tokens / elapsed_s


async def _drink(port: int, num_tokens: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_request(num_tokens))
    tail = b""
    while chunk := await reader.read(1 << 16):
        tail = (tail + chunk)[-TAIL_BYTES:]
    if not (tail.endswith(b"0\r\n\r\n") and b"[DONE]" in tail):
        raise ValueError(f"a stream did not end as it should: {tail!r}")
    writer.close()


async def _memory(gateway: ChildProcess, port: int, scale: Scale) -> float:
    await _first_byte_ms(port)
    before = _resident_bytes(gateway)
    streams = []
    for _ in range(scale.num_open):
        streams.append(await asyncio.open_connection("127.0.0.1", port))
        streams[-1][1].write(_request(3000))
    for reader, _ in streams:
        await reader.readuntil(b"data: ")
    grown = _resident_bytes(gateway) - before
    for _, writer in streams:
        writer.close()
    return grown / scale.num_open / 1000


def _cpu_s(process: ChildProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _resident_bytes(process: ChildProcess) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE_BYTES
