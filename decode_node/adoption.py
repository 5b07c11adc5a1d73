"""Grants and KV whose command has not come: their gateways are asked whether they are wanted. Pure.

Asked for are attempts that a prefill node reserved for and no gateway has commanded here yet. An
attempt whose gateway stays silent is given up, so nothing is held for a request that nobody knows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kv_transfer.listening import ListenedTime
from scheduling.views import RequestKey
from tandem.messages.serving import Adopt
from tandem.outbox import Outbox

ASK_AFTER_S = 0.5  # the command is mostly under way
ASK_AGAIN_S = 10.0  # a wanted attempt whose command still has not come
PATIENCE_S = 10.0


@dataclass(slots=True)
class _Orphan:
    """In time listened: when to ask, and since when its gateway owes an answer."""

    gateway: bytes
    ask_at: float
    asked_at: float | None = None


class Adoptions:
    """Attempts without a command, by key."""

    def __init__(self) -> None:
        self._orphans: dict[RequestKey, _Orphan] = {}
        self._outbox: Outbox[RequestKey, bytes] = Outbox()
        self._time = ListenedTime()

    def found(self, key: RequestKey, gateway: bytes) -> None:
        """A prefill node reserved for an attempt that nobody has commanded here."""
        if key not in self._orphans:
            self._orphans[key] = _Orphan(gateway, self._time.now_s + ASK_AFTER_S)

    def settled(self, key: RequestKey) -> None:
        """Its command came, or it is over."""
        self._orphans.pop(key, None)
        self._outbox.acknowledge(key)

    def answered(self, gateway: bytes, key: RequestKey, *, is_wanted: bool) -> bool:
        """Whether the answer says that an attempt waiting here is to be cancelled."""
        orphan = self._orphans.get(key)
        if orphan is None or orphan.gateway != gateway:
            return False
        self._outbox.acknowledge(key)
        orphan.asked_at, orphan.ask_at = None, self._time.now_s + ASK_AGAIN_S
        return not is_wanted

    def of_gateway(self, gateway: bytes) -> list[RequestKey]:
        """Attempts that wait for this gateway's command."""
        return [key for key, orphan in self._orphans.items() if orphan.gateway == gateway]

    def tick(
        self, now: float, is_here: Callable[[RequestKey], bool]
    ) -> tuple[list[tuple[bytes, Adopt]], list[RequestKey]]:
        """Questions to send, by gateway, and attempts whose gateway was silent for too long.

        `is_here`: whether anything of the attempt is left to be wanted.
        """
        self._time.tick(now)
        silent: list[RequestKey] = []
        for key, orphan in list(self._orphans.items()):
            if not is_here(key):
                self.settled(key)
            elif orphan.asked_at is not None:
                if self._time.now_s - orphan.asked_at >= PATIENCE_S:
                    silent.append(key)
            elif self._time.now_s >= orphan.ask_at:
                orphan.asked_at = self._time.now_s
                question = Adopt(request_id=key[0], attempt=key[1])
                self._outbox.send(key, orphan.gateway, question, now)
        for key in silent:
            self.settled(key)
        return [(g, m) for g, m in self._outbox.due(now) if isinstance(m, Adopt)], silent

    def __len__(self) -> int:
        return len(self._orphans)
