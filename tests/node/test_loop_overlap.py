"""What a step asked for goes out while the next one runs, and at once where none follows."""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from node.loop import StepLoop
from node.runner import StepBatch, StepResult


class CountingCore:
    """Plans as many steps as it is told of; settling step n asks for n, flushing gives -n."""

    def __init__(self) -> None:
        self.wake_at: float | None = None
        self.num_sending = self.num_verifying = 0
        self.num_wanted = 0
        self.num_steps = 0
        self.is_idle = True

    def handle(self, event: int, now: float) -> list:
        self.num_wanted += event
        return ["reply"]

    def tick_guests(self, now: float) -> list:
        return []

    def plan(self, now: float) -> object | None:
        if self.num_steps == self.num_wanted:
            return None
        return SimpleNamespace(batch=StepBatch((), ()))

    def settle(self, step: object, result: object, now: float) -> list:
        self.num_steps += 1
        return [self.num_steps]

    def flush(self, now: float) -> list:
        return [-self.num_steps] if self.num_steps else []

    def load(self, step_age_s: float) -> object:
        return None

    def cache_changes(self) -> None:
        return None


class AsyncRunner:
    """A device that runs by itself: each step ends when the test says so."""

    def __init__(self) -> None:
        self.num_launched = 0
        self.may_end = threading.Semaphore(0)

    def launch(self, batch: StepBatch) -> "AsyncRunner":
        self.num_launched += 1
        return self

    def result(self) -> StepResult:
        assert self.may_end.acquire(timeout=10)
        return StepResult(())


@pytest.fixture
def looping() -> Iterator[SimpleNamespace]:
    core, runner = CountingCore(), AsyncRunner()
    posted: list[object] = []
    errors: list[BaseException] = []
    loop = StepLoop(core, runner, post=posted.extend, failed=errors.append)
    loop.start()
    yield SimpleNamespace(loop=loop, runner=runner, posted=posted)
    runner.may_end.release(100)
    loop.stop()
    assert errors == []


def eventually(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_results_are_posted_while_the_next_step_runs(looping: SimpleNamespace) -> None:
    looping.loop.offer(3)
    eventually(lambda: "reply" in looping.posted)
    assert looping.runner.num_launched == 1
    looping.runner.may_end.release()
    # The second step was launched and has not ended.
    eventually(lambda: -1 in looping.posted)
    assert looping.runner.num_launched == 2
    assert looping.posted == ["reply", 1, -1]


def test_results_of_the_last_step_are_posted_at_once(looping: SimpleNamespace) -> None:
    looping.loop.offer(2)
    looping.runner.may_end.release(2)
    eventually(lambda: -2 in looping.posted)
    assert [p for p in looping.posted if p != "reply"][:4] == [1, -1, 2, -2]


def test_replies_never_overtake_what_a_step_emitted(looping: SimpleNamespace) -> None:
    looping.loop.offer(2)
    eventually(lambda: looping.runner.num_launched == 1)
    looping.loop.offer(0)
    looping.runner.may_end.release()
    eventually(lambda: looping.posted.count("reply") == 2)
    assert looping.posted == ["reply", 1, -1, "reply"]
