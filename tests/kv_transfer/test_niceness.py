"""What moves pages gives way to what handles control messages, and nothing else does."""

import os
import threading
from pathlib import Path

import zmq

from kv_transfer.niceness import (
    NAP_S,
    NICENESS,
    ROUNDS_AT_ONCE,
    ROUNDS_PER_NAP,
    Naps,
    give_way,
    yielding_context,
)


def niceness_of(thread_id: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread_id)


def test_only_the_thread_that_asks_gives_way() -> None:
    seen: list[int] = []

    def ask() -> None:
        give_way()
        seen.append(niceness_of(threading.get_native_id()))

    before = niceness_of(0)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert seen == [NICENESS]
    assert niceness_of(0) == before


def test_the_threads_of_the_context_give_way() -> None:
    def threads() -> set[int]:
        return {int(task.name) for task in Path("/proc/self/task").iterdir()}

    before = threads()
    with yielding_context() as context, context.socket(zmq.PAIR) as socket:
        socket.set(zmq.LINGER, 0)
        own = threads() - before
        assert own
        assert {niceness_of(thread_id) for thread_id in own} == {NICENESS}


def test_naps_come_with_long_work_only(monkeypatch) -> None:
    naps_s: list[float] = []
    monkeypatch.setattr("kv_transfer.niceness.time.sleep", naps_s.append)
    naps = Naps()
    for _ in range(3):  # short work after a rest: none
        for _ in range(ROUNDS_AT_ONCE):
            naps.round_begins(has_work=True)
        naps.round_begins(has_work=False)
    assert naps_s == []
    for _ in range(ROUNDS_AT_ONCE + 5 * ROUNDS_PER_NAP):
        naps.round_begins(has_work=True)
    assert naps_s == [NAP_S] * 5
