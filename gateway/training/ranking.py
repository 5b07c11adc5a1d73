"""How well scores order lengths: Kendall's tau in O(n log n). Pure."""

import math
from collections.abc import Sequence


def kendall_tau(
    scores: Sequence[float], lengths: Sequence[float], *, min_ratio: float = 1.0
) -> float:
    """Tau-b over the pairs whose lengths differ by more than `min_ratio`; 0 where there are none.

    Pairs are counted while lengths rise, against a Fenwick tree of the scores that are short enough
    (Christensen 2005). Ties in the score count as neither right nor wrong.
    """
    assert len(scores) == len(lengths)
    assert min_ratio >= 1
    rank_of = {score: rank for rank, score in enumerate(sorted(set(scores)), 1)}
    pairs = sorted(zip(lengths, scores, strict=True))
    tree = FenwickTree(len(rank_of))
    num_right = num_wrong = num_pairs = first = 0
    for length, score in pairs:
        while pairs[first][0] * min_ratio < length:
            tree.add(rank_of[pairs[first][1]])
            first += 1
        rank = rank_of[score]
        num_lower = tree.count(rank - 1)
        num_right += num_lower
        num_wrong += first - tree.count(rank)
        num_pairs += first
    num_untied = _num_untied(scores) if min_ratio == 1.0 else num_right + num_wrong
    scale = math.sqrt(num_pairs) * math.sqrt(num_untied)
    return (num_right - num_wrong) / scale if scale else 0.0


def _num_untied(values: Sequence[float]) -> int:
    """Pairs of different values."""
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return math.comb(len(values), 2) - sum(math.comb(count, 2) for count in counts.values())


class FenwickTree:
    """Counts of ranks from 1 on, and how many are at or below one (Fenwick 1994)."""

    def __init__(self, size: int) -> None:
        self._sums = [0] * (size + 1)

    def add(self, rank: int) -> None:
        """One more of this rank."""
        while rank < len(self._sums):
            self._sums[rank] += 1
            rank += rank & -rank

    def count(self, rank: int) -> int:
        """How many are of this rank or a lower one."""
        found = 0
        while rank > 0:
            found += self._sums[rank]
            rank -= rank & -rank
        return found
