"""What operators are shown, gathered from what the coordinator hears, answers and is. Pure.

The core knows nothing of it: the shell tells the observer of every message with the actions that
it led to, and of every second. Clocks: `now` is the core's, `unix_s` the wall's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.actions import Action, EventKind, Note, Send, TurnedAway
from coordinator.core import Coordinator
from coordinator.dashboard.durations import RecentDurations, bins_of
from coordinator.dashboard.event_book import EventBook
from coordinator.dashboard.measuring import durations_ms, is_shed, stage_seconds, tally_of
from coordinator.dashboard.meters import RequestMeter
from coordinator.dashboard.records import Kept, RecordBook
from coordinator.dashboard.series import SeriesBook, Values
from coordinator.dashboard.snapshot import MAX_LIVE, Surveyor
from coordinator.dashboard.verdicts import verdict_of
from coordinator.dashboard.windows import ClassWindows, Tally
from coordinator.metrics import CoordinatorMetrics
from coordinator.pool_use import used_share_of_all
from scheduling.sla import UnknownSlaClass
from tandem.messages.common import SlaTargets
from tandem.messages.operations import ClassVerdict, Event, NodeView, Series, Snapshot
from tandem.messages.placement import MoveRequest, Place, Placed, PlaceRefused, RequestEnded


@dataclass(frozen=True, slots=True)
class Batch:
    """What a file should have that it has not: the changes of a second."""

    buckets: list[tuple[str, int, int, tuple[float, ...]]]  # class, step, start, a tally's row
    samples: list[tuple[int, float, Values]]  # step, end
    events: list[Event]
    records: list[tuple[str, float, Kept]]  # id, time of end


class Observer:
    """See the module."""

    def __init__(self, core: Coordinator, metrics: CoordinatorMetrics) -> None:
        self._core = core
        self._metrics = metrics
        classes = core.sla.classes
        self._windows = {name: ClassWindows(each.attainment) for name, each in classes.items()}
        self._durations = {name: RecentDurations() for name in classes}
        self._series = SeriesBook(classes)
        self._surveyor = Surveyor(core)
        self._meter = RequestMeter()
        self.events = EventBook()
        self.records = RecordBook()

    # --- what happens -----------------------------------------------------------------------

    def handled(
        self, message: object, actions: Sequence[Action], now: float, unix_s: float
    ) -> None:
        """A message came, and led to these actions."""
        match message:
            case Place():
                self._asked(message, now, unix_s)
            case RequestEnded():
                self._ended(message, now, unix_s)
        self._acted(actions, now, unix_s)
        if isinstance(message, Place) and self._core.admission.is_held(message):
            self.records.held(message, self._core.admission.full, now)

    def ticked(self, actions: Sequence[Action], now: float, unix_s: float) -> None:
        """The core looked at the time, and did this."""
        self._acted(actions, now, unix_s)

    def say(self, kind: EventKind, text: str, unix_s: float) -> None:
        """Note what happened."""
        if self.events.add(kind, text, unix_s) is not None:
            self._metrics.event(kind)

    def _asked(self, question: Place, now: float, unix_s: float) -> None:
        gateway = self._core.members.gateways.get(question.gateway_id)
        if gateway is None or gateway.hello.incarnation != question.incarnation:
            return  # nor does the core answer it
        try:
            targets = self._core.sla.resolve(question.sla_class, question.ttft_ms, question.tpot_ms)
        except UnknownSlaClass:
            return  # told so; there is no class that it could be counted in
        self.records.asked(question, targets, now, unix_s)

    def _acted(self, actions: Sequence[Action], now: float, unix_s: float) -> None:
        for action in actions:
            match action:
                case Note(text, kind):
                    self.say(kind, text, unix_s)
                case Send(_, Placed() as answer):
                    self._placed(answer, now)
                case Send(_, PlaceRefused() as answer):
                    self._metrics.refused(answer)
                    self.records.refused(answer, now)
                case TurnedAway():
                    self._turned_away(action, unix_s)
                case Send(_, MoveRequest() as wish):
                    self.records.wished_away(wish.request_id, now)

    def _placed(self, answer: Placed, now: float) -> None:
        live = self.records.live(answer.request_id)
        if live is None or not live.is_news(answer):
            return
        live.place(answer, self._core.placements.admitted(live.key), now)
        if answer.attempt == 1:
            self._meter.count("input_tokens", live.question.num_prompt_tokens)

    def _ended(self, report: RequestEnded, now: float, unix_s: float) -> None:
        if self.records.is_ended(report.request_id):
            return
        self._metrics.ended(report)
        targets = self._targets(report)
        self.records.ended(report, targets, now, unix_s)
        seconds = stage_seconds(report)
        tally = tally_of(report, targets, seconds)
        name = targets.sla_class
        if name in self._windows:
            bins = bins_of(durations_ms(report, seconds))
            self._windows[name].add(tally, unix_s)
            self._durations[name].add(bins, unix_s)
            self._series.ended(name, tally.num_attained, tally.num_requests, bins)
        for what, num in (
            ("requests", tally.num_ended),
            ("goodput", tally.num_attained),
            ("shed", tally.num_shed),
            ("failed", tally.num_failed),
        ):
            self._meter.count(what, num)
        if report.reason == "failed" and not is_shed(report):
            text = (
                f"request {report.request_id.hex()} failed after {report.num_output_tokens} "
                f"tokens: {report.code or 'internal'}: {report.message or ''}"
            )
            self.say("request", text, unix_s)

    def _turned_away(self, action: TurnedAway, unix_s: float) -> None:
        """Refused like those whom the core refuses, though it never saw them."""
        name = action.sla_class or self._core.sla.default
        if name in self._windows:
            self._windows[name].add(Tally(num_shed=action.num_requests), unix_s)
            self._series.ended(name, 0, action.num_requests, ())
        self._meter.count("shed", action.num_requests)
        self._metrics.turned_away(name, action.num_requests)

    def _targets(self, report: RequestEnded) -> SlaTargets:
        """What it was promised; by its class where it was never placed."""
        if report.targets is not None:
            return report.targets
        known = self.records.live(report.request_id)
        if known is not None:
            return known.targets
        classes = self._core.sla.classes
        name = report.sla_class if report.sla_class in classes else self._core.sla.default
        return classes[name].targets

    # --- time -------------------------------------------------------------------------------

    def second(self, now: float, unix_s: float) -> None:
        """Another second is over: take samples."""
        members = self._core.members
        gateways = ((name, each.hello.incarnation) for name, each in members.gateways.items())
        self.records.forget_lost(gateways, now)
        self._surveyor.look(now)
        self.events.tick(unix_s)
        self._series.sample(self._sample(), unix_s)

    def _sample(self) -> Values:
        counted = self._meter.tick()
        nodes = self._surveyor.living
        roles = [node.role for node in nodes if node.state != "draining"]
        return {
            "requests_per_s": counted["requests"],
            "goodput_per_s": counted["goodput"],
            "shed_per_s": counted["shed"],
            "failed_per_s": counted["failed"],
            "output_tokens_per_s": self._surveyor.output_tokens_per_s,
            "num_prefill": roles.count("prefill"),
            "num_decode": roles.count("decode"),
            "num_mixed": roles.count("mixed"),
            "busy_prefill": _busy(nodes, "prefill"),
            "busy_decode": _busy(nodes, "decode"),
            "kv_used_share": used_share_of_all(self._core.members.nodes.values()),
            "transfer_bytes_per_s": sum(node.transfer_bytes_per_s for node in nodes),
            "num_live": self.records.num_live,
            "num_queued": self._core.admission.num_held,
        }

    # --- what is shown ----------------------------------------------------------------------

    def snapshot(self, now: float, unix_s: float, events: Sequence[Event] = ()) -> Snapshot:
        """All of now; nodes are as of the last second."""
        return self._surveyor.snapshot(
            now=now,
            unix_s=unix_s,
            classes=self._verdicts(unix_s),
            meter=self._meter,
            live=self.records.live_views(MAX_LIVE, now),
            num_live=self.records.num_live,
            events=events,
        )

    def _verdicts(self, unix_s: float) -> list[ClassVerdict]:
        return [
            verdict_of(each, self._windows[name], self._durations[name], unix_s)
            for name, each in self._core.sla.classes.items()
        ]

    def series(self, window: str, unix_s: float) -> Series:
        """Samples of a window of `WINDOWS_S`."""
        return self._series.view(window, unix_s, self.events.decisions())

    # --- a file -----------------------------------------------------------------------------

    def take_batch(self) -> Batch:
        """What changed since the last call."""
        buckets = [
            (name, step_s, start_s, tally.row())
            for name, windows in self._windows.items()
            for step_s, start_s, tally in windows.take_changed()
        ]
        samples, events = self._series.take_closed(), self.events.take_new()
        return Batch(buckets, samples, events, self.records.take_new())

    def restore(self, batch: Batch) -> None:
        """What a file kept, each list oldest first."""
        for name, step_s, start_s, row in batch.buckets:
            if name in self._windows:  # classes may have been renamed
                self._windows[name].restore(step_s, start_s, Tally(*row))
        for step_s, at, values in batch.samples:
            self._series.restore(step_s, at, values)
        self.events.restore(batch.events)
        self.records.restore((name, record) for name, _, record in batch.records)


def _busy(nodes: Sequence[NodeView], role: str) -> float | None:
    """Mean of the nodes that do this work."""
    shares = [n.busy_share for n in nodes if n.role in (role, "mixed") and n.busy_share is not None]
    return sum(shares) / len(shares) if shares else None
