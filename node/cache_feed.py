"""Changes of the prefix cache on their way to the coordinator: numbered, merged, bounded. Pure.

Deltas say nothing without the snapshot that they follow: after every admission, and whenever the
coordinator has missed one, nothing is sent until the next snapshot came from the index.
"""

from node.actions import CacheChanged
from tandem.frames import Blob
from tandem.messages.membership import CacheDelta

# 1.6 MB of 8-byte prefixes: a hint for routing may be incomplete, a message must fit its frame.
MAX_PREFIXES = 200_000


class CacheFeed:
    """Collects changes between heartbeats."""

    def __init__(self) -> None:
        self._added: dict[bytes, None] = {}
        self._removed: dict[bytes, None] = {}
        self._is_snapshot = False
        self._number = 0
        self.is_waiting = True

    def restart(self) -> None:
        """Only a snapshot helps now."""
        self._added.clear()
        self._removed.clear()
        self._is_snapshot = False
        self.is_waiting = True

    def changed(self, change: CacheChanged) -> None:
        """News from the index; deltas are dropped while a snapshot is awaited."""
        if change.is_snapshot:
            self.restart()
            self._is_snapshot = True
            self.is_waiting = False
        if self.is_waiting:
            return
        for prefix in change.removed:
            self._added.pop(prefix, None)
            if not self._is_snapshot:
                self._removed[prefix] = None
        for prefix in change.added:
            self._removed.pop(prefix, None)
            self._added[prefix] = None
        for log in (self._added, self._removed):
            while len(log) > MAX_PREFIXES:
                del log[next(iter(log))]

    def take(self) -> CacheDelta | None:
        """What the next heartbeat says of the cache; None where there is no news."""
        if self.is_waiting or not (self._is_snapshot or self._added or self._removed):
            return None
        self._number += 1
        delta = CacheDelta(
            number=self._number,
            is_snapshot=self._is_snapshot,
            added=Blob(b"".join(self._added)),
            removed=Blob(b"".join(self._removed)),
        )
        self._added.clear()
        self._removed.clear()
        self._is_snapshot = False
        return delta
