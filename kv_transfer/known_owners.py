"""Which process each page owner's name stood for last: late news of an older one is known by it.

Names are made up anew by nodes that were given none, so over months they would fill the memory of a
node that outlives them. Pure.
"""

from collections.abc import Iterable

from kv_transfer.actions import TransferKey
from kv_transfer.departures import Departure
from tandem.messages.common import NodeRef
from tandem.outbox import Outbox

MAX_OWNERS = 4096


class KnownOwners:
    """By name. Of owners that nothing is under way to, those met last."""

    def __init__(self) -> None:
        self._owners: dict[str, NodeRef] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, owner_id: str) -> bool:
        return owner_id in self._owners

    def __getitem__(self, owner_id: str) -> NodeRef:
        return self._owners[owner_id]

    def get(self, owner_id: str) -> NodeRef | None:
        """The process of that name; None: not met, or long ago."""
        return self._owners.get(owner_id)

    def note(
        self, owner: NodeRef, live: Iterable[Departure], outbox: Outbox[TransferKey, str]
    ) -> None:
        """It is the latest of its name; what is under way to others keeps theirs."""
        self._owners.pop(owner.node_id, None)
        self._owners[owner.node_id] = owner  # the last one is the latest met
        if len(self._owners) <= MAX_OWNERS:
            return
        busy = {departure.owner.node_id for departure in live} | outbox.destinations()
        idle = [name for name in self._owners if name not in busy and name != owner.node_id]
        for name in idle[: len(self._owners) - MAX_OWNERS]:
            del self._owners[name]
