"""The step loop's word on itself: age, work, predicted time, changes of the prefix cache."""

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from node.actions import CacheChanged, NodeAction
from node.core import Admitted, CacheWanted, FromPeer
from node.loop import StepLoop
from node.runner import Deferred, StepBatch, StepResult
from node.step_times import NUM_STEPS, StepTimes
from tandem.frames import TokenIds
from tandem.messages.common import SlaTargets
from tandem.messages.serving import Decode, RequestSpec
from tandem.sampling import SamplingParams


class Gate:
    """A runner that waits until it may compute."""

    def __init__(self, runner: object) -> None:
        self._runner = runner
        self.is_open = threading.Event()
        self.has_begun = threading.Event()

    def run(self, batch: StepBatch) -> StepResult:
        self.has_begun.set()
        assert self.is_open.wait(10)
        return self._runner.run(batch)  # type: ignore[attr-defined, no-any-return]

    def launch(self, batch: StepBatch) -> Deferred:
        return Deferred(self.run, batch)


def command(num_prompt: int) -> Decode:
    spec = RequestSpec(
        request_id=bytes(16),
        attempt=1,
        prompt_ids=TokenIds(range(num_prompt)),
        output_ids=TokenIds(),
        params=SamplingParams(max_tokens=3, temperature=0.0),
        seed=1,
        choice=0,
        tenant="default",
        priority=0,
        targets=SlaTargets(sla_class="standard", ttft_ms=1, tpot_ms=1),
        deadline_s=None,
        sequence=1,
    )
    return Decode(spec=spec, prefill=None)


def eventually(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def looping(pair: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """A running loop around one node's core, its gate, and what it posted."""
    node = pair.World().d
    gate = Gate(node.runner)
    posted: list[NodeAction] = []
    errors: list[BaseException] = []
    loop = StepLoop(node.core, gate, post=posted.extend, failed=errors.append)  # type: ignore[arg-type]
    loop.start()
    yield SimpleNamespace(loop=loop, gate=gate, posted=posted)
    gate.is_open.set()
    loop.stop()
    assert errors == []


def test_a_step_that_hangs_grows_old_and_an_idle_loop_does_not(looping: SimpleNamespace) -> None:
    loop = looping.loop
    time.sleep(0.3)
    assert loop.load().step_age_s < 0.25 and not loop.load().has_work
    loop.offer(FromPeer(b"gateway/g/1", command(40)))
    assert looping.gate.has_begun.wait(5)
    eventually(lambda: loop.load().step_age_s > 0.3)
    assert loop.load().has_work
    looping.gate.is_open.set()
    eventually(lambda: loop.load().step_age_s < 0.2)
    eventually(lambda: loop.load().predicted_step_s > 0.0)


def test_the_prefix_cache_is_told_in_snapshots_and_deltas(looping: SimpleNamespace) -> None:
    def told(is_snapshot: bool) -> list[CacheChanged]:
        changes = [a for a in looping.posted if isinstance(a, CacheChanged)]
        return [change for change in changes if change.is_snapshot is is_snapshot]

    looping.loop.offer(Admitted(1))
    eventually(lambda: len(told(True)) == 1)
    assert told(True)[0].added == ()
    looping.gate.is_open.set()
    looping.loop.offer(FromPeer(b"gateway/g/1", command(40)))
    eventually(lambda: sum(len(change.added) for change in told(False)) == 2)
    looping.loop.offer(CacheWanted())
    eventually(lambda: len(told(True)) == 2)
    delta = {prefix for change in told(False) for prefix in change.added}
    assert set(told(True)[1].added) == delta and all(len(prefix) == 8 for prefix in delta)


def test_long_steps_are_expected_while_they_are_not_rare() -> None:
    times = StepTimes()
    assert times.predicted_s == 0.0
    for seconds in (0.9, 0.1, 0.8, 0.7):
        times.note(seconds)
    assert times.predicted_s == 0.7
    for _ in range(NUM_STEPS):
        times.note(0.1)
    assert times.predicted_s == 0.1


def test_steps_that_hung_excuse_none_and_steps_that_are_long_are_learned() -> None:
    times = StepTimes()
    for seconds in (0.02, 60.0, 0.02, 6.0, 0.02):
        times.note(seconds)
    assert times.predicted_s == 0.02
    for _ in range(3):
        times.note(12.0)
    assert times.predicted_s == 12.0
