"""The step thread: the only one that touches the core and the device.

Events come in through a bounded queue; actions go out through `post`. Device work is all that
happens between two looks at the queue.

What a step asks for goes out while the next one runs, where the device runs by itself: between two
steps there is only what the next plan needs. While a step runs the core is asked for messages and
for nothing else, so no page of the step changes hands (decision 0029).
"""

import queue
import threading
import time
from collections.abc import Callable

import msgspec

from node.actions import NodeAction
from node.core import Event, NodeCore, Step
from node.runner import Runner
from node.step_times import StepTimes
from tandem.messages.membership import NodeLoad

TICK_S = 0.05
CACHE_S = 0.25
# How long the next step may be put off for hand-offs that the last one finished: a share of that.
HANDOFF_SHARE = 0.1
HANDOFF_S = 0.01
MAX_EVENTS = 100_000


class StepLoop:
    """Runs a core on its own thread until `stop`; `failed` is told when it dies of an error."""

    def __init__(
        self,
        core: NodeCore,
        runner: Runner,
        *,
        post: Callable[[list[NodeAction]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._core = core
        self._runner = runner
        self._post = post
        self._failed = failed
        self._events: queue.Queue[Event] = queue.Queue(MAX_EVENTS)
        self._stopping = threading.Event()
        self._came_round_at = time.monotonic()
        self._is_computing = False
        self._unsent: list[NodeAction] = []  # of the last step
        self._is_flush_due = False
        self._times = StepTimes()
        self._handoff_patience_s = 0.0  # a share of the last step
        self._num_verifying = 0  # hand-offs that earlier steps did not wait for
        self._next_cache_at = 0.0
        self._load = core.load(0.0)
        self._is_idle = True
        self._next_tick_at = 0.0
        self._thread = threading.Thread(target=self._run, name="step", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def offer(self, event: Event) -> bool:
        """Queue an event, from any thread; False where the queue is full (its sender resends)."""
        try:
            self._events.put_nowait(event)
        except queue.Full:
            return False
        return True

    def load(self) -> NodeLoad:
        """The core's load as of its last look, and how long ago the loop came round."""
        now = time.monotonic()
        load = self._load
        return msgspec.structs.replace(
            load,
            step_age_s=max(0.0, now - self._came_round_at),
            has_work=self._is_computing or load.num_requests > 0 or not self._events.empty(),
            predicted_step_s=self._times.predicted_s,
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing was left of any request at the last look."""
        return self._is_idle and self._events.empty()

    def stop(self) -> None:
        """End after the running step."""
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            has_work = False
            while not self._stopping.is_set():
                self._came_round_at = time.monotonic()
                actions = self._take_events(0.0 if has_work else self._patience_s())
                has_work = self._step(actions)
            self._send([], time.monotonic())
        except BaseException as error:
            self._failed(error)
            raise

    def _patience_s(self) -> float:
        wake_at = self._core.wake_at
        return TICK_S if wake_at is None else min(TICK_S, max(0.0, wake_at - time.monotonic()))

    def _take_events(self, timeout_s: float) -> list[NodeAction]:
        """Handle what has arrived; with nothing there, wait for up to `timeout_s`."""
        actions: list[NodeAction] = []
        for _ in range(MAX_EVENTS):
            try:
                event = self._events.get(block=timeout_s > 0, timeout=timeout_s or None)
            except queue.Empty:
                break
            timeout_s = 0.0
            self._is_idle = False  # until the next tick has looked
            actions += self._core.handle(event, time.monotonic())
        return actions

    def _step(self, replies: list[NodeAction]) -> bool:
        """Compute one step, if there is one to compute, and send what events asked for."""
        now = time.monotonic()
        is_tick = now >= self._next_tick_at
        if replies or is_tick:
            replies += self._core.tick_guests(now)
            self._is_flush_due = True
        if self._core.num_verifying > self._num_verifying:
            self._send(replies, now)
            replies = []
            self._await(lambda: self._core.num_verifying <= self._num_verifying)
            now = time.monotonic()
        self._num_verifying = self._core.num_verifying
        step = self._core.plan(now)
        if step is None:
            self._send(replies, now)
        else:
            now = self._compute(step, replies, now)
        if is_tick:
            self._next_tick_at = now + TICK_S
            self._load = self._core.load(0.0)
            self._is_idle = self._core.is_idle
        if now >= self._next_cache_at:
            self._next_cache_at = now + CACHE_S
            change = self._core.cache_changes()
            if change is not None:
                self._post([change])
        return step is not None

    def _compute(self, step: Step, replies: list[NodeAction], began: float) -> float:
        """Run a step, and send meanwhile; the time after it. What it asks for is sent later."""
        self._is_computing = True
        num_sending = self._core.num_sending
        pending = self._runner.launch(step.batch)
        self._send(replies, began)
        result = pending.result()
        self._is_computing = False
        now = time.monotonic()
        self._times.note(now - began)
        self._unsent += self._core.settle(step, result, now) + self._core.tick_guests(now)
        self._is_flush_due = True
        self._handoff_patience_s = min(HANDOFF_S, HANDOFF_SHARE * (now - began))
        if self._core.num_sending > num_sending:
            self._send([], now)
            self._await(lambda: self._core.num_sending <= num_sending)
        return now

    def _send(self, replies: list[NodeAction], now: float) -> None:
        """What the last step asked for and emitted, then replies.

        Tokens and endings go first: a reply that says that a request is over must not overtake its
        ending.
        """
        actions, self._unsent = self._unsent, []
        if self._is_flush_due:
            self._is_flush_due = False
            actions += self._core.flush(now)
        self._post(actions + replies)

    def _await(self, is_done: Callable[[], bool]) -> None:
        """Handle events until `is_done`, but no longer than a share of the last step.

        After a step: commit prompts whose last pages are written in a moment. They would wait for
        all of the next step: measured, that was five sixths of a hand-off's time. Before a step:
        let prompts in whose checksums are being compared, which takes a fraction of it.
        """
        ends_at = time.monotonic() + self._handoff_patience_s
        while not is_done():
            left_s = ends_at - time.monotonic()
            if left_s <= 0:
                return
            replies = self._take_events(left_s)
            self._is_flush_due = True
            self._send(replies, time.monotonic())
