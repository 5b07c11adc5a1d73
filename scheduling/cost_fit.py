"""A node's costs, fitted while it works: steps from their shapes, transfers from their bytes. Pure.

Steps of pure decode, pure prefill and both are three kinds. Each kind forgets only as new samples
of it come: an hour of decoding does not unlearn what prefill costs. A step far from what its kind
has done of late is an outlier (a page fault, a frozen process) and teaches nothing, until so many
are that the node itself must have changed; then what was learned fades fast.
"""

import math
from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np

from scheduling.costs import UNKNOWN_COSTS, StepShape
from scheduling.relative_fit import Floats, NormalEquations, solve
from tandem.messages.common import NodeCosts

NUM_COLD = 8  # the first steps find no warm caches, and may compile
NUM_FREE = 16  # so many of a kind teach whatever they are
WINDOW = 400  # samples of a kind that count: 4 to 40 s of work
REFIT_STEPS = 16  # a refit takes 0.1 ms
NUM_ERRORS = 128
NUM_RECENT = 32
MAX_OUTLIERS = NUM_RECENT // 4
OUTLIER_RATIO = 5.0
NUM_DEVIATIONS = 6.0
MIN_DEVIATION = 0.05  # of log(measured / predicted): 35 % off is never an outlier
# Of what is known, at each outlier of a node that has changed, and at each refit while the last
# steps were off by more than `DRIFT` in the median. Without the second, a node 2.5 times slower was
# still predicted 34 % off after 400 steps.
CHANGE_KEEPS = 0.9
DRIFT_KEEPS = 0.7
DRIFT = 0.08
MAX_COST_S = 1e9
# After prompts of one length only, tokens and pairs look alike. With equal doubt a prompt of 20
# times the length was predicted 7 times too slow; pairs, which matter in long ones, must be seen.
STEP_DOUBTS = (1.0, 1.0, 10.0, 1.0, 1.0)


class SampleKind:
    """Samples of one kind: what waits to be learned, and what is usual."""

    def __init__(self, num_features: int) -> None:
        self.equations = NormalEquations(num_features, WINDOW)
        self.num_samples = 0
        self._features: list[Sequence[float]] = []
        self._seconds: list[float] = []
        self._logs: deque[float] = deque(maxlen=NUM_RECENT)
        self._outliers: deque[bool] = deque(maxlen=NUM_RECENT)
        self._centre = 0.0
        self._spread = math.inf

    def take(self, features: Sequence[float], seconds: float, predicted_s: float) -> bool:
        """Note a sample; True where it tells that the node has changed."""
        self.num_samples += 1
        log = math.log(seconds / predicted_s) if predicted_s > 0 else math.inf
        is_outlier = self.num_samples > NUM_FREE and self._is_far(log)
        self._logs.append(log)
        self._outliers.append(is_outlier)
        has_changed = is_outlier and sum(self._outliers) > MAX_OUTLIERS
        if has_changed or not is_outlier:
            self._features.append(features)
            self._seconds.append(seconds)
        return has_changed

    def _is_far(self, log: float) -> bool:
        distance = abs(log - self._centre)
        return abs(log) > math.log(OUTLIER_RATIO) or distance > NUM_DEVIATIONS * self._spread

    def judge(self) -> bool:
        """See what is usual by now; True where predictions are off to one side."""
        if not self._logs:
            return False
        # The median absolute deviation, as the standard deviation of a normal distribution.
        self._centre = _median(self._logs)
        deviation = 1.4826 * _median([abs(log - self._centre) for log in self._logs])
        self._spread = max(MIN_DEVIATION, deviation)
        return len(self._logs) == NUM_RECENT and abs(self._centre) > DRIFT

    def learn(self) -> int:
        """Put what waits into the equations; returns how many."""
        num_new = len(self._seconds)
        if num_new:
            self.equations.add(self._features, self._seconds)
            self._features.clear()
            self._seconds.clear()
        return num_new


class Fit:
    """Coefficients over samples of several kinds, and the error of predictions one step ahead."""

    def __init__(
        self, prior: Sequence[float], num_kinds: int, doubts: Sequence[float] | None = None
    ) -> None:
        self._prior: Floats = np.asarray(prior, float)
        self._doubts: Floats = np.asarray(doubts or [1.0] * len(prior), float)
        self.coefficients: list[float] = self._prior.tolist()
        self._kinds = [SampleKind(len(self._prior)) for _ in range(num_kinds)]
        self._errors: deque[float] = deque(maxlen=NUM_ERRORS)
        self._num_waiting = 0
        self._num_taken = 0
        self.num_learned = 0
        self.error = 0.0

    def take(self, kind: int, features: Sequence[float], seconds: float) -> bool:
        """Note a sample; True where the coefficients are new."""
        predicted_s = sum(c * x for c, x in zip(self.coefficients, features, strict=True))
        if self.num_learned:
            self._errors.append(abs(predicted_s - seconds) / seconds)
        if self._kinds[kind].take(features, seconds, predicted_s):
            self._fade(CHANGE_KEEPS)
        self._num_waiting += 1
        self._num_taken += 1
        # At first every other one: a node that has just started is wanted to be known.
        if self._num_waiting < min(REFIT_STEPS, 1 + self._num_taken // 2):
            return False
        self._refit()
        return True

    def _fade(self, share: float) -> None:
        for each in self._kinds:
            each.equations.fade(share)

    def _refit(self) -> None:
        self._num_waiting = 0
        if sum(each.judge() for each in self._kinds):  # all of them look, so no `any`
            self._fade(DRIFT_KEEPS)
        self.num_learned += sum(each.learn() for each in self._kinds)
        found = solve([each.equations for each in self._kinds], self._prior, self._doubts)
        self.coefficients = np.minimum(found, MAX_COST_S).tolist()
        self.error = min(MAX_COST_S, _median(self._errors)) if self._errors else 0.0


class StepFit:
    """`costs` of steps; the prior is a profile, or nothing known. Its transfer part is kept."""

    def __init__(self, prior: NodeCosts = UNKNOWN_COSTS) -> None:
        self.costs = prior
        self._fit = Fit(
            (
                prior.step_s,
                prior.prefill_token_s,
                prior.prefill_context_s,
                prior.decode_row_s,
                prior.decode_context_s,
            ),
            num_kinds=3,
            doubts=STEP_DOUBTS,
        )
        self._num_cold = NUM_COLD

    def take(self, shape: StepShape, seconds: float) -> bool:
        """A step of this shape took `seconds`; True where `costs` are new."""
        if not 0 < seconds < math.inf:
            return False
        if self._num_cold:
            self._num_cold -= 1
            return False
        features = (
            1.0,
            float(shape.num_prefill_tokens),
            shape.num_prefill_pairs,
            float(shape.num_decode_rows),
            float(shape.num_decode_tokens),
        )
        kind = (shape.num_prefill_tokens > 0) + 2 * (shape.num_decode_rows > 0) - 1
        if kind < 0 or not self._fit.take(kind, features, seconds):
            return False
        step_s, token_s, context_s, row_s, decode_context_s = self._fit.coefficients
        self.costs = msgspec.structs.replace(
            self.costs,
            step_s=step_s,
            prefill_token_s=token_s,
            prefill_context_s=context_s,
            decode_row_s=row_s,
            decode_context_s=decode_context_s,
            error=self._fit.error,
            num_steps=self._fit.num_learned,
        )
        return True


class TransferFit:
    """`transfer_s` and `bytes_per_s` (0: not known) of transfers, from how long they took."""

    def __init__(self, transfer_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self.transfer_s = transfer_s
        self.bytes_per_s = bytes_per_s
        self._fit = Fit((transfer_s, 1 / bytes_per_s if bytes_per_s > 0 else 0.0), num_kinds=1)

    def take(self, num_bytes: int, seconds: float) -> bool:
        """This many bytes were at the other node after `seconds`; True where the rates are new."""
        if not 0 < seconds < math.inf or num_bytes < 0:
            return False
        if not self._fit.take(0, (1.0, float(num_bytes)), seconds):
            return False
        self.transfer_s, byte_s = self._fit.coefficients
        # Above 1e15 the wire refuses it, and it means that the bytes do not matter.
        self.bytes_per_s = 1 / byte_s if byte_s > 1e-15 else 0.0
        return True

    def apply(self, costs: NodeCosts) -> NodeCosts:
        """The costs with this transfer part."""
        return msgspec.structs.replace(
            costs, transfer_s=self.transfer_s, transfer_bytes_per_s=self.bytes_per_s
        )


def _median(values: Sequence[float] | deque[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
