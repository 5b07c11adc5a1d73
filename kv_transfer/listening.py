"""Time spent listening: by it, a peer's silence is never this node's own absence. Pure."""

MAX_LISTENED_S = 1.0  # per tick: what came during a long step of ours is not yet handled after it


class ListenedTime:
    """A clock that a long gap between two ticks moves by a second at the most."""

    def __init__(self) -> None:
        self._ticked_at: float | None = None
        self.now_s = 0.0

    def tick(self, now: float) -> None:
        """Time has passed."""
        since = now if self._ticked_at is None else self._ticked_at
        self.now_s += min(max(0.0, now - since), MAX_LISTENED_S)
        self._ticked_at = now
