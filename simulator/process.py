"""A simulated process: it may be killed for good, or frozen, when what comes for it waits."""

from collections.abc import Callable
from typing import Any

from simulator.clock import Clock


class Process:
    """One incarnation. Its own monotonic clock starts anywhere and drifts a little."""

    def __init__(self, clock: Clock, name: str, *, clock_offset_s: float, drift: float) -> None:
        self.clock = clock
        self.name = name
        self.is_alive = True
        self.is_frozen = False
        self._offset_s = clock_offset_s
        self._rate = 1.0 + drift
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    @property
    def now(self) -> float:
        """This process's monotonic clock."""
        return self._offset_s + self.clock.now * self._rate

    def run(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call now; when thawed, while frozen; never, once dead."""
        if not self.is_alive:
            return
        if self.is_frozen:
            self._backlog.append((callback, arguments))
        else:
            callback(*arguments)

    def after(self, delay_s: float, callback: Callable[..., None], *arguments: object) -> None:
        """Call back in this process, unless it is dead by then."""
        self.clock.after(delay_s, self.run, callback, *arguments)

    def every(self, period_s: float, callback: Callable[[], None]) -> None:
        """Call back again and again, from now on."""

        def fire() -> None:
            callback()
            self.after(period_s, fire)

        self.after(0.0, fire)

    def kill(self) -> None:
        """SIGKILL."""
        self.clock.note(f"kill {self.name}")
        self.is_alive = False
        self._backlog.clear()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.clock.note(f"freeze {self.name}")
        self.is_frozen = True

    def thaw(self) -> None:
        """SIGCONT: all that waited comes at once."""
        self.clock.note(f"thaw {self.name}")
        self.is_frozen = False
        backlog, self._backlog = self._backlog, []
        for callback, arguments in backlog:
            self.run(callback, *arguments)
