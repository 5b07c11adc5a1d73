"""How requests of one SLA class ended, over windows of time: attainment, burn rate, budget. Pure.

Times are unix seconds, so that a window means the same after a restart. A clock that is set back
counts into the newest bucket until it has caught up.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields

from tandem.messages.operations import WindowVerdict

Parts = list[tuple[str, float]]  # fields of a tally with their values


@dataclass(slots=True)
class Tally:
    """Counts of ended requests; of those that were late, by which target, and where their time
    went, in seconds. Shed requests are in no other count."""

    num_ended: float = 0
    num_attained: float = 0
    num_failed: float = 0
    num_shed: float = 0
    num_late_ttft: float = 0
    num_late_tpot: float = 0
    queue_s: float = 0
    prefill_s: float = 0
    transfer_s: float = 0
    decode_admission_s: float = 0
    decode_s: float = 0

    @property
    def num_requests(self) -> float:
        """All that wanted to be served."""
        return self.num_ended + self.num_shed

    @property
    def attainment(self) -> float | None:
        """The share that kept its targets; None where there was none."""
        return self.num_attained / self.num_requests if self.num_requests else None

    def add(self, parts: Parts) -> None:
        """Add another one."""
        for name, value in parts:
            setattr(self, name, getattr(self, name) + value)

    def take_away(self, parts: Parts) -> None:
        """The opposite; what floats leave over is no count."""
        for name, value in parts:
            setattr(self, name, max(0.0, getattr(self, name) - value))

    @property
    def parts(self) -> Parts:
        """What is not zero: of a request most is."""
        return [(name, value) for name in TALLY_FIELDS if (value := getattr(self, name))]

    def row(self) -> tuple[float, ...]:
        """The values in the order of `TALLY_FIELDS`."""
        return tuple(getattr(self, name) for name in TALLY_FIELDS)


TALLY_FIELDS = tuple(field.name for field in fields(Tally))


class Window:
    """The last `span_s` seconds in buckets of `step_s`, with a running total."""

    def __init__(self, span_s: int, step_s: int) -> None:
        self.step_s = step_s
        self._num_steps = span_s // step_s
        self._buckets: deque[tuple[int, Tally]] = deque()  # by number since the epoch
        self._total = Tally()
        self._changed: set[int] = set()

    def add(self, parts: Parts, unix_s: float, *, is_new: bool = True) -> None:
        """Count what happened at that time, or, where that is past, in the newest bucket.

        `is_new`: a file does not have it yet.
        """
        number = int(unix_s // self.step_s)
        if self._buckets and number <= self._buckets[-1][0]:
            number = self._buckets[-1][0]
        else:
            self._buckets.append((number, Tally()))
        self._buckets[-1][1].add(parts)
        self._total.add(parts)
        if is_new:
            self._changed.add(number)
        self._forget(number)

    def total(self, unix_s: float) -> Tally:
        """All of the window that ends now."""
        self._forget(int(unix_s // self.step_s))
        return self._total

    def _forget(self, number: int) -> None:
        while self._buckets and self._buckets[0][0] <= number - self._num_steps:
            gone, tally = self._buckets.popleft()
            self._total.take_away(tally.parts)
            self._changed.discard(gone)

    def take_changed(self) -> Iterator[tuple[int, Tally]]:
        """Start and content of each bucket that changed since the last call."""
        for number, tally in self._buckets:
            if number in self._changed:
                yield number * self.step_s, tally
        self._changed.clear()


SPANS_S = {"5m": 300, "30m": 1800, "1h": 3600, "6h": 21_600, "3d": 259_200}
STEPS_S = {"5m": 1, "30m": 10, "1h": 10, "6h": 300, "3d": 300}
KEPT = {STEPS_S[name]: name for name in ("1h", "3d")}  # what a file keeps, by step


@dataclass(frozen=True, slots=True)
class BurnRule:
    """An alert of the SRE workbook (chapter 5): both windows must burn faster than `rate`."""

    rate: float
    long: str
    short: str


# 2 % of a month's budget in an hour, 5 % in six hours, 10 % in three days. The second rule is ours:
# it warns before a bad hour is full; five minutes at this rate spend 0.7 % of three days' budget.
BURN_RULES = (
    BurnRule(14.4, "1h", "5m"),
    BurnRule(6.0, "5m", "5m"),
    BurnRule(6.0, "6h", "30m"),
    BurnRule(1.0, "3d", "6h"),
)
MIN_REQUESTS = 10  # in the long window: one late request of three is no trend


class ClassWindows:
    """All windows of one class. `objective`: the share of requests that must keep both targets."""

    def __init__(self, objective: float) -> None:
        self.objective = objective
        self._windows = {name: Window(SPANS_S[name], STEPS_S[name]) for name in SPANS_S}

    def add(self, tally: Tally, unix_s: float) -> None:
        """Count an ended request."""
        parts = tally.parts
        for window in self._windows.values():
            window.add(parts, unix_s)

    def restore(self, step_s: int, start_s: int, tally: Tally) -> None:
        """A bucket that a file kept, to be told oldest first: fine steps are for the short windows,
        coarse ones for the long."""
        for name in ("5m", "30m", "1h") if step_s == STEPS_S["1h"] else ("6h", "3d"):
            self._windows[name].add(tally.parts, start_s, is_new=False)

    def take_changed(self) -> Iterator[tuple[int, int, Tally]]:
        """Step, start and content of each bucket that a file should have."""
        for step_s, name in KEPT.items():
            for start_s, tally in self._windows[name].take_changed():
                yield step_s, start_s, tally

    def total(self, window: str, unix_s: float) -> Tally:
        """Counts of a window of `SPANS_S`."""
        return self._windows[window].total(unix_s)

    def burn_rate(self, window: str, unix_s: float) -> float | None:
        """Times the pace that spends the budget exactly; None where there is none to spend."""
        attainment = self.total(window, unix_s).attainment
        if attainment is None or self.objective >= 1:
            return None
        return (1 - attainment) / (1 - self.objective)

    def budget_left(self, unix_s: float) -> float | None:
        """The share of three days' error budget that is left; below 0 where it is overspent."""
        burn_rate = self.burn_rate("3d", unix_s)
        return None if burn_rate is None else 1 - burn_rate

    def verdict(self, window: str, unix_s: float) -> WindowVerdict:
        """A window as operators see it."""
        total = self.total(window, unix_s)
        return WindowVerdict(
            num_ended=round(total.num_ended),
            num_attained=round(total.num_attained),
            num_failed=round(total.num_failed),
            num_shed=round(total.num_shed),
            attainment=total.attainment,
            burn_rate=self.burn_rate(window, unix_s),
        )

    def burning(self, unix_s: float) -> BurnRule | None:
        """The most urgent rule that fires."""
        for rule in BURN_RULES:
            if self.total(rule.long, unix_s).num_requests < MIN_REQUESTS:
                continue
            rates = [self.burn_rate(name, unix_s) for name in (rule.long, rule.short)]
            if all(rate is not None and rate > rule.rate for rate in rates):
                return rule
        return None
