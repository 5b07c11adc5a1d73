"""Busy or stuck: when a node that still beats counts as wedged. Pure.

Nodes and the coordinator judge alike: what the coordinator took out must not ask to come back. Page
owners judge their writers by the same rule.
"""

from typing import Protocol

PATIENCE_S = 3.0
PATIENCE_STEPS = 5.0
# A node must not claim itself out of the rule: no step is meant to take this long.
MAX_PREDICTED_S = 30.0


class StepAge(Protocol):
    """What a node says of its step loop."""

    @property
    def has_work(self) -> bool:
        """Whether the loop has anything to do."""

    @property
    def step_age_s(self) -> float:
        """Since it came round."""

    @property
    def predicted_step_s(self) -> float:
        """What a step is expected to take."""


def allowed_step_s(load: StepAge) -> float:
    """How long the step loop of a node with work may take to come round."""
    return max(PATIENCE_S, PATIENCE_STEPS * min(load.predicted_step_s, MAX_PREDICTED_S))


def is_wedged(load: StepAge) -> bool:
    """Whether there is work and the step loop has not come round for far longer than a step."""
    return load.has_work and load.step_age_s > allowed_step_s(load)
