"""CUDA IPC between real processes on a real GPU. Needs CuPy."""

import json
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES, NUM_PAGES = 2 << 20, 256
ANSWER_S = 90.0  # the first of them imports torch and compiles a kernel
LOST_STATUS = 3


class Process:
    """`cuda_process.py`, told what to do line by line."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kv_transfer.cuda_process", identity],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def tell(self, *command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_S)
        assert ready, f"{self.identity} says nothing"
        line = self.process.stdout.readline()
        assert line, f"{self.identity} ended: {self.process.wait(10)}"
        return json.loads(line)

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.answer()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@pytest.fixture
def start() -> Iterator[Callable[[str], Process]]:
    processes: list[Process] = []

    def run(identity: str) -> Process:
        processes.append(Process(identity))
        return processes[-1]

    yield run
    for each in processes:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def owner(start) -> Process:
    owner = start("node/d0/1")
    owner.ask("fill", 1)
    return owner


@pytest.fixture
def writer(start) -> Process:
    return start("node/p0/1")


def join(writer: Process, owner: Process, address: str | None = None) -> str:
    """Open the owner's pool, with a grant of all its pages; the address."""
    address = address or owner.ask("serve")
    speed = writer.ask("connect", address)
    print(f"\n  measured when opened: {speed / 1e9:.0f} GB/s")
    owner.ask("grant", writer.identity, list(range(NUM_PAGES)))
    writer.ask("fill", 2)
    return address


def test_pages_cross_bit_for_bit(writer, owner) -> None:
    join(writer, owner)
    rng = random.Random(0)  # a run of 40 pages, then strays
    sources = [*range(100, 140), *rng.sample([*range(100), *range(140, NUM_PAGES)], 60)]
    targets = [*range(40), *rng.sample(range(40, NUM_PAGES), 60)]
    others = [p for p in range(NUM_PAGES) if p not in targets]
    before = owner.ask("hashes", others)
    seconds, checksum = writer.ask("write", sources, targets)
    assert seconds is not None, checksum
    assert owner.ask("hashes", targets) == writer.ask("hashes", sources)
    assert owner.ask("hashes", others) == before
    assert owner.ask("verify", targets, checksum) is None
    owner.ask("zero", targets[3:4])
    assert "differs" in owner.ask("verify", targets, checksum)
    assert writer.ask("read", others, others) == "PagesRead"
    assert writer.ask("hashes", others) == before


def test_pages_cross_while_the_owner_computes(writer, owner) -> None:
    join(writer, owner)
    everything = list(range(NUM_PAGES))
    owner.tell("compute", 3.0)
    slowest = 0.0
    ends_at = time.monotonic() + 2.5
    checksum = ""
    while time.monotonic() < ends_at:
        seconds, checksum = writer.ask("write", everything, everything)
        assert seconds is not None, checksum
        slowest = max(slowest, seconds)
    _, count = owner.answer()
    assert count > 0, "a product changed while pages were written"
    assert owner.ask("verify", everything, checksum) is None
    size = NUM_PAGES * PAGE_BYTES
    print(f"  slowest write of {size >> 20} MiB under load: {size / slowest / 1e9:.0f} GB/s")


def test_bandwidth(writer, owner) -> None:
    join(writer, owner)
    everything = list(range(NUM_PAGES))
    shuffled = random.Random(0).sample(everything, NUM_PAGES)
    for name, targets in [("one run", everything), ("page by page", shuffled)]:
        best, checksum = min(writer.ask("write", everything, targets) for _ in range(8))
        assert owner.ask("verify", targets, checksum) is None
        print(f"  {name}: {NUM_PAGES * PAGE_BYTES / best / 1e9:.0f} GB/s with digests")
        assert NUM_PAGES * PAGE_BYTES / best > 1e9


def test_a_writer_that_is_killed_leaves_the_owner_whole(start, writer, owner) -> None:
    address = join(writer, owner)
    assert writer.ask("flood")
    writer.kill()
    killed_at = time.monotonic()
    assert owner.ask("event") == "WriterGone"
    print(f"  gone and settled {time.monotonic() - killed_at:.3f} s after its end")
    everything = list(range(NUM_PAGES))
    owner.ask("zero", everything)
    assert owner.ask("stays_zero", everything, 1.0), "written after the writer's end was proved"
    assert owner.ask("compute", 0.2)[1] > 0
    other = start("node/p1/1")
    join(other, owner, address)
    seconds, checksum = other.ask("write", everything, everything)
    assert seconds is not None
    assert owner.ask("verify", everything, checksum) is None


def test_an_owner_that_is_killed_costs_the_writer_a_transfer_or_its_device(writer, owner) -> None:
    """Which of the two is the driver's business; being silently wrong is not allowed."""
    join(writer, owner)
    assert writer.ask("flood")
    owner.kill()
    try:
        first, count = writer.ask("compute", 2.0)
        assert count > 0, first
        outcome = "survived"
        writer.ask("fill", 3)
    except (AssertionError, BrokenPipeError, TypeError, ValueError):
        status = writer.process.wait(20)
        assert status == LOST_STATUS, f"the writer ended with {status}"
        outcome = "lost its device, and said so"
    print(f"  the writer {outcome}")


def test_cuda_refuses_a_processes_own_handle(owner) -> None:
    assert "its own" in owner.ask("open_own")


def test_nothing_is_left_of_pools_after_their_processes(start) -> None:
    """The memory of killed owners and writers comes back, mapped or not."""
    first = start("node/x/1").ask("free_bytes")
    pair = start("node/p0/1"), start("node/d0/1")
    join(*pair)
    for each in pair:
        each.kill()
    assert start("node/y/1").ask("free_bytes") > first - (1 << 30)
