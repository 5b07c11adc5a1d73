"""When the requests of each decode node should end, as predicted at their placement. Pure."""

import math
from bisect import bisect_left, bisect_right, insort

MEAN_OF = 64  # answers whose lengths the mean remembers, about


class Forecast:
    """Expected ends by node, in ascending order; and how long answers have become lately."""

    def __init__(self) -> None:
        self._ends: dict[str, list[float]] = {}
        self._mean_tokens: float | None = None

    def add(self, node_id: str, ends_at: float) -> None:
        """A request that decodes there should end then."""
        insort(self._ends.setdefault(node_id, []), ends_at)

    def remove(self, node_id: str, ends_at: float) -> None:
        """It ended, whenever that was."""
        ends = self._ends.get(node_id, [])
        index = bisect_left(ends, ends_at)
        if index < len(ends) and ends[index] == ends_at:
            del ends[index]
            if not ends:
                del self._ends[node_id]

    def ends_in_s(self, node_id: str, now: float) -> list[float]:
        """Seconds until each of the node's requests should end, ascending.

        Who should have ended already goes on for a time that nobody knows, and is left out.
        """
        ends = self._ends.get(node_id, [])
        return [each - now for each in ends[bisect_right(ends, now) :] if each < math.inf]

    def note_length(self, num_tokens: int) -> None:
        """A request ended with that many output tokens."""
        if self._mean_tokens is None:
            self._mean_tokens = float(num_tokens)
        else:
            self._mean_tokens += (num_tokens - self._mean_tokens) / MEAN_OF

    def num_output_tokens(self, predicted: float | None, most: int) -> float:
        """How long an answer should become: as predicted, else as lately, else as it may."""
        expected = predicted if predicted is not None else self._mean_tokens
        return float(most) if expected is None else min(expected, float(most))
