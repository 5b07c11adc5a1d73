"""Whole bulk sides over pools on pretended GPUs: negotiation, threads, processes that end."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kv_transfer.actions import (
    CloseGrant,
    FenceWriter,
    GrantClosed,
    OpenGrant,
    PagesRead,
    PagesVerified,
    PagesWritten,
    ReadPages,
    StopWriting,
    VerifyPages,
    WriteFailed,
    WritePages,
    WriterGone,
)
from kv_transfer.cuda_driver import DeviceLost
from kv_transfer.cuda_ipc import CudaPool
from kv_transfer.exchange import BulkExchange
from kv_transfer.shared_memory import SharedPool
from node.config import NodeConfig
from node.core import FromBulk
from node.state import NodeIdentity
from tandem.layout import KVLayout
from tandem.messages.common import ModelIdentity, NodeRef
from tandem.messages.handoff import OwnerRefused, OwnerWelcome
from tandem.sockets import peer_identity
from tests.kv_transfer.fake_cuda import NEVER, FakeGpus

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = KVLayout(num_layers=2, num_kv_heads=2, head_dim=8, page_size=16, dtype="float32")
MODEL = ModelIdentity(
    served_name="m",
    weights_fingerprint="w1",
    tokenizer_fingerprint="t1",
    dtype="float32",
    max_model_len=128,
    vocab_size=100,
)
NUM_PAGES = 6
POOL_BYTES = (NUM_PAGES + 1) * LAYOUT.page_bytes
WRITER = peer_identity("node", "p0", 1)
OWNER = NodeRef(node_id="d0", incarnation=1, epoch=1, control_address="tcp://d0")
KEY = (b"k" * 16, 1)
MAPPING_PROCESS = """
import sys, time
from kv_transfer.cuda_ipc import MAGIC, MAX_OFFER_BYTES
from kv_transfer.handover import fetch

received = fetch(sys.argv[1], b"node/p0/1", MAGIC, MAX_OFFER_BYTES)
print(len(received.message) > 64, flush=True)
time.sleep(60)
"""


class Node:
    """A `BulkExchange` over a pool on a GPU, and the events it offered."""

    def __init__(self, gpus: FakeGpus, name: str, run_dir: Path, **options: Any) -> None:
        self.driver = gpus.driver(name, **options)
        self.pool = CudaPool(self.driver, POOL_BYTES)
        self.pages = gpus.pages(self.pool.base, LAYOUT.page_bytes)
        self.events: queue.Queue[Any] = queue.Queue()
        self.failures: queue.Queue[BaseException] = queue.Queue()
        self.exchange = make_exchange(name, self.pool, run_dir)
        self.exchange.start(self.take, self.failures.put)

    def take(self, event: FromBulk) -> bool:
        self.events.put(event.event)
        return True

    def event(self) -> Any:
        return self.events.get(timeout=10)

    def welcomes(self, writer: "Node", chosen: str | None = None) -> OwnerWelcome:
        welcome = self.exchange.answer(WRITER, writer.exchange.hello(4, chosen))
        assert isinstance(welcome, OwnerWelcome), welcome
        return welcome


def make_exchange(
    name: str, pool: SharedPool | CudaPool, run_dir: Path, transport: str = "auto"
) -> BulkExchange:
    return BulkExchange(
        NodeIdentity(name, 1, MODEL, LAYOUT, ()),
        pool,
        num_pages=NUM_PAGES,
        transport=transport,
        host="127.0.0.1",
        run_dir=run_dir,
    )


@pytest.fixture
def gpus() -> FakeGpus:
    return FakeGpus()


@pytest.fixture
def start(gpus: FakeGpus, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def run(name: str, **options: Any) -> Node:
        nodes.append(Node(gpus, name, tmp_path, **options))
        return nodes[-1]

    yield run
    for node in nodes:
        node.exchange.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def writer(start) -> Node:
    return start("p0")


@pytest.fixture
def owner(start) -> Node:
    return start("d0")


def join(writer: Node, owner: Node) -> None:
    """The whole negotiation."""
    assert writer.exchange.open_owner(owner.welcomes(writer)) == "cuda_ipc"
    assert owner.welcomes(writer, "cuda_ipc").transport == "cuda_ipc"
    assert owner.exchange.is_admitted(WRITER)


def test_from_hello_to_verified_and_read_pages(gpus, writer, owner) -> None:
    join(writer, owner)
    assert set(writer.exchange.measured()["d0"]) == {"cuda_ipc"}
    writer.pages[:] = np.arange(NUM_PAGES + 1, dtype=np.uint8)[:, None] + 1
    owner.pages[3] = 77
    owner.exchange.submit(OpenGrant(3, WRITER, (5, 0), (3,)))
    writer.exchange.submit(WritePages(KEY, OWNER, 3, 0, (1, 2), (5, 0)))
    sent = writer.event()
    assert isinstance(sent, PagesWritten)
    writer.exchange.submit(ReadPages(KEY, OWNER, 3, (3,), (4,)))
    assert isinstance(writer.event(), PagesRead)
    assert writer.pages[4].tolist() == [77] * LAYOUT.page_bytes
    owner.exchange.submit(VerifyPages(KEY, 3, (5, 0), (sent.chunk,)))
    assert owner.event() == PagesVerified(KEY, 3, None)
    assert owner.pages[[5, 0], 0].tolist() == [2, 3]
    owner.exchange.submit(CloseGrant(3))
    assert owner.event() == GrantClosed(3, False), "a writer that maps the pool says so itself"
    writer.exchange.close()
    owner.exchange.close()
    assert gpus.log == ["p0 closes", "p0 frees", "d0 frees"]


def test_stop_is_answered_when_the_copy_has_ended(gpus, writer, owner) -> None:
    join(writer, owner)
    writer.pages[:] = 9
    gpus.num_looks, num_copies = NEVER, len(gpus.runs)
    writer.exchange.submit(WritePages(KEY, OWNER, 3, 0, (1,), (5,)))
    ends_at = time.monotonic() + 10
    while len(gpus.runs) == num_copies:
        assert time.monotonic() < ends_at
    writer.exchange.submit(StopWriting(KEY))
    with pytest.raises(queue.Empty):
        writer.events.get(timeout=0.1)
    assert not owner.pages[5].any()
    gpus.num_looks = 1
    assert writer.event() == WriteFailed(KEY, 0, "stopped")
    assert owner.pages[5].all()


def test_pages_that_no_pool_has_are_never_copied(gpus, writer, owner) -> None:
    join(writer, owner)
    num_copies = len(gpus.runs)
    for sources, targets in [((NUM_PAGES,), (0,)), ((0,), (NUM_PAGES,)), ((-1,), (0,))]:
        writer.exchange.submit(WritePages(KEY, OWNER, 3, 0, sources, targets))
        event = writer.event()
        assert isinstance(event, WriteFailed)
        assert f"of a pool of {NUM_PAGES}" in event.reason
    assert len(gpus.runs) == num_copies


def test_pools_on_hosts_and_on_gpus_refuse_each_other_by_transport(start, tmp_path: Path) -> None:
    gpu = start("p0")
    host = make_exchange("d0", SharedPool.create(POOL_BYTES), tmp_path)
    refused = host.answer(WRITER, gpu.exchange.hello(1))
    assert isinstance(refused, OwnerRefused)
    assert "['shared_memory', 'zmq']" in refused.reason
    assert "['cuda_ipc']" in refused.reason
    assert refused.reason.endswith("with GPUs of the same host only")
    host.close()


@pytest.mark.parametrize("transport", ["zmq", "shared_memory"])
def test_a_transport_of_hosts_is_refused_for_a_gpu(gpus, tmp_path: Path, transport: str) -> None:
    pool = CudaPool(gpus.driver("d0"), POOL_BYTES)
    with pytest.raises(ValueError, match=f"--transport {transport} is not for this device"):
        make_exchange("d0", pool, tmp_path, transport)
    pool.close()


def test_why_a_pool_cannot_be_opened_is_told(start, owner) -> None:
    blind = start("p0", uuid="GPU-1", visible=("GPU-1",))
    with pytest.raises(ValueError, match="cuda_ipc: GPU GPU-0 is not visible here"):
        blind.exchange.open_owner(owner.welcomes(blind))
    refused = owner.exchange.answer(WRITER, blind.exchange.hello(4, "cuda_ipc"))
    assert isinstance(refused, OwnerWelcome), "it fetched the handle, its process is watched"


def test_a_lost_device_ends_the_thread_by_name(
    gpus, writer, owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhandled: queue.Queue[BaseException | None] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda args: unhandled.put(args.exc_value))
    join(writer, owner)
    writer.driver.lost = "an illegal memory access was encountered"
    writer.exchange.submit(WritePages(KEY, OWNER, 3, 0, (1,), (5,)))
    failure = writer.failures.get(timeout=10)
    assert isinstance(failure, DeviceLost)
    assert "illegal memory access" in str(failure)
    assert unhandled.get(timeout=10) is failure


def test_a_device_that_is_lost_while_a_link_is_opened_is_told(writer, owner) -> None:
    welcome = owner.welcomes(writer)
    writer.driver.lost = "unspecified launch failure"
    with pytest.raises(DeviceLost):
        writer.exchange.open_owner(welcome)
    assert isinstance(writer.failures.get(timeout=10), DeviceLost)


@pytest.fixture
def mapper(writer, owner) -> Iterator["subprocess.Popen[str]"]:
    """A process that has the owner's handle."""
    (offer,) = owner.welcomes(writer).offers
    process = subprocess.Popen(
        [sys.executable, "-c", MAPPING_PROCESS, offer.address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("is_fenced", [False, True])
def test_a_writer_is_gone_once_the_device_has_settled(gpus, owner, mapper, is_fenced: bool) -> None:
    owner.exchange.submit(OpenGrant(3, WRITER, (5, 0)))
    owner.exchange.submit(CloseGrant(4))
    assert owner.event() == GrantClosed(4, False)  # so the other one is open
    if is_fenced:
        owner.exchange.submit(FenceWriter(WRITER))
    else:
        mapper.send_signal(signal.SIGKILL)
    assert owner.event() == WriterGone(WRITER)
    assert gpus.log == ["d0 synchronizes"]
    assert mapper.wait(5) == -signal.SIGKILL
    owner.exchange.submit(CloseGrant(3))
    assert owner.event() == GrantClosed(3, False)


def test_memory_that_a_living_process_has_open_outlasts_the_node(gpus, owner, mapper) -> None:
    owner.exchange.close()
    assert gpus.log == []
    os.kill(mapper.pid, 0)


@pytest.mark.parametrize("device", ["cpu", "fake"])
def test_cuda_ipc_is_refused_for_other_devices(device: str) -> None:
    with pytest.raises(ValueError, match=f"is for GPUs, not for --device {device}"):
        NodeConfig(model="m", device=device, transport="cuda_ipc")
    assert NodeConfig(model="m", device="cuda:1", transport="cuda_ipc").device == "cuda:1"
