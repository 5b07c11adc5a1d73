"""What the coordinator last told a gateway of the deployment, and when it has been silent. Pure."""

from tandem.messages.placement import GatewayWelcome

STALE_S = 5.0  # welcomes come every second
COMPLAIN_EVERY_S = 5.0


class PoolView:
    """The last welcome. Times are the caller's monotonic clock."""

    def __init__(self) -> None:
        self._last: GatewayWelcome | None = None
        self.sla_classes: tuple[str, ...] = ()  # those on offer
        self._heard_at: float | None = None
        self._complained_at: float | None = None

    def welcome(self, message: GatewayWelcome, now: float) -> None:
        """Take a welcome."""
        self._last, self._heard_at, self._complained_at = message, now, None
        self.sla_classes = tuple(each.sla_class for each in message.sla_classes)

    @property
    def max_model_len(self) -> int | None:
        """The nodes' context; None before the first node."""
        return None if self._last is None else self._last.max_model_len

    @property
    def page_size(self) -> int | None:
        """Tokens in a KV page; None before the first node."""
        return None if self._last is None else self._last.page_size

    @property
    def num_pages(self) -> int:
        """KV pages of all nodes."""
        return 0 if self._last is None else self._last.num_pages

    @property
    def kv_used_share(self) -> float | None:
        """Share of those that holds live requests; None before the first node."""
        return None if self._last is None else self._last.kv_used_share

    def is_heard(self, now: float) -> bool:
        """Whether the coordinator has spoken lately."""
        return self._heard_at is not None and now - self._heard_at <= STALE_S

    def is_ready(self, now: float) -> bool:
        """Whether both pools have nodes, as far as is known lately."""
        if self._last is None or not self.is_heard(now):
            return False
        return self._last.num_prefill_nodes > 0 and self._last.num_decode_nodes > 0

    def complain(self, now: float) -> str | None:
        """A line for the log every few seconds while no coordinator answers."""
        if self._heard_at is not None and now - self._heard_at <= STALE_S:
            return None
        if self._complained_at is not None and now - self._complained_at < COMPLAIN_EVERY_S:
            return None
        self._complained_at = now
        what = "no answer yet" if self._heard_at is None else "no answer any more"
        return f"{what} from the coordinator"
