"""How long a step may take, from how long steps took. Pure."""

import heapq
from collections import deque

NUM_STEPS = 64
# Two hangs among them, a process that was frozen twice, must not excuse the next: after freezes of
# 1 s and 6 s an estimate by the longest let a third hang go on for 17 s.
NUM_EXCEPTIONS = 2


class StepTimes:
    """The longest of late but for the two longest, which may have been hangs.

    `predicted_s` is one number, so that another thread may read it while steps are noted.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=NUM_STEPS)
        self.predicted_s = 0.0

    def note(self, seconds: float) -> None:
        """A step took this long."""
        self._seconds.append(seconds)
        self.predicted_s = min(heapq.nlargest(NUM_EXCEPTIONS + 1, self._seconds))
