"""Early rejection of what would miss its targets, with the coordinator's forecast of ends. Pure."""

from collections.abc import Sequence

from coordinator.forecast import Forecast
from scheduling.routing.early_rejection import Admitted, EarlyRejection
from scheduling.routing.placement import Candidate, Demand, Placement, Refusal
from simulator.performance.requests import SimRequest


class Foresight:
    """As `coordinator.placements` judges a placement before it commits to it."""

    def __init__(self, tolerance: float) -> None:
        self._rejection = EarlyRejection(tolerance)
        self._forecast = Forecast()
        self._ends: dict[int, tuple[str, float]] = {}  # by request: decode node, expected end

    def judge(
        self,
        request: SimRequest,
        demand: Demand,
        chosen: Placement,
        candidates: Sequence[Candidate],
        now: float,
    ) -> Placement | Refusal:
        """The placement that is made, noted as such, or why there is none."""
        predicted = None if request.prediction is None else request.prediction.q50
        judged = self._rejection.judge(
            demand,
            chosen,
            candidates,
            lambda node_id: self._forecast.ends_in_s(node_id, now),
            self._forecast.num_output_tokens(predicted, demand.max_output_tokens),
        )
        if isinstance(judged, Refusal):
            return judged
        self._note(request, judged, now)
        return judged.placement

    def _note(self, request: SimRequest, admitted: Admitted, now: float) -> None:
        ends_at = now + admitted.predicted.ends_after_s
        self._ends[request.index] = (admitted.placement.decode, ends_at)
        self._forecast.add(admitted.placement.decode, ends_at)

    def ended(self, request: SimRequest) -> None:
        """Its last token is known."""
        self._forecast.remove(*self._ends.pop(request.index))
        self._forecast.note_length(request.num_output)
