"""Writers in real processes that are killed and frozen while they write into a mapped pool."""

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kv_transfer.actions import (
    CloseGrant,
    FenceWriter,
    GrantClosed,
    OpenGrant,
    PagesWritten,
    WriteFailed,
    WriterGone,
)
from kv_transfer.shared_memory import SharedPool

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES, NUM_PAGES = 64 * 1024, 64
WRITER = b"node/p0/9"
GONE_S = 1.0
WRITING_PROCESS = """
import queue, sys
import numpy as np
from kv_transfer.actions import WritePages
from kv_transfer.bulk import BulkThread
from tandem.messages.common import NodeRef

pages = np.empty((64, 65536), np.uint8)
events = queue.Queue()
bulk = BulkThread(pages, identity=b"node/p0/9", host="127.0.0.1", post=events.put)
bulk.start()
bulk.open_peer("d0", 1, transport="shared_memory", address=sys.argv[1], num_pages=64)
owner = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
everything = tuple(range(64))
for count in range(1, 1 << 40):
    pages[:] = count % 255 + 1
    bulk.submit(WritePages((b"k" * 16, 1), owner, 7, 0, everything, everything))
    event = events.get(timeout=15)
    if count == 1:
        print(type(event).__name__, flush=True)
"""
OWNING_PROCESS = """
import os, sys, time
from kv_transfer.actions import OpenGrant
from kv_transfer.bulk import BulkThread
from kv_transfer.shared_memory import SharedPool

def admit(writer, pid, pidfd):
    bulk.watch_writer(writer, pid, pidfd)
    return True

pool = SharedPool.create(65 * 65536)
bulk = BulkThread(pool.pages(65536, 64), identity=b"d0", host="127.0.0.1", post=lambda event: None)
bulk.start()
transport, writer = sys.argv[1], sys.argv[2].encode()
bulk.admit_writer(writer, transport)
bulk.submit(OpenGrant(7, writer, tuple(range(64)) * 1000))
print(pool.serve(admit) if transport == "shared_memory" else bulk.zmq_address, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """`start(program, *arguments)`; what lives at the end is killed."""
    children: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", program, *arguments]
        children.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def pool() -> Iterator[SharedPool]:
    pool = SharedPool.create((NUM_PAGES + 1) * PAGE_BYTES)
    yield pool
    pool.close()


@pytest.fixture
def owner(pool: SharedPool, make_node):
    node = make_node("d0", pool.pages(PAGE_BYTES, NUM_PAGES))
    node.bulk.admit_writer(WRITER, "shared_memory")
    node.bulk.submit(OpenGrant(7, WRITER, tuple(range(NUM_PAGES))))
    return node


@pytest.fixture
def writer(start, pool: SharedPool, owner):
    """A process that fills all pages again and again."""

    def admit(identity: bytes, pid: int, pidfd: int) -> bool:
        owner.bulk.watch_writer(identity, pid, pidfd)
        return True

    process = start(WRITING_PROCESS, pool.serve(admit))
    assert process.stdout is not None
    assert process.stdout.readline() == "PagesWritten\n"
    return process


def assert_still(pages: "np.ndarray") -> None:
    """Nobody writes any more: what we put there stays."""
    pages[:] = 0
    ends_at = time.monotonic() + 0.2
    while time.monotonic() < ends_at:
        assert not pages.any()


def test_a_mapped_writer_that_is_killed_is_told_within_a_second(owner, writer) -> None:
    writer.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    assert owner.event() == WriterGone(WRITER)
    assert time.monotonic() - killed_at < GONE_S
    assert_still(owner.pages)
    owner.bulk.submit(CloseGrant(7))
    assert owner.event() == GrantClosed(7, False)
    assert owner.events.empty(), "told once"


def test_a_grant_or_a_fence_after_the_end_is_told_again(owner, writer) -> None:
    """A reserve may have been on its way; nobody else would ever free its pages."""
    writer.send_signal(signal.SIGKILL)
    assert owner.event() == WriterGone(WRITER)
    owner.bulk.admit_writer(WRITER, "zmq")  # a late hello changes nothing
    owner.bulk.submit(OpenGrant(8, WRITER, (1,)))
    assert owner.event() == WriterGone(WRITER)
    owner.bulk.submit(FenceWriter(WRITER))
    assert owner.event() == WriterGone(WRITER)
    owner.bulk.submit(CloseGrant(8))
    assert owner.event() == GrantClosed(8, True)


def test_a_frozen_writer_is_ended_by_its_fence(owner, writer) -> None:
    writer.send_signal(signal.SIGSTOP)
    with pytest.raises(queue.Empty):
        owner.events.get(timeout=0.3)  # being frozen proves nothing
    owner.bulk.submit(FenceWriter(WRITER))
    fenced_at = time.monotonic()
    assert owner.event() == WriterGone(WRITER)
    assert time.monotonic() - fenced_at < GONE_S
    assert writer.wait(5) == -signal.SIGKILL
    assert_still(owner.pages)


def test_a_fence_without_a_pidfd_is_refused_and_logged(owner, caplog) -> None:
    with caplog.at_level(logging.WARNING, "tandem.kv_transfer"):
        owner.bulk.submit(FenceWriter(b"node/p9/1"))
        owner.bulk.submit(CloseGrant(7))
        assert owner.event() == GrantClosed(7, False)
    assert "cannot end node/p9/1: its process is not known" in caplog.text


def test_this_process_is_never_fenced(owner, caplog) -> None:
    owner.bulk.watch_writer(WRITER, os.getpid(), os.pidfd_open(os.getpid()))
    with caplog.at_level(logging.WARNING, "tandem.kv_transfer"):
        owner.bulk.submit(FenceWriter(WRITER))
        owner.bulk.submit(CloseGrant(7))
        assert owner.event() == GrantClosed(7, False)
    assert "or is this one" in caplog.text


@pytest.mark.parametrize("transport", ["shared_memory", "zmq"])
def test_an_owner_that_is_killed_crashes_no_writer(
    start, make_node, make_pages, make_write, transport: str
) -> None:
    """Its sealed memory lives as long as it is mapped; sockets fail when the link is given up."""
    writer = make_node("p0", make_pages(NUM_PAGES, PAGE_BYTES))
    process = start(OWNING_PROCESS, transport, writer.identity.decode())
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    writer.bulk.open_peer("d0", 1, transport=transport, address=address, num_pages=NUM_PAGES)
    everything = tuple(range(NUM_PAGES))
    num_writes = 400
    for i in range(num_writes):
        writer.bulk.submit(make_write("d0", everything, everything, first=i * NUM_PAGES))
    assert isinstance(writer.event(), PagesWritten)
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    timer = threading.Timer(0.2, writer.bulk.close_peer, ["d0"])  # as when the node is lost
    timer.start()
    answers = [writer.event() for _ in range(num_writes - 1)]
    timer.join()
    assert {type(answer) for answer in answers} <= {PagesWritten, WriteFailed}
    assert writer.bulk.is_alive
