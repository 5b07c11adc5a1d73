"""The bulk thread among other threads: errors that it dies of, openings that come too late."""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kv_transfer import peer_pools
from kv_transfer.actions import BulkEvent, CloseGrant, GrantClosed, OpenGrant, WriteFailed
from kv_transfer.bulk import BulkThread
from kv_transfer.pool_owner import PoolOwner
from kv_transfer.shared_memory import SharedPool, map_pool

NUM_PAGES, PAGE_BYTES = 4, 4096


@pytest.fixture
def events() -> "queue.Queue[BulkEvent]":
    return queue.Queue()


@pytest.fixture
def bulk(events: "queue.Queue[BulkEvent]") -> Iterator[BulkThread]:
    """Not started yet."""
    pages = np.zeros((NUM_PAGES, PAGE_BYTES), np.uint8)
    bulk = BulkThread(pages, identity=b"node/p0/1", host="127.0.0.1", post=events.put)
    yield bulk
    bulk.close()


def test_an_error_of_the_thread_is_told_and_close_still_works(
    bulk: BulkThread, events, pool: SharedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[BaseException] = queue.Queue()
    unhandled: queue.Queue[BaseException | None] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda args: unhandled.put(args.exc_value))
    broken = RuntimeError("no such luck")

    def fail(*_: object) -> None:
        raise broken

    monkeypatch.setattr(PoolOwner, "open_grant", fail)
    bulk.start(told.put)
    bulk.submit(CloseGrant(1))
    assert events.get(timeout=10) == GrantClosed(1, False)
    bulk.submit(OpenGrant(2, b"w", (0,)))
    assert told.get(timeout=10) is broken
    assert unhandled.get(timeout=10) is broken
    open_shared(bulk, pool)
    bulk.open_peer("d1", 1, transport="zmq", address="tcp://127.0.0.1:9", num_pages=NUM_PAGES)
    bulk.close()
    assert not bulk.is_alive


@pytest.fixture
def pool() -> Iterator[SharedPool]:
    pool = SharedPool.create((NUM_PAGES + 1) * PAGE_BYTES)
    yield pool
    pool.close()


def let_in(writer: bytes, pid: int, pidfd: int) -> bool:
    os.close(pidfd)
    return True


def open_shared(bulk: BulkThread, pool: SharedPool) -> None:
    address = pool.serve(let_in)
    bulk.open_peer("d0", 1, transport="shared_memory", address=address, num_pages=NUM_PAGES)


@pytest.fixture
def opening(
    bulk: BulkThread, pool: SharedPool, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], None]], list[str]]:
    """`opening(between)` opens the pool, with `between` called while it is being mapped."""

    def run(between: Callable[[], None]) -> list[str]:
        entered, left = threading.Event(), threading.Event()

        def slow_map(*args: Any) -> Any:
            entered.set()
            assert left.wait(10)
            return map_pool(*args)

        monkeypatch.setattr(peer_pools, "map_pool", slow_map)
        problems: list[str] = []

        def open_it() -> None:
            try:
                open_shared(bulk, pool)
            except ValueError as error:
                problems.append(str(error))

        thread = threading.Thread(target=open_it)
        thread.start()
        assert entered.wait(10)
        between()
        left.set()
        thread.join(10)
        assert not thread.is_alive()
        return problems

    return run


@pytest.mark.parametrize("given_up", [True, False])
def test_a_link_given_up_while_its_pool_is_opened_stays_closed(
    bulk: BulkThread, opening, make_write, events, given_up: bool
) -> None:
    bulk.start()
    problems = opening(lambda: bulk.close_peer("d0" if given_up else "d1"))
    assert len(problems) == given_up
    bulk.submit(make_write("d0", (0,), (1,)))
    assert isinstance(events.get(timeout=10), WriteFailed) == given_up


def test_requests_are_served_while_a_pool_is_opened(bulk: BulkThread, opening, events) -> None:
    bulk.start()

    def ask() -> None:
        bulk.submit(CloseGrant(1))
        assert events.get(timeout=10) == GrantClosed(1, False)

    assert opening(ask) == []


def test_a_pool_opened_after_the_end_is_closed(bulk: BulkThread, opening, pool) -> None:
    bulk.start()
    assert opening(bulk.close) == ["the link to d0 was given up while its pool was being opened"]
    with pytest.raises(ValueError, match="cannot dial"):
        bulk.open_peer("d1", 1, transport="zmq", address="tcp://127.0.0.1:9", num_pages=1)
