"""Samples over time at three resolutions: a second, ten seconds, five minutes. Pure.

Of a step longer than a second rates and shares are means, counts of members the last ones, and
quantiles those of all requests that ended in it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from coordinator.dashboard.durations import STAGES, Bins, Durations
from tandem.messages.operations import WINDOWS_S, Event, Series

STEPS_S = {"5m": 1, "1h": 10, "3d": 300}
KEPT = ("1h", "3d")  # what a file keeps
COUNTS = ("num_prefill", "num_decode", "num_mixed")  # last ones, not means
QUANTILES = {
    "ttft_p50_ms": ("ttft", "p50"),
    "ttft_p99_ms": ("ttft", "p99"),
    "tpot_p50_ms": ("tpot", "p50"),
    "tpot_p99_ms": ("tpot", "p99"),
    "max_itl_p99_ms": ("max_itl", "p99"),
    "queue_p50_ms": ("queue", "p50"),
    "prefill_p50_ms": ("prefill", "p50"),
    "transfer_p50_ms": ("transfer", "p50"),
    "decode_admission_p50_ms": ("decode_admission", "p50"),
}
SAMPLED = (
    *("requests_per_s", "goodput_per_s", "shed_per_s", "failed_per_s", "output_tokens_per_s"),
    *("num_prefill", "num_decode", "num_mixed", "busy_prefill", "busy_decode", "kv_used_share"),
    *("transfer_bytes_per_s", "num_live", "num_queued"),
)
Values = dict[str, float | None]


@dataclass(slots=True)
class _Step:
    """What is gathered within one step."""

    number: int
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    last: dict[str, float | None] = field(default_factory=dict)


class Track:
    """The samples of one resolution."""

    def __init__(self, step_s: int, num_steps: int) -> None:
        self.step_s = step_s
        self.samples: deque[tuple[float, Values]] = deque(maxlen=num_steps)
        self._durations = Durations()
        self._ended: dict[str, tuple[float, float]] = {}  # by class: those in time, and all
        self._step: _Step | None = None

    def ended(self, sla_class: str, num_attained: float, num: float, bins: Bins) -> None:
        """A request ended within this step."""
        self._durations.add(bins)
        attained, of_all = self._ended.get(sla_class, (0.0, 0.0))
        self._ended[sla_class] = (attained + num_attained, of_all + num)

    def sample(self, values: Mapping[str, float | None], unix_s: float) -> int:
        """Take the values of the second that is over; how many samples that completed."""
        step, begun, num = self._step, int((unix_s - 1) // self.step_s), 0
        if step is not None and begun > step.number + 1 and step.last:
            self._close(step)  # the clock leapt
            step, num = None, 1
        if step is None:
            step = self._step = _Step(begun)
        for name, value in values.items():
            step.last[name] = value
            if value is not None:
                total, count = step.sums.get(name, (0.0, 0))
                step.sums[name] = (total + value, count + 1)
        number = int(unix_s // self.step_s)
        if number > step.number:
            self._close(step)
            self._step = _Step(number)
            num += 1
        return num

    def _close(self, step: _Step) -> None:
        found: Values = {
            name: step.last[name]
            if name in COUNTS or name not in step.sums
            else step.sums[name][0] / step.sums[name][1]
            for name in step.last
        }
        known = {name: self._durations.quantiles(index) for index, name in enumerate(STAGES)}
        for name, (stage, which) in QUANTILES.items():
            of_stage = known[stage]
            found[name] = None if of_stage is None else getattr(of_stage, which)
        for sla_class, (attained, of_all) in self._ended.items():
            found[f"attainment:{sla_class}"] = attained / of_all if of_all else None
        self._durations.clear()
        self._ended.clear()
        self.samples.append(((step.number + 1) * self.step_s, found))


class SeriesBook:
    """All resolutions. `classes` are the SLA classes that have a line of their own."""

    def __init__(self, classes: Iterable[str]) -> None:
        self._tracks = {
            name: Track(step_s, WINDOWS_S[name] // step_s) for name, step_s in STEPS_S.items()
        }
        self._names = (*SAMPLED, *QUANTILES, *(f"attainment:{name}" for name in classes))
        self._closed: list[tuple[int, float, Values]] = []

    def ended(self, sla_class: str, num_attained: float, num: float, bins: Bins) -> None:
        """A request ended, or was shed: then nothing of it took any time."""
        for track in self._tracks.values():
            track.ended(sla_class, num_attained, num, bins)

    def sample(self, values: Mapping[str, float | None], unix_s: float) -> None:
        """Take the values of this second."""
        for name, track in self._tracks.items():
            num = track.sample(values, unix_s)
            if num and name in KEPT:
                latest = list(track.samples)[-num:]
                self._closed += [(track.step_s, at, values) for at, values in latest]

    def take_closed(self) -> list[tuple[int, float, Values]]:
        """Step, end and values of each sample that a file should have, since the last call."""
        closed, self._closed = self._closed, []
        return closed

    def restore(self, step_s: int, unix_s: float, values: Values) -> None:
        """A sample that a file kept; to be told oldest first."""
        for track in self._tracks.values():
            if track.step_s == step_s:
                track.samples.append((unix_s, values))

    def view(self, window: str, unix_s: float, decisions: tuple[Event, ...]) -> Series:
        """A window of `WINDOWS_S` in columns."""
        track = self._tracks[window]
        oldest = unix_s - WINDOWS_S[window]
        samples = [sample for sample in track.samples if sample[0] >= oldest]
        return Series(
            step_s=track.step_s,
            unix_s=tuple(at for at, _ in samples),
            values={name: tuple(values.get(name) for _, values in samples) for name in self._names},
            decisions=tuple(event for event in decisions if event.unix_s >= oldest),
        )
