"""Who is placed now, who waits for room, and who is told at once that it cannot make it. Pure.

Where all nodes are full a question is held and bound late, when a request has ended, as long as
the pace of endings says that its first token can still come in time. A coordinator that restarts
loses what it held; gateways ask again.
"""

from dataclasses import replace

from coordinator.placements import Placements, RequestKey, key_of
from coordinator.queueing import HeldPlaces
from coordinator.shedding import RecentFlow
from scheduling.routing.placement import Refusal
from tandem.messages.placement import Place, Placed, PlaceRefused, RequestEnded

# Gateways give a question up after 30 s, and the answer must still find them waiting.
MAX_HOLD_S = 20.0
Answer = tuple[Place, Placed | PlaceRefused]


class Admission:
    """See the module. Every question gets one answer, now or from `release`."""

    def __init__(self, placements: Placements, *, max_held: int) -> None:
        self._placements = placements
        self._held = HeldPlaces(max_held)
        self._flow = RecentFlow()
        self._full: Refusal | None = None  # why the first in turn could not be placed
        self.num_shed = 0
        self.num_dropped = 0

    @property
    def num_held(self) -> int:
        """Questions that wait."""
        return len(self._held)

    def is_held(self, request: Place) -> bool:
        """Whether it waits."""
        return self._held.get(key_of(request)) is not None

    @property
    def full(self) -> str:
        """Why the first in turn waits, or did last."""
        return "" if self._full is None else self._full.message

    def ask(self, request: Place, now: float) -> list[Answer]:
        """The answer, unless it waits or a later attempt has silenced it; and those of others."""
        key = key_of(request)
        held = self._held.get(key)
        if held is not None and request.attempt <= held.request.attempt:
            return []  # asked again while it waits, or silenced by a later attempt
        self._held.remove(key)
        if self.num_held and self._full is not None and self._hold(request, self._full, now):
            return self.release(now)  # in its turn, not past those that wait
        outcome = self._placements.place(request, now)
        if outcome is None:
            self.num_dropped += 1
            return []
        if isinstance(outcome, Refusal) and outcome.can_wait and self._hold(request, outcome, now):
            return []
        return [self._answer(request, outcome, now)]

    def _hold(self, request: Place, full: Refusal, now: float) -> bool:
        """Let it wait where the pace of endings lets it be in time; False: it cannot wait."""
        if self._held.is_full or self._placements.is_known(request):
            return False
        slack_s = self._placements.slack_s(request)
        if slack_s is None:
            return False
        due_at = now + min(slack_s, MAX_HOLD_S)
        wait_s = self._flow.wait_s(self._held.num_ahead(request.priority, due_at) + 1, now)
        if wait_s is None or now + wait_s > due_at:
            return False
        self._full = full
        self._held.add(request, due_at)
        return True

    def release(self, now: float) -> list[Answer]:
        """Answers of those that waited: placed as far as there is room, refused when too late."""
        answers: list[Answer] = []
        for held in self._held.overdue(now):
            assert self._full is not None, "somebody waits"
            self._held.remove(key_of(held.request))
            answers.append(self._answer(held.request, self._full, now))
        while (first := self._held.first(self._placements.is_entitled)) is not None:
            outcome = self._placements.place(first.request, now)
            if isinstance(outcome, Refusal) and outcome.can_wait:
                self._full = outcome
                break
            self._held.remove(key_of(first.request))
            if outcome is not None:
                answers.append(self._answer(first.request, outcome, now))
        return answers

    def _answer(self, request: Place, outcome: Placed | Refusal, now: float) -> Answer:
        if isinstance(outcome, Placed):
            return request, outcome
        if outcome.code == "overloaded":
            self.num_shed += 1
            self._flow.note_shed(now)
            retry_s = max(outcome.retry_after_s or 0.0, self._flow.retry_after_s(now))
            outcome = replace(outcome, retry_after_s=retry_s)
        return request, PlaceRefused(
            request_id=request.request_id,
            attempt=request.attempt,
            code=outcome.code,
            message=outcome.message,
            retry_after_s=outcome.retry_after_s,
            predicted_ttft_s=outcome.predicted_ttft_s,
        )

    def ended(self, report: RequestEnded, now: float) -> list[Answer]:
        """A request ended: there is room for another."""
        key: RequestKey = (report.incarnation, report.request_id)
        self._held.remove(key)
        if self._placements.forget(key):
            self._flow.note_ended(now)
            if not report.is_evaluation:
                self._placements.note_length(report.num_output_tokens)
        return self.release(now)

    def forget_gateway(self, gateway_id: str) -> int:
        """A gateway is gone and its requests with it; returns how many were placed."""
        self._held.forget_gateway(gateway_id)
        return self._placements.forget_gateway(gateway_id)
