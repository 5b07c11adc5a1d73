"""How long static batches take, learned from those that ran. Pure."""

import math
from collections import deque
from dataclasses import dataclass

from scheduling.costs import decode_step_s
from scheduling.views import Services

NUM_REMEMBERED = 100
NUM_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class BatchShape:
    """A batch: rows, the longest context at its start, and the longest answer to come."""

    num_rows: int
    num_tokens: int
    num_answer_tokens: float


class ServingTimes:
    """Magnus's serving time estimator: k nearest neighbours by (rows, length, answer length).

    Distances are of logarithms, as ratios matter. Until `NUM_NEIGHBOURS` batches have run, and for
    shapes unlike any of them, the node's cost model answers: it is measured on this node as well.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[BatchShape, float]] = deque(maxlen=NUM_REMEMBERED)

    def ended(self, shape: BatchShape, seconds: float) -> None:
        """A batch of this shape took so long."""
        self._known.append((shape, seconds))

    def estimate_s(self, shape: BatchShape, services: Services) -> float:
        """How long a batch of this shape would take; never zero."""
        near = sorted((_distance(shape, known), seconds) for known, seconds in self._known)
        near = [n for n in near[:NUM_NEIGHBOURS] if n[0] < math.log(2)]
        if len(near) == NUM_NEIGHBOURS:
            return max(1e-9, sum(seconds for _, seconds in near) / NUM_NEIGHBOURS)
        context = shape.num_tokens + shape.num_answer_tokens / 2
        step_s = decode_step_s(services.costs, shape.num_rows, round(shape.num_rows * context))
        return max(1e-9, shape.num_answer_tokens * step_s)


def _distance(one: BatchShape, other: BatchShape) -> float:
    return math.hypot(
        math.log(max(1, one.num_rows) / max(1, other.num_rows)),
        math.log(max(1, one.num_tokens) / max(1, other.num_tokens)),
        math.log(max(1.0, one.num_answer_tokens) / max(1.0, other.num_answer_tokens)),
    )
