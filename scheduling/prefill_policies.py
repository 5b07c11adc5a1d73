"""Prefill policies: the order in which prompts run on a node."""

from typing import Protocol

from scheduling.views import SequenceView


class PrefillPolicy(Protocol):
    """Orders the prefill guest's queue."""

    def key(self, sequence: SequenceView) -> tuple[float, ...]:
        """Sort key of a prompt; lower runs first."""


class FifoPrefill:
    """Higher priority first, then the coordinator's placement order."""

    def key(self, sequence: SequenceView) -> tuple[float, ...]:
        """Sort key of a prompt; lower runs first."""
        return (-sequence.priority, sequence.age)
