"""Each request from its first question for nodes to its end, with the decisions about it. Pure.

Live requests are known since this coordinator started; ended ones are kept as JSON, which is what
files and callers want, the latest so many.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from coordinator.dashboard import steps
from coordinator.placements import RequestKey, key_of
from scheduling.routing.early_rejection import Admitted
from tandem.messages.common import SlaTargets
from tandem.messages.operations import LiveView, RequestRecord, Step
from tandem.messages.placement import Place, Placed, PlaceRefused, RequestEnded

MAX_RECORDS = 20_000
MAX_LIVE = 50_000
MAX_STEPS = 32
# A gateway's own word on its requests comes within seconds of its hello.
LOST_AFTER_S = 30.0


@dataclass(slots=True)
class Live:
    """A request that has not ended; times are the coordinator's."""

    question: Place
    received_at: float
    received_unix_s: float
    targets: SlaTargets
    steps: list[Step] = field(default_factory=list)
    placed: Placed | None = None
    refused: PlaceRefused | None = None
    held_at: float | None = None

    @property
    def key(self) -> RequestKey:
        """Under which the coordinator knows it."""
        return key_of(self.question)

    def is_news(self, answer: Placed) -> bool:
        """Whether it was not placed so before: answers are repeated."""
        return self.placed is None or self.placed.attempt < answer.attempt

    def place(self, answer: Placed, admitted: Admitted | None, now: float) -> None:
        """It has nodes."""
        held_s = None if self.held_at is None else now - self.held_at
        self.placed, self.targets, self.held_at = answer, answer.targets, None
        self.say(steps.placed(self.question, answer, admitted, held_s), now)

    def refuse(self, answer: PlaceRefused, now: float) -> None:
        """It has none; asked again it may hear the same again, which is said once."""
        known, self.refused = self.refused, answer
        if known is None or (known.attempt, known.code) != (answer.attempt, answer.code):
            self.say(steps.refused(answer), now)

    def say(self, text: str, now: float) -> None:
        """Another decision about it."""
        if len(self.steps) < MAX_STEPS:
            self.steps.append(Step(after_s=max(0.0, now - self.received_at), text=text))

    def view(self, request_id: str, now: float) -> LiveView:
        """As operators see it."""
        placed = self.placed
        prefill = None if placed is None else placed.prefill
        return LiveView(
            request_id=request_id,
            gateway_id=self.question.gateway_id,
            tenant=self.question.tenant,
            sla_class=self.targets.sla_class,
            age_s=max(0.0, now - self.received_at),
            attempt=self.question.attempt,
            num_prompt_tokens=self.question.num_prompt_tokens,
            prefill_node=None if prefill is None else prefill.node_id,
            decode_node=None if placed is None else placed.decode.node_id,
        )

    def record(self) -> RequestRecord:
        """What is known before its end."""
        question = self.question
        return RequestRecord(
            request_id=question.request_id.hex(),
            gateway_id=question.gateway_id,
            tenant=question.tenant,
            sla_class=self.targets.sla_class,
            ttft_target_ms=self.targets.ttft_ms,
            tpot_target_ms=self.targets.tpot_ms,
            priority=question.priority,
            received_unix_s=self.received_unix_s,
            reason=None,
            code=None,
            message=None,
            sla_attained=None,
            ttft_ms=None,
            tpot_ms=None,
            max_itl_ms=None,
            num_prompt_tokens=question.num_prompt_tokens,
            num_output_tokens=question.num_output_tokens,
            num_cached_tokens=0,
            timeline=None,
            steps=tuple(self.steps),
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """An ended request, as JSON, and what lists are filtered by."""

    data: bytes
    outcome: str
    sla_class: str
    is_missed: bool

    def matches(self, outcome: str | None, sla_class: str | None) -> bool:
        """Whether it belongs in such a list."""
        is_one = outcome is None or self.outcome == outcome
        is_one = is_one or (outcome == "missed" and self.is_missed)
        return is_one and sla_class in (None, self.sla_class)


def kept(record: RequestRecord) -> Kept:
    """An ended request in the form in which it is kept."""
    return Kept(
        data=msgspec.json.encode(record),
        outcome=record.reason or "failed",
        sla_class=record.sla_class,
        is_missed=not record.sla_attained,
    )


class RecordBook:
    """See the module."""

    def __init__(self) -> None:
        self._live: OrderedDict[bytes, Live] = OrderedDict()
        self._ended: OrderedDict[str, Kept] = OrderedDict()
        self._new: list[tuple[str, float, Kept]] = []

    # --- what happens -----------------------------------------------------------------------

    def asked(self, question: Place, targets: SlaTargets, now: float, unix_s: float) -> Live | None:
        """A question for nodes; None where the request has ended already."""
        live = self._live.get(question.request_id)
        if live is None:
            if question.request_id.hex() in self._ended:
                return None
            live = self._begin(question, targets, now, unix_s)
            if question.attempt > 1:
                live.say(steps.asked_again(question), now)
        elif question.attempt > live.question.attempt:
            live.say(steps.asked_again(question), now)
            live.question, live.refused, live.held_at = question, None, None
        return live

    def _begin(self, question: Place, targets: SlaTargets, now: float, unix_s: float) -> Live:
        live = Live(
            question=question,
            received_at=now - question.waited_s,
            received_unix_s=unix_s - question.waited_s,
            targets=targets,
        )
        self._live[question.request_id] = live
        if len(self._live) > MAX_LIVE:
            self._live.popitem(last=False)
        return live

    def held(self, question: Place, reason: str, now: float) -> None:
        """It waits at the coordinator; told again and again, said once."""
        live = self._live.get(question.request_id)
        if live is not None and live.held_at is None:
            live.held_at = now
            live.say(steps.held(reason), now)

    def refused(self, answer: PlaceRefused, now: float) -> None:
        """It has no nodes."""
        live = self._live.get(answer.request_id)
        if live is not None:
            live.refuse(answer, now)

    def wished_away(self, request_id: bytes, now: float) -> None:
        """Its gateway was asked to move it."""
        live = self._live.get(request_id)
        if live is not None:
            live.say(steps.wished_away(), now)

    def live(self, request_id: bytes) -> Live | None:
        """A request that has not ended."""
        return self._live.get(request_id)

    def is_ended(self, request_id: bytes) -> bool:
        """Whether its end is known."""
        return request_id.hex() in self._ended

    def ended(
        self, report: RequestEnded, targets: SlaTargets, now: float, unix_s: float
    ) -> RequestRecord:
        """Its end, told once."""
        live = self._live.pop(report.request_id, None)
        finished_s = None if report.timeline is None else report.timeline.finished_s
        received_unix_s = unix_s - (finished_s or 0.0)
        if report.timeline is not None:
            received_unix_s = report.timeline.received_unix_s
        said: list[Step] = [] if live is None else live.steps
        after_s = finished_s or 0.0
        if live is not None and finished_s is None:
            after_s = max(0.0, now - live.received_at)
        if live is None:
            text = "this coordinator knows nothing of how it was placed: it started later"
            said.append(Step(after_s=0.0, text=text))
        said.append(Step(after_s=after_s, text=steps.ended(report, targets)))
        record = _record(report, targets, received_unix_s, tuple(said))
        self._keep(record.request_id, unix_s, kept(record))
        return record

    def _keep(self, request_id: str, unix_s: float, record: Kept) -> None:
        self._ended[request_id] = record
        self._new.append((request_id, unix_s, record))
        if len(self._ended) > MAX_RECORDS:
            self._ended.popitem(last=False)

    def forget_lost(self, is_known: Iterable[tuple[str, int]], now: float) -> int:
        """Requests whose gateway is gone have nobody to tell of their end; returns how many."""
        gateways = set(is_known)
        lost = [
            key
            for key, live in self._live.items()
            if (live.question.gateway_id, live.question.incarnation) not in gateways
            and now - live.received_at > LOST_AFTER_S
        ]
        for key in lost:
            del self._live[key]
        return len(lost)

    # --- what is known ----------------------------------------------------------------------

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def live_views(self, limit: int, now: float) -> list[LiveView]:
        """The oldest live requests."""
        return [live.view(key.hex(), now) for key, live in islice(self._live.items(), limit)]

    def find(self, prefix: str) -> bytes | list[str]:
        """The record whose id begins so; or such ids, where they are none or several."""
        if prefix in self._ended:
            return self._ended[prefix].data
        found = [name for name in self._ended if name.startswith(prefix)]
        live = {key.hex(): each for key, each in self._live.items()}
        found += [name for name in live if name.startswith(prefix)]
        if len(found) != 1:
            return found[:10]
        if found[0] in live:
            return msgspec.json.encode(live[found[0]].record())
        return self._ended[found[0]].data

    def latest(self, limit: int, outcome: str | None, sla_class: str | None) -> Iterator[bytes]:
        """Records as JSON, the latest first; `outcome` live: those that have not ended."""
        if outcome == "live":
            lives = [e for e in reversed(self._live.values()) if _is_of(e, sla_class)]
            return (msgspec.json.encode(each.record()) for each in lives[:limit])
        matching = (
            each.data for each in reversed(self._ended.values()) if each.matches(outcome, sla_class)
        )
        return islice(matching, limit)

    # --- a file -----------------------------------------------------------------------------

    def restore(self, records: Iterable[tuple[str, Kept]]) -> None:
        """What a file kept, oldest first."""
        self._ended.update(records)

    def take_new(self) -> list[tuple[str, float, Kept]]:
        """Id, time of end and record of each that a file should have, since the last call."""
        new, self._new = self._new, []
        return new


def _is_of(live: Live, sla_class: str | None) -> bool:
    return sla_class in (None, live.targets.sla_class)


def _record(
    report: RequestEnded, targets: SlaTargets, received_unix_s: float, said: tuple[Step, ...]
) -> RequestRecord:
    return RequestRecord(
        request_id=report.request_id.hex(),
        gateway_id=report.gateway_id,
        tenant=report.tenant,
        sla_class=targets.sla_class,
        ttft_target_ms=targets.ttft_ms,
        tpot_target_ms=targets.tpot_ms,
        priority=report.priority,
        received_unix_s=received_unix_s,
        reason=report.reason,
        code=report.code,
        message=report.message,
        sla_attained=report.sla_attained,
        ttft_ms=report.ttft_ms,
        tpot_ms=report.tpot_ms,
        max_itl_ms=report.max_itl_ms,
        num_prompt_tokens=report.num_prompt_tokens,
        num_output_tokens=report.num_output_tokens,
        num_cached_tokens=report.num_cached_tokens,
        timeline=report.timeline,
        steps=said,
    )
