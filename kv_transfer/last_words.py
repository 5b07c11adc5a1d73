"""What is owed to owners that fell silent: that nothing writes to their pages any more. Pure.

A frozen owner may run again, and its Revoke does not reach a writer that gave up the link. So the
writer dials again, a bounded number of times, until the owner has heard of the end of each attempt.
"""

import msgspec

from kv_transfer import requests
from kv_transfer.actions import TransferKey
from tandem.messages.common import NodeRef
from tandem.outbox import Outbox

MAX_LOSSES = 8  # each after some 15 s of silence, or at once where another process answers


class LastWords:
    """`Drained` messages by attempt, for owners that are lost for now."""

    def __init__(self) -> None:
        self._outbox: Outbox[TransferKey, NodeRef] = Outbox()
        self._num_losses: dict[NodeRef, int] = {}

    def owe(self, key: TransferKey, owner: NodeRef, now: float) -> None:
        """The owner has to hear that the attempt is over here."""
        self._num_losses.setdefault(owner, 0)
        self._outbox.send(key, owner, requests.drained(key), now)

    def lost(self, owner_id: str) -> None:
        """It was dialled, and did not answer again."""
        for owner in self._of(owner_id):
            self._num_losses[owner] += 1
            if self._num_losses[owner] > MAX_LOSSES:
                self._forget(owner)

    def forget(self, owner_id: str) -> None:
        """Another process took its place."""
        for owner in self._of(owner_id):
            self._forget(owner)

    def acknowledge(self, key: TransferKey) -> bool:
        """The owner has heard; False where nothing was owed."""
        is_owed = self._outbox.acknowledge(key)
        if not len(self._outbox):
            self._num_losses.clear()
        return is_owed

    def due(self, now: float) -> list[tuple[NodeRef, msgspec.Struct]]:
        """What to send now."""
        return self._outbox.due(now)

    def _of(self, owner_id: str) -> list[NodeRef]:
        return [owner for owner in self._num_losses if owner.node_id == owner_id]

    def _forget(self, owner: NodeRef) -> None:
        del self._num_losses[owner]
        self._outbox.drop_destination(owner)
