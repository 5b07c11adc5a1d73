"""The step thread: the only one that touches the core and the device.

Events come in through a bounded queue; actions go out through `post`. Device work is all that
happens between two looks at the queue.
"""

import queue
import threading
import time
from collections.abc import Callable

from node.actions import NodeAction
from node.core import Event, NodeCore
from node.runner import Runner
from tandem.messages.membership import NodeLoad

TICK_S = 0.05
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
        self._step_began_at: float | None = None
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
        """The core's load as of its last look, with the age of the step that runs now."""
        began_at = self._step_began_at
        age_s = 0.0 if began_at is None else max(0.0, time.monotonic() - began_at)
        load = self._load
        return NodeLoad(
            **{name: getattr(load, name) for name in load.__struct_fields__} | {"step_age_s": age_s}
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
                actions = self._take_events(0.0 if has_work else self._patience_s())
                has_work = self._step(actions)
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

    def _step(self, actions: list[NodeAction]) -> bool:
        """Send what events asked for, then compute one step; False where there was none."""
        now = time.monotonic()
        is_tick = now >= self._next_tick_at
        if actions or is_tick:
            actions += self._core.tick(now)
        self._post(actions)
        step = self._core.plan(now)
        if step is not None:
            self._step_began_at = now
            result = self._runner.run(step.batch)
            self._step_began_at = None
            now = time.monotonic()
            self._post(self._core.computed(step, result, now) + self._core.tick(now))
        if is_tick:
            self._next_tick_at = now + TICK_S
            self._load = self._core.load(0.0)
            self._is_idle = self._core.is_idle
        return step is not None
