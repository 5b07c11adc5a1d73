"""When a draining node may leave. Pure.

A request may have been placed here just before the coordinator heard that the node drains: an idle
node waits until that is known there, and a moment longer for commands on their way.
"""

QUIET_S = 0.3
REPORT_S = 5.0


class Drain:
    """Begins at `now`, takes `patience_s` at most."""

    def __init__(self, now: float, patience_s: float) -> None:
        self._ends_at = now + patience_s
        self._idle_since: float | None = None
        self._next_report_at = now

    def is_over(self, now: float, *, is_idle: bool, is_known: bool) -> bool:
        """Whether to leave; `is_known` once nothing new can be placed here."""
        if not (is_idle and is_known):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        is_quiet = self._idle_since is not None and now - self._idle_since >= QUIET_S
        return is_quiet or now >= self._ends_at

    def is_report_due(self, now: float) -> bool:
        """Whether to say again what is left."""
        if now < self._next_report_at:
            return False
        self._next_report_at = now + REPORT_S
        return True
