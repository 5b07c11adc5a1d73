"""Fits a length predictor to records, and says what it is worth on records that it has not seen.

The newest fifth is held out; of the rest every fourth record calibrates the quantiles and chooses
how much the weights are held back. A cut answer is taken to be as long as half of those were that
ended beyond its length (one step of Buckley and James 1979).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.features import FEATURES
from gateway.length_model import VERSION, Expansion, Floats, LengthModel, LengthPredictor
from gateway.length_records import LengthRecord
from gateway.training.ranking import kendall_tau
from scheduling.lengths import LengthHistogram

MIN_RECORDS = 200
MAX_RECORDS = 100_000
KNOTS = (0.1, 0.25, 0.5, 0.75, 0.9)  # as shares of the training records below them
RIDGES = (1.0, 10.0, 100.0, 1000.0)
MIN_GROUP = 40  # records behind one point of the quantiles
MAX_GROUPS = 24
NEAR = 1.2  # lengths within this ratio need not be told apart


@dataclass(frozen=True, slots=True)
class Quality:
    """On held-out answers that ended by themselves; the table's values are those served without.

    mae: mean absolute error of q50 in tokens. p90_under: nine of ten answers are at most so many
    times as long as q50. q90_missed: the share that is longer than q90 (0.1 is right).
    """

    tau: float
    tau_far: float
    mae: float
    p90_under: float
    q90_missed: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was trained on what, and how good it is beside the table of lengths."""

    num_records: int
    num_cut: int
    num_held_out: int
    model: Quality
    table_tau: float
    table_tau_far: float
    ms_per_request: float


@dataclass(frozen=True, slots=True)
class Data:
    """Records as arrays."""

    rows: Floats
    lengths: Floats
    limits: Floats
    cut: NDArray[np.bool_]

    def part(self, where: NDArray[np.bool_] | slice) -> "Data":
        """Some of them."""
        return Data(self.rows[where], self.lengths[where], self.limits[where], self.cut[where])

    def __len__(self) -> int:
        return len(self.lengths)


def train(records: Sequence[LengthRecord]) -> tuple[LengthModel, Report]:
    """The model and what it is worth. Raises ValueError where there are too few records."""
    if len(records) < MIN_RECORDS:
        raise ValueError(
            f"{len(records)} records are too few, {MIN_RECORDS} are needed and 5,000 are good: "
            "serve more requests with the gateway's --record-dir"
        )
    newest = records[-MAX_RECORDS:]
    data = Data(
        np.array([r.features for r in newest], float),
        np.array([r.num_tokens for r in newest], float),
        np.array([r.max_tokens for r in newest], float),
        np.array([r.is_cut for r in newest], bool),
    )
    num_known = len(data) * 4 // 5
    known, held_out = data.part(slice(0, num_known)), data.part(slice(num_known, None))
    model = _fit(known)
    return model, _judge(model, data, held_out)


def _fit(known: Data) -> LengthModel:
    is_calibrating = np.arange(len(known)) % 4 == 3
    training, calibrating = known.part(~is_calibrating), known.part(is_calibrating)
    blank = _blank(training.rows)
    expansion = Expansion(blank)
    columns = expansion.of(training.rows)
    labels = np.log1p(_uncut(training))
    wanted = np.log1p(_uncut(calibrating))
    checked = expansion.of(calibrating.rows)
    candidates = [_ridge(columns, labels, ridge) for ridge in RIDGES]
    errors = [float(np.abs(checked @ weights - wanted).mean()) for weights in candidates]
    best = candidates[errors.index(min(errors))]
    scores = np.clip(checked @ best, 0.0, 16.0)
    at, q50, q90 = _calibrate(scores, calibrating)
    return LengthModel(
        tandem_length_model=VERSION,
        features=FEATURES,
        means=blank.means,
        scales=blank.scales,
        bent=blank.bent,
        knots=blank.knots,
        weights=tuple(best.tolist()),
        scores=tuple(at),
        q50=tuple(q50),
        q90=tuple(q90),
    )


def _blank(rows: Floats) -> LengthModel:
    """A model without weights: how it sees features."""
    plain = rows[:, :-1]
    scales = plain.std(axis=0)
    blank = LengthModel(
        tandem_length_model=VERSION,
        features=FEATURES,
        means=tuple(plain.mean(axis=0).tolist()),
        scales=tuple(np.where(scales > 1e-9, scales, 1.0).tolist()),
        bent=(),
        knots=(),
        weights=(),
        scores=(0.0,),
        q50=(0.0,),
        q90=(0.0,),
    )
    standard = Expansion(blank).plain(rows)
    places = np.quantile(standard, KNOTS, axis=0)
    lowest = standard.min(axis=0)
    # One per value: a feature that is mostly zero bends where it begins.
    knots = [(n, at) for n in range(plain.shape[1]) for at in sorted({lowest[n], *places[:, n]})]
    return msgspec.structs.replace(
        blank,
        bent=tuple(n for n, _ in knots),
        knots=tuple(float(at) for _, at in knots),
    )


def _ridge(columns: Floats, labels: Floats, ridge: float) -> Floats:
    """Least squares with the weights held back, the constant's excepted."""
    penalty = np.full(columns.shape[1], ridge)
    penalty[-1] = 1e-6
    gram = columns.T @ columns + np.diag(penalty)
    return np.asarray(np.linalg.solve(gram, columns.T @ labels), np.float64)


def _uncut(data: Data) -> Floats:
    """Lengths, those of cut answers as the module says."""
    ended = np.sort(data.lengths[~data.cut])
    longer = np.searchsorted(ended, data.lengths, side="right")
    middle = (longer + len(ended)) // 2
    has_longer = len(ended) - longer >= 5
    if not len(ended):
        return data.lengths
    guessed = np.where(has_longer, ended[np.minimum(middle, len(ended) - 1)], data.lengths)
    return np.where(data.cut, guessed, data.lengths)


def _calibrate(scores: Floats, data: Data) -> tuple[list[float], list[float], list[float]]:
    """Mean score, median and ninth decile of groups of answers with like scores."""
    num_groups = int(np.clip(len(data) // MIN_GROUP, 1, MAX_GROUPS))
    longest = float(data.lengths.max())
    at, q50, q90 = [], [], []
    for group in np.array_split(np.argsort(scores, kind="stable"), num_groups):
        histogram = LengthHistogram(half_life=math.inf)
        for index in group:
            histogram.add(int(data.lengths[index]), is_cut=bool(data.cut[index]))
        low, high = histogram.quantiles((0.5, 0.9))
        at.append(float(scores[group].mean()))
        q50.append(min(low, longest))
        q90.append(min(high, longest))
    return at, isotonic(q50), isotonic(q90)


def isotonic(values: Sequence[float]) -> list[float]:
    """The rising sequence nearest to the values (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            other, num = blocks.pop()
            mean, size = (mean * size + other * num) / (size + num), size + num
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]


def _judge(model: LengthModel, data: Data, held_out: Data) -> Report:
    predictor = LengthPredictor(model)
    seen = held_out.part(~held_out.cut)
    scores = np.minimum(predictor.score(seen.rows), np.log1p(seen.limits))
    q50, q90 = (np.minimum(q, seen.limits) for q in predictor.quantiles(scores))
    table = seen.rows[:, FEATURES.index("log_table")]
    return Report(
        num_records=len(data),
        num_cut=int(data.cut.sum()),
        num_held_out=len(seen),
        model=_quality(scores, q50, q90, seen.lengths),
        table_tau=kendall_tau(table.tolist(), seen.lengths.tolist()),
        table_tau_far=kendall_tau(table.tolist(), seen.lengths.tolist(), min_ratio=NEAR),
        ms_per_request=_ms_per_request(predictor, seen),
    )


def _quality(scores: Floats, q50: Floats, q90: Floats, lengths: Floats) -> Quality:
    if not len(lengths):
        return Quality(0.0, 0.0, math.inf, math.inf, 1.0)
    return Quality(
        tau=kendall_tau(scores.tolist(), lengths.tolist()),
        tau_far=kendall_tau(scores.tolist(), lengths.tolist(), min_ratio=NEAR),
        mae=float(np.abs(q50 - lengths).mean()),
        p90_under=float(np.quantile(lengths / np.maximum(q50, 1.0), 0.9)),
        q90_missed=float((lengths > q90).mean()),
    )


def _ms_per_request(predictor: LengthPredictor, data: Data) -> float:
    num = min(200, len(data))
    began = time.perf_counter()
    for row, limit in zip(data.rows[:num].tolist(), data.limits[:num].tolist(), strict=True):
        predictor.predict(tuple(row), int(limit))
    return (time.perf_counter() - began) / max(1, num) * 1e3
