"""What this node's steps and transfers cost, learned from each that ends. Pure."""

from node.runner import StepBatch
from scheduling.cost_fit import StepFit, TransferFit
from scheduling.costs import UNKNOWN_COSTS, step_shape
from scheduling.views import RequestKey, StepPlan
from tandem.messages.common import NodeCosts

MAX_SENDING = 4096  # transfers that never ended here are forgotten, oldest first


class LiveCosts:
    """See the module. A step lasts from its planning to its results; `busy_s` is spent in steps.

    A transfer lasts from the prompt's last chunk to the owner's word that all of it is there and
    verified, which is when decode may begin; its bytes are those that were still to be written.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.current = UNKNOWN_COSTS
        self._steps = StepFit()
        self._transfers = TransferFit()
        self._planned_at = 0.0
        self._sending: dict[RequestKey, tuple[float, int]] = {}

    def start_from(self, prior: NodeCosts) -> None:
        """What is believed before the first step."""
        self.current = prior
        self._steps = StepFit(prior)
        self._transfers = TransferFit(prior.transfer_s, prior.transfer_bytes_per_s)

    @property
    def learned(self) -> NodeCosts | None:
        """For others: None while nothing was learned here."""
        return self.current if self.current.num_steps else None

    def step_began(self, now: float) -> None:
        """A step was planned, and runs."""
        self._planned_at = now

    def step_ended(self, plan: StepPlan, batch: StepBatch, now: float) -> bool:
        """It has run; True where `current` is new."""
        seconds = max(0.0, now - self._planned_at)
        self.busy_s += seconds
        num_decode = len(plan.decode)
        rows = [s.start + len(s.token_ids) for s in batch.sequences[:num_decode]]
        chunks = [(len(s.token_ids), s.start) for s in batch.sequences[num_decode:]]
        shape = step_shape(chunks, [*rows, *batch.padding_contexts])
        if not self._steps.take(shape, seconds):
            return False
        self.current = self._transfers.apply(self._steps.costs)
        return True

    def sending_began(self, key: RequestKey, num_bytes: int, now: float) -> None:
        """The last chunk of a prompt is computed, and so many bytes of it are to be written."""
        self._sending[key] = (now, num_bytes)
        if len(self._sending) > MAX_SENDING:
            del self._sending[next(iter(self._sending))]

    def sending_ended(self, key: RequestKey, now: float, *, is_there: bool) -> None:
        """The owner has all of it, or it is given up."""
        began = self._sending.pop(key, None)
        if began is not None and is_there:
            self._transfers.take(began[1], now - began[0])
