"""When an owner has a writer's process ended, and which processes of a name are of the past. Pure.

A fence costs a node. So the owner asks for it only when pages are needed that a writer has left
DRAINING without a word for long: a frozen node that nobody needs pages from may come back. A newer
process under the same name proves nothing about the pages of the older one.
"""

from collections import OrderedDict
from collections.abc import Mapping

from kv_transfer.actions import FenceWriter, Notice
from kv_transfer.listening import ListenedTime

FENCE_AFTER_S = 10.0
FENCE_AGAIN_S = 10.0
NOTICE_AGAIN_S = 60.0
MAX_NAMES = 4096


class Fencing:
    """Watches writers that owe a drain proof. `max_draining_pages` is each writer's cap."""

    def __init__(self, max_draining_pages: int) -> None:
        self._max_draining = max_draining_pages
        self._time = ListenedTime()
        self._quiet_since: dict[bytes, float] = {}  # by writers that owe a proof
        self._fenced_at: dict[bytes, float] = {}
        self._noticed_at: dict[tuple[bytes, str], float] = {}

    def heard(self, writer: bytes) -> None:
        """A sign of life."""
        if writer in self._quiet_since:
            self._quiet_since[writer] = self._time.now_s

    def tick(
        self, now: float, draining: Mapping[bytes, int], *, pages_wanted: bool
    ) -> list[FenceWriter | Notice]:
        """What to do about writers that leave `draining` pages undrained, by identity."""
        self._time.tick(now)
        actions: list[FenceWriter | Notice] = []
        for writer in [w for w in self._quiet_since if w not in draining]:
            del self._quiet_since[writer]
            self._fenced_at.pop(writer, None)
        for writer, num_pages in draining.items():
            quiet_s = self._time.now_s - self._quiet_since.setdefault(writer, self._time.now_s)
            is_over = num_pages > self._max_draining
            if is_over:
                text = (
                    f"leaves {num_pages} pages undrained, more than {self._max_draining}: no new "
                    "grants for it until it answers or is ended"
                )
                actions += self.notice(writer, "cap", text, now)
            asked_at = self._fenced_at.get(writer)
            may_ask = asked_at is None or now - asked_at >= FENCE_AGAIN_S
            if (is_over or pages_wanted) and quiet_s > FENCE_AFTER_S and may_ask:
                self._fenced_at[writer] = now
                text = (
                    f"has been silent for {quiet_s:.0f} s while {num_pages} pages that it may "
                    "still write to are wanted: its process is ended where its transport allows it"
                )
                actions += [FenceWriter(writer), *self.notice(writer, "fence", text, now)]
        return actions

    def notice(self, writer: bytes, kind: str, text: str, now: float) -> list[Notice]:
        """A line for the operator, once a minute for each writer and kind."""
        told_at = self._noticed_at.get((writer, kind))
        if told_at is not None and now - told_at < NOTICE_AGAIN_S:
            return []
        if len(self._noticed_at) >= MAX_NAMES:
            del self._noticed_at[next(iter(self._noticed_at))]
        self._noticed_at[(writer, kind)] = now
        return [Notice(f"{writer.decode(errors='replace')} {text}")]


class Incarnations:
    """Which processes are of the past: dead, or older than another under the same name.

    The newest is the one with the highest epoch in its greeting. Epochs come from the coordinator
    and only grow, so the order in which greetings arrive does not matter. Identities are
    `kind/name/incarnation`.
    """

    def __init__(self) -> None:
        self._newest: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._gone: OrderedDict[bytes, None] = OrderedDict()

    def greeted(self, writer: bytes, epoch: int) -> bytes | None:
        """A writer's hello; the identity that it takes the place of, if any."""
        name = _name(writer)
        known_epoch, known = self._newest.get(name, (-1, writer))
        if epoch <= known_epoch:
            return None
        self._newest[name] = (epoch, writer)
        self._newest.move_to_end(name)
        if len(self._newest) > MAX_NAMES:
            self._newest.popitem(last=False)
        return known if known != writer else None

    def gone(self, writer: bytes) -> None:
        """The process has ended: what of it is still on the wire must begin nothing."""
        self._gone[writer] = None
        if len(self._gone) > MAX_NAMES:
            self._gone.popitem(last=False)

    def is_past(self, writer: bytes) -> bool:
        """Whether the process has ended, or a newer one of the same name was heard of."""
        if writer in self._gone:
            return True
        newest = self._newest.get(_name(writer))
        return newest is not None and newest[1] != writer


def _name(writer: bytes) -> bytes:
    return writer.rpartition(b"/")[0]
