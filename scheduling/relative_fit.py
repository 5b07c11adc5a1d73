"""Least squares of relative errors, with forgetting and no negative coefficients. Pure.

Fits seconds as `sum(coefficient * feature)`. Each sample is divided by its seconds, so that what is
small is `(predicted - measured) / measured`: an error of 1 ms matters in a step of 5 ms, not in one
of 500 ms (DistServe fits its profiles so). Only the normal equations are kept.

Directions in which the samples do not vary say nothing about their coefficients: a ridge that is
relative to each feature's own weight draws them towards a prior there, and nowhere else.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Eigenvalues of well varied samples are above 0.01 of their trace: a bias of at most 1 % there.
RIDGE = 1e-4
MIN_WEIGHT = 1e-6


class NormalEquations:
    """Samples of one kind, summed; the last `window` of them count for most."""

    def __init__(self, num_features: int, window: int) -> None:
        self._keep = 1 - 1 / window
        self.gram = np.zeros((num_features, num_features))
        self.moment = np.zeros(num_features)

    def add(self, features: Sequence[Sequence[float]], seconds: Sequence[float]) -> None:
        """Samples in the order of time; seconds are above zero."""
        rows = np.asarray(features, float) / np.asarray(seconds, float)[:, None]
        weights = self._keep ** np.arange(len(rows) - 1, -1, -1)
        weighted = rows * weights[:, None]
        keep = self._keep ** len(rows)
        self.gram = keep * self.gram + weighted.T @ rows
        self.moment = keep * self.moment + weighted.sum(axis=0)

    def fade(self, share: float) -> None:
        """Let all of it count for that share of what it did; what is nearly nothing stays."""
        if self.gram.trace() > MIN_WEIGHT:
            self.gram = share * self.gram
            self.moment = share * self.moment


def solve(equations: Sequence[NormalEquations], prior: Floats, doubts: Floats) -> Floats:
    """The coefficients, none negative, that all these samples and the prior support best.

    Where samples cannot tell features apart, each explains a part inverse to its doubt.
    """
    gram = np.sum([each.gram for each in equations], axis=0)
    moment = np.sum([each.moment for each in equations], axis=0)
    scale = np.sqrt(np.diagonal(gram))
    seen = scale > 0
    found = prior.copy()
    if seen.any():
        scale = scale[seen]
        matrix = gram[np.ix_(seen, seen)] / np.outer(scale, scale)
        ridge = RIDGE * doubts[seen]
        matrix += np.diag(ridge)
        target = moment[seen] / scale + ridge * prior[seen] * scale
        found[seen] = _non_negative(matrix, target) / scale
    return found


def _non_negative(matrix: Floats, target: Floats) -> Floats:
    """Minimise x'Mx/2 - t'x over x >= 0, M positive definite (Lawson and Hanson 1974, ch. 23)."""
    found: Floats = np.asarray(np.linalg.solve(matrix, target), np.float64)
    if found.min() >= 0:
        return found
    size = len(target)
    found = np.zeros(size)
    free = np.zeros(size, bool)
    for _ in range(3 * size):
        gradient = np.where(free, -np.inf, target - matrix @ found)
        best = int(gradient.argmax())
        if gradient[best] <= 1e-12:
            break
        free[best] = True
        found = _step_to_bounds(matrix, target, found, free)
    return found


def _step_to_bounds(
    matrix: Floats, target: Floats, found: Floats, free: NDArray[np.bool_]
) -> Floats:
    """Go to the optimum of the free ones; those that would get negative stop at zero, for good."""
    while True:
        wanted = np.zeros(len(target))
        wanted[free] = np.linalg.solve(matrix[np.ix_(free, free)], target[free])
        blocked = free & (wanted <= 0)
        if not blocked.any():
            return wanted
        ways = np.full(len(target), np.inf)
        ways[blocked] = found[blocked] / np.maximum(found[blocked] - wanted[blocked], 1e-300)
        found = found + ways.min() * (wanted - found)
        free &= ways > ways.min()  # by its index: rounding may leave it a little above zero
        free &= found > 0
        found[~free] = 0.0
