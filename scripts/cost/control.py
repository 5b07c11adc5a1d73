"""How long a control message and its answer take while pages move between the same two processes.

The near side is a process that writes pages without a pause and pings the far side (`far.py`) over
a control link. Pings leave on a schedule, whether or not earlier ones were answered; one that its
own event loop sends late has waited for that long too, beyond the grain of the loop's timers.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
import zmq.asyncio

from kv_transfer.actions import PagesWritten, WriteFailed, WritePages
from node.core import FromBulk
from scripts.cost.wire import (
    EPOCH,
    FAR,
    FAR_NODE,
    LAYOUT,
    NEAR,
    FromFar,
    Ping,
    Pong,
    Side,
    Verified,
    Written,
    key_of,
)
from tandem.child_process import ChildProcess, ProcessPlan, child_environment
from tandem.keys import KeyFolder, Keyring
from tandem.messages.handoff import ChunkSum, OwnerRefused, OwnerWelcome
from tandem.sockets import Link

PING_S = 0.002
TIMER_S = 0.001  # the grain of an event loop's timers
START_S = 10.0
PATIENCE_S = 5.0
WARM_UP_GRANTS = 2  # touch every page of both pools
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Condition:
    """What goes on beside the control messages; `transport` None: nothing."""

    name: str
    transport: str | None
    is_encrypted: bool = False

    @property
    def idle_name(self) -> str:
        """The condition to compare with."""
        return "nothing, CURVE" if self.is_encrypted else "nothing"


CONDITIONS = (
    Condition("nothing", None),
    Condition("shared_memory", "shared_memory"),
    Condition("zmq", "zmq"),
    Condition("nothing, CURVE", None, is_encrypted=True),
    Condition("shared_memory, CURVE", "shared_memory", is_encrypted=True),
    Condition("zmq, CURVE", "zmq", is_encrypted=True),
)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of all pings of one measurement, and how fast the pages moved meanwhile."""

    latencies_s: tuple[float, ...]
    bytes_per_s: float


class Near:
    """Pings, and keeps one write of the whole pool under way from `write` on."""

    def __init__(self, link: "Link[FromFar]", side: Side) -> None:
        self._link = link
        self._side = side
        self._loop = asyncio.get_running_loop()
        self._welcome: asyncio.Queue[OwnerWelcome] = asyncio.Queue()
        self._sent: dict[int, float] = {}  # by number: when the ping was due
        self._latencies_s: list[float] = []
        self._grant_id = 0
        self._is_writing = False
        self.problem: str | None = None
        self.num_verified = 0
        side.exchange.start(self._from_bulk)
        self._listening = asyncio.create_task(self._listen())

    async def join(self) -> None:
        """Introduce this node, agree on the transport."""
        exchange = self._side.exchange
        self._link.send(exchange.hello(EPOCH))
        chosen = await asyncio.to_thread(exchange.open_owner, await self._welcome.get())
        self._link.send(exchange.hello(EPOCH, chosen))
        await self._welcome.get()

    async def measure(self, seconds: float) -> list[float]:
        """Ping for so long; every ping is answered before this returns."""
        self._latencies_s = []
        due_at = time.perf_counter()
        for number in range(round(seconds / PING_S)):
            due_at += PING_S
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            self._sent[number] = min(time.perf_counter(), due_at + TIMER_S)
            self._link.send(Ping(number=number))
        async with asyncio.timeout(PATIENCE_S):
            while self._sent:  # noqa: ASYNC110
                await asyncio.sleep(PING_S)
        return self._latencies_s

    async def write(self) -> None:
        """Begin to write; returns when that goes well."""
        self._is_writing = True
        self._write_next()
        async with asyncio.timeout(START_S):
            while self.num_verified < WARM_UP_GRANTS and self.problem is None:  # noqa: ASYNC110
                await asyncio.sleep(PING_S)

    async def stop(self) -> None:
        """End with the write that is under way."""
        self._is_writing = False
        async with asyncio.timeout(START_S):
            while self.num_verified < self._grant_id and self.problem is None:  # noqa: ASYNC110
                await asyncio.sleep(PING_S)
        self._listening.cancel()

    async def _listen(self) -> None:
        async for message in self._link.messages():
            match message:
                case Pong(number=number):
                    self._latencies_s.append(time.perf_counter() - self._sent.pop(number))
                case Verified(error=error):
                    self.num_verified += 1
                    self.problem = self.problem or error
                case OwnerWelcome():
                    self._welcome.put_nowait(message)
                case OwnerRefused(reason=reason):
                    self.problem = reason

    def _write_next(self) -> None:
        """Also on the bulk thread."""
        self._grant_id += 1
        pages = self._side.pages
        key = key_of(self._grant_id)
        self._side.exchange.submit(WritePages(key, FAR_NODE, self._grant_id, 0, pages, pages))

    def _from_bulk(self, wrapped: FromBulk) -> bool:
        """On the bulk thread: the next write begins at once, then the loop is told of this one."""
        event = wrapped.event
        match event:
            case PagesWritten(chunk=chunk):
                grant_id = self._grant_id
                if self._is_writing:
                    self._write_next()
                self._loop.call_soon_threadsafe(self._tell, grant_id, chunk)
            case WriteFailed(reason=reason):
                self.problem = reason
        return True

    def _tell(self, grant_id: int, chunk: ChunkSum) -> None:
        self._link.send(Written(grant_id=grant_id, chunk=chunk))


@contextmanager
def far_side(condition: Condition, num_pages: int, run_dir: Path) -> Iterator[str]:
    """A running far side; its address."""
    flags = ["--transport", condition.transport or "zmq", "--num-pages", str(num_pages)]
    flags += ["--run-dir", str(run_dir)]
    if condition.is_encrypted:
        flags += ["--keys", str(run_dir / "keys")]
    process = ChildProcess(
        ProcessPlan(name=FAR, module="scripts.cost.far", flags=tuple(flags)),
        log=run_dir / "far.log",
        env=child_environment(os.environ, 1),
        sink=lambda name, line: None,
    )
    try:
        give_up_at = time.monotonic() + START_S
        while process.address is None:
            if process.exit_status is not None or time.monotonic() > give_up_at:
                raise ValueError("the far side does not start: " + "; ".join(process.last_lines()))
            time.sleep(0.01)
        yield process.address
    finally:
        process.send_signal(signal.SIGTERM)
        if not process.wait(START_S):
            process.send_signal(signal.SIGKILL)
            process.wait(START_S)


def measure(condition: Condition, num_pages: int, seconds: float) -> Latencies:
    """One condition, between this process and a fresh one."""
    with tempfile.TemporaryDirectory(prefix="tandem-cost-") as folder:
        run_dir = Path(folder)
        keys = None
        if condition.is_encrypted:
            KeyFolder.complete(run_dir / "keys", [("node", NEAR), ("node", FAR)])
            keys = Keyring(run_dir / "keys", "node", NEAR)
        with far_side(condition, num_pages, run_dir) as address:
            return uvloop.run(_measure(condition, num_pages, seconds, address, run_dir, keys))


async def _measure(
    condition: Condition,
    num_pages: int,
    seconds: float,
    address: str,
    run_dir: Path,
    keys: Keyring | None,
) -> Latencies:
    transport = condition.transport or "zmq"
    side = Side.make(NEAR, transport, num_pages, run_dir, encrypt=keys is not None)
    context = zmq.asyncio.Context()
    link: Link[FromFar] = Link(
        context, FromFar, identity=side.identity, address=address, keys=keys, server=f"node/{FAR}"
    )
    try:
        near = Near(link, side)
        async with asyncio.timeout(START_S):
            await near.join()
        if condition.transport is not None:
            await near.write()
        num_before, began_at = near.num_verified, time.perf_counter()
        latencies_s = await near.measure(seconds)
        num_bytes = (near.num_verified - num_before) * num_pages * LAYOUT.page_bytes
        speed = num_bytes / (time.perf_counter() - began_at)
        await near.stop()
        if near.problem is not None:
            raise ValueError(f"{condition.name}: {near.problem}")
        return Latencies(tuple(latencies_s), speed)
    finally:
        side.exchange.close()
        link.close()
        context.term()


def measure_all(
    conditions: Sequence[Condition], num_rounds: int, num_pages: int, seconds: float, say: Say
) -> list[dict[Condition, Latencies]]:
    """All conditions in turn, in each round."""
    rounds = []
    for number in range(1, num_rounds + 1):
        rounds.append({each: measure(each, num_pages, seconds) for each in conditions})
        say(f"control messages: round {number} done")
    return rounds
