"""Pages over zmq on one host beside a bare ZeroMQ stream of chunks of the same size.

The same two processes, sockets of the same types and options, in turns. The bare stream sends the
pool's memory as it lies, and its receiver drops what comes: no staging, no checksum, no grant, no
acknowledgement, no copy into a pool.
"""

import os
import queue
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks.handoff.wire import (
    EPOCH,
    FAR,
    FROM_FAR,
    INCARNATION,
    NEAR,
    WRITER,
    Ok,
    Open,
    Sink,
    SinkAt,
    Size,
    Socket,
    Verify,
    key_of,
    make_exchange,
    make_keys,
)
from benchmarks.options import Options
from benchmarks.report import Report, Table, say
from kv_transfer.actions import PagesWritten, WritePages
from kv_transfer.exchange import BulkExchange
from kv_transfer.niceness import yielding_context
from kv_transfer.zmq_frames import CHUNK_BYTES, PageChunk, dial, encode
from node.core import FromBulk
from tandem.child_process import ChildProcess, ProcessPlan, child_environment
from tandem.messages.common import NodeRef
from tandem.messages.handoff import OwnerWelcome

TARGET_RATIO = 0.8
START_S = 20.0
PATIENCE_MS = 60_000
FAR_NODE = NodeRef(node_id=FAR, incarnation=INCARNATION, epoch=EPOCH, control_address="")
SIZES = (Size(64, 2048), Size(512, 256), Size(2048, 64))  # 128 MiB each
Answer = TypeVar("Answer", bound=msgspec.Struct)


def run(options: Options) -> Report:
    """Small and large pages, without and with CURVE."""
    sizes = (Size(64, 64),) if options.quick else SIZES
    num_rounds = 2 if options.quick else 9
    rows = []
    for size in sizes:
        for encrypt in (False, True):
            rows.append(_measure(size, num_rounds, encrypt=encrypt))
            say("  ".join(_cells(rows[-1])))
    header = ("pages", "CURVE", "pages GB/s", "bare GB/s", "pages/bare", "least", "most")
    table = Table("pages over zmq beside a bare stream", header, [_cells(row) for row in rows])
    notes = (
        f"chunks of {CHUNK_BYTES // 1024} KiB, 128 MiB a turn; medians of {num_rounds} turns",
        "pages: from the request to the acknowledgement of the last chunk, which is in the pool",
        f"target: {TARGET_RATIO:.0%} of the bare stream",
    )
    return Report([table], notes, {"streams": rows})


class Near:
    """This process's side of both."""

    def __init__(self, size: Size, control: Socket, *, encrypt: bool) -> None:
        self._size = size
        self._control = control
        self._events: queue.Queue[object] = queue.Queue()
        self._exchange, pool = make_exchange(NEAR, size, encrypt=encrypt)
        self._memory = pool.buffer
        self._grant_id = 0
        self._context = yielding_context()
        self._exchange.start(self._take)
        greet(self._exchange, control)
        keys = make_keys(encrypt=encrypt)
        sink = ask(control, Sink(None if keys is None else keys.public), SinkAt)
        self._bare = dial(self._context, WRITER, sink.address, keys, sink.key)
        pages = pool.pages(size.layout.page_bytes, size.num_pages)
        pages[:] = 7  # not the one page of zeros that untouched memory shares

    def _take(self, wrapped: FromBulk) -> bool:
        """On the bulk thread."""
        self._events.put(wrapped.event)
        return True

    def send_pages(self) -> float:
        """All pages, as a node sends them; seconds. Raises ValueError where they do not verify."""
        self._grant_id += 1
        grant_id, pages = self._grant_id, tuple(range(self._size.num_pages))
        ask(self._control, Open(grant_id), Ok)
        began_at = time.perf_counter()
        write = WritePages(key_of(grant_id), FAR_NODE, grant_id, 0, pages, pages)
        self._exchange.submit(write)
        event = self._events.get(timeout=PATIENCE_MS / 1e3)
        seconds = time.perf_counter() - began_at
        if not isinstance(event, PagesWritten):
            raise ValueError(f"pages were not sent: {event}")
        error = ask(self._control, Verify(grant_id, event.chunk), Ok).error
        if error is not None:
            raise ValueError(error)
        return seconds

    def send_bare(self) -> float:
        """As many bytes as they are, in chunks of the same size; seconds."""
        began_at = time.perf_counter()
        for number in range(self._size.num_chunks):
            start = number * CHUNK_BYTES
            header = encode(PageChunk(0, start))
            chunk = self._memory[start : start + CHUNK_BYTES]
            self._bare.send_multipart([*header, chunk], copy=False)
        if not self._bare.poll(PATIENCE_MS):
            raise TimeoutError("the bare stream's receiver does not answer")
        self._bare.recv_multipart()
        return time.perf_counter() - began_at

    def close(self) -> None:
        """Release sockets and memory."""
        self._bare.close(linger=0)
        self._context.term()
        self._exchange.close()


def _measure(size: Size, num_rounds: int, *, encrypt: bool) -> dict[str, Any]:
    with far_side(size, encrypt=encrypt) as control:
        near = Near(size, control, encrypt=encrypt)
        try:
            near.send_pages(), near.send_bare()  # touch both pools, connect
            rounds = [(near.send_pages(), near.send_bare()) for _ in range(num_rounds)]
        finally:
            near.close()
    pages_s, bare_s = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    ratios = sorted(bare / pages for pages, bare in rounds)
    return {
        "page_kib": size.page_kib,
        "is_encrypted": encrypt,
        "num_bytes": size.num_bytes,
        "pages_bytes_per_s": round(size.num_bytes / pages_s),
        "bare_bytes_per_s": round(size.num_bytes / bare_s),
        "ratio": round(statistics.median(ratios), 3),
        "least_ratio": round(ratios[0], 3),
        "most_ratio": round(ratios[-1], 3),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['page_kib']} KiB",
        "yes" if row["is_encrypted"] else "no",
        f"{row['pages_bytes_per_s'] / 1e9:.2f}",
        f"{row['bare_bytes_per_s'] / 1e9:.2f}",
        f"{row['ratio']:.2f}",
        f"{row['least_ratio']:.2f}",
        f"{row['most_ratio']:.2f}",
    ]


@contextmanager
def far_side(size: Size, *, encrypt: bool) -> Iterator[Socket]:
    """A running far side; a socket for its commands."""
    flags = (str(size.page_kib), str(size.num_pages), str(int(encrypt)))
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        far = ChildProcess(
            ProcessPlan(name=FAR, module="benchmarks.handoff.far", flags=flags),
            log=Path(folder) / "far.log",
            env=child_environment(os.environ, 1),
            sink=lambda name, line: None,
        )
        context = yielding_context()
        try:
            control = dial(context, WRITER, _address_of(far), None, None)
            try:
                yield control
            finally:
                control.close(linger=0)
        finally:
            context.term()
            far.send_signal(signal.SIGKILL)
            far.wait(START_S)


def _address_of(far: ChildProcess) -> str:
    give_up_at = time.monotonic() + START_S
    while far.address is None:
        if far.exit_status is not None or time.monotonic() > give_up_at:
            raise ValueError("the far side does not start: " + "; ".join(far.last_lines()))
        time.sleep(0.01)
    return far.address


def greet(exchange: BulkExchange, control: Socket) -> None:
    """Agree with the far side on how pages go there."""
    chosen = exchange.open_owner(ask(control, exchange.hello(EPOCH), OwnerWelcome))
    ask(control, exchange.hello(EPOCH, chosen), OwnerWelcome)


def ask(control: Socket, message: msgspec.Struct, kind: type[Answer]) -> Answer:
    """The far side's answer to a command. Raises ValueError for another one, or none in time."""
    control.send(msgspec.msgpack.encode(message))
    if not control.poll(PATIENCE_MS):
        raise TimeoutError(f"no answer to {type(message).__name__}")
    answer = FROM_FAR.decode(control.recv())
    if not isinstance(answer, kind):
        raise ValueError(f"the far side answered {type(message).__name__} with {answer}")
    return answer
