"""Threads of a step: the order of layers at a cut, errors, and an end that leaves no thread."""

import gc
import threading
import time
from collections.abc import Callable

import pytest

from engine.parts import Part
from engine.step_threads import StepThreads
from node.runner import StepBatch

NUM_LAYERS = 50


def parts(*follows: bool) -> list[Part]:
    return [Part(StepBatch(()), (n,), each) for n, each in enumerate(follows)]


def test_every_part_has_a_thread_and_results_are_in_order() -> None:
    threads = StepThreads(3)
    both = threading.Barrier(3, timeout=10)

    def compute(part: Part, written: Callable[[], None]) -> tuple[int, str]:
        both.wait()
        return part.sequence_ids[0], threading.current_thread().name

    results = threads.run(parts(False, False, False), compute)
    assert [n for n, _ in results] == [0, 1, 2]
    assert results[0][1] == threading.current_thread().name
    assert len({name for _, name in results}) == 3
    assert StepThreads(1).run(parts(False), lambda part, written: part.sequence_ids) == [(0,)]


def test_a_part_behind_a_cut_reads_no_layer_before_it_is_written() -> None:
    threads = StepThreads(3)
    num_written = [0, 0, 0]

    def compute(part: Part, written: Callable[[], None]) -> bool:
        n = part.sequence_ids[0]
        is_in_order = True
        for layer in range(1, NUM_LAYERS + 1):
            if n == 0 and layer % 10 == 0:
                time.sleep(0.001)
            num_written[n] = layer
            written()
            is_in_order &= all(num_written[k] >= layer for k in range(n))
        return is_in_order

    for _ in range(5):
        num_written[:] = [0, 0, 0]
        assert threads.run(parts(False, True, True), compute) == [True] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_reaches_the_caller_and_nobody_waits_for_ever(failing: int) -> None:
    threads = StepThreads(3)

    def compute(part: Part, written: Callable[[], None]) -> int:
        for layer in range(NUM_LAYERS):
            if part.sequence_ids[0] == failing and layer == 7:
                raise ValueError(f"part {failing}")
            written()
        return part.sequence_ids[0]

    with pytest.raises(ValueError, match=f"part {failing}"):
        threads.run(parts(False, True, True), compute)
    assert threads.run(parts(False, False, False), lambda part, written: 1) == [1, 1, 1]


def test_threads_end_with_their_owner() -> None:
    before = set(threading.enumerate())
    threads = StepThreads(4)
    threads.run(parts(False, False), lambda part, written: None)
    started = [thread for thread in threading.enumerate() if thread not in before]
    assert len(started) == 3
    del threads
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
