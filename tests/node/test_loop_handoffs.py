"""Between two steps the loop waits a moment for what the last one handed over, and not for long."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from node.core import FromBulk
from node.loop import HANDOFF_SHARE, StepLoop
from node.runner import Deferred, StepBatch, StepResult

STEP_S = 0.2


class SendingCore:
    """Two steps, of which the first finishes a prompt; `FromBulk` says that its pages are there."""

    def __init__(self) -> None:
        self.wake_at: float | None = None
        self.num_sending = 1  # another prompt's pages, stuck for long: nobody waits for those
        self.num_verifying = 0
        self.num_steps = 0
        self.is_idle = True
        self.handled_at: float | None = None

    def handle(self, event: object, now: float) -> list:
        self.num_sending, self.handled_at = 1, now
        return []

    def tick_guests(self, now: float) -> list:
        return []

    def flush(self, now: float) -> list:
        return []

    def plan(self, now: float) -> object | None:
        return SimpleNamespace(batch=StepBatch((), ())) if self.num_steps < 2 else None

    def settle(self, step: object, result: object, now: float) -> list:
        self.num_steps += 1
        self.num_sending = 2 if self.num_steps == 1 else 1
        return []

    def load(self, step_age_s: float) -> object:
        return None

    def cache_changes(self) -> None:
        return None


class SlowRunner:
    """Each step takes a while; begins and ends are noted."""

    def __init__(self) -> None:
        self.may_begin = threading.Event()
        self.begins: list[float] = []
        self.ends: list[float] = []
        self.has_ended = [threading.Event(), threading.Event()]

    def launch(self, batch: StepBatch) -> Deferred:
        return Deferred(self.run, batch)

    def run(self, batch: StepBatch) -> StepResult:
        assert self.may_begin.wait(5)
        self.begins.append(time.monotonic())
        time.sleep(STEP_S)
        self.ends.append(time.monotonic())
        self.has_ended[len(self.ends) - 1].set()
        return StepResult(())


@pytest.fixture
def looping() -> Iterator[SimpleNamespace]:
    core, runner = SendingCore(), SlowRunner()
    errors: list[BaseException] = []
    loop = StepLoop(core, runner, post=lambda actions: None, failed=errors.append)
    loop.start()
    yield SimpleNamespace(loop=loop, core=core, runner=runner)
    loop.stop()
    assert errors == []


def test_pages_that_are_there_in_a_moment_are_committed_before_the_next_step(
    monkeypatch, looping
) -> None:
    monkeypatch.setattr("node.loop.HANDOFF_S", 5.0)
    monkeypatch.setattr("node.loop.HANDOFF_SHARE", 25.0)
    looping.runner.may_begin.set()
    assert looping.runner.has_ended[0].wait(5)
    looping.loop.offer(FromBulk(object(), True))
    assert looping.runner.has_ended[1].wait(5)
    assert looping.core.handled_at is not None
    assert looping.runner.ends[0] <= looping.core.handled_at <= looping.runner.begins[1]


def test_pages_that_stay_away_put_the_next_step_off_by_a_share_of_a_step_only(looping) -> None:
    looping.runner.may_begin.set()
    assert looping.runner.has_ended[1].wait(5)
    assert looping.core.handled_at is None
    (_, begin), (end, _) = looping.runner.begins, looping.runner.ends
    assert begin - end < STEP_S * HANDOFF_SHARE + 0.5


class VerifyingCore(SendingCore):
    """A Commit comes during the first step; after it, the outcome of the verification."""

    def __init__(self) -> None:
        super().__init__()
        self.num_sending = 0
        self.num_verifying = 1  # one that an earlier step did not wait for
        self.joined_at: float | None = None

    def handle(self, event: object, now: float) -> list:
        self.num_verifying += 1 if event == "commit" else -1
        if event == "verified":
            self.joined_at = now
        return [event]

    def settle(self, step: object, result: object, now: float) -> list:
        self.num_steps += 1
        return []


def run_with_commit(monkeypatch: pytest.MonkeyPatch, *, is_verified: bool) -> SimpleNamespace:
    """Two steps; the bulk thread answers, or does not, once the Commit was handled."""
    core, runner = VerifyingCore(), SlowRunner()

    def post(actions: list) -> None:
        if "commit" in actions and is_verified:
            loop.offer("verified")

    loop = StepLoop(core, runner, post=post, failed=lambda error: None)
    loop.start()
    try:
        runner.may_begin.set()
        while not runner.begins:
            time.sleep(0.001)
        loop.offer("commit")
        assert runner.has_ended[1].wait(5)
    finally:
        loop.stop()
    return SimpleNamespace(core=core, runner=runner)


def test_a_prompt_that_is_verified_in_a_moment_joins_the_next_step(monkeypatch) -> None:
    monkeypatch.setattr("node.loop.HANDOFF_S", 5.0)
    monkeypatch.setattr("node.loop.HANDOFF_SHARE", 25.0)
    ran = run_with_commit(monkeypatch, is_verified=True)
    assert ran.core.joined_at is not None
    assert ran.runner.ends[0] <= ran.core.joined_at <= ran.runner.begins[1]


def test_a_long_verification_puts_the_next_step_off_by_a_share_of_a_step_only(monkeypatch) -> None:
    ran = run_with_commit(monkeypatch, is_verified=False)
    assert ran.core.joined_at is None
    assert ran.runner.begins[1] - ran.runner.ends[0] < STEP_S * HANDOFF_SHARE + 0.5
