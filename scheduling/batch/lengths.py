"""How much of a request is probably still to come, and how long that takes. Pure."""

from scheduling.costs import decode_step_s, prefill_s
from scheduling.views import NodeView, SequenceView, Services


def answer_tokens(sequence: SequenceView) -> float:
    """Predicted length of its answer; the longest possible without a prediction."""
    longest = max(1, sequence.max_total_tokens - sequence.num_prompt_tokens)
    if sequence.prediction is None:
        return longest
    return min(longest, max(1.0, sequence.prediction.q50))


def tokens_to_come(sequence: SequenceView) -> float:
    """Answer tokens still to come, at least one.

    Beyond the median the upper quantile is what is left of the prediction; beyond that as much
    again as there is already, as answers have heavy tails.
    """
    num_done = sequence.num_output_tokens
    longest = max(1, sequence.max_total_tokens - sequence.num_tokens)
    if sequence.prediction is None:
        return longest
    for quantile in (sequence.prediction.q50, sequence.prediction.q90):
        if num_done < quantile:
            return min(longest, max(1.0, quantile - num_done))
    return min(longest, max(1.0, num_done))


class ServiceTimes:
    """How long requests take on this node at its present load."""

    def __init__(self, view: NodeView, services: Services) -> None:
        num_rows = max(1, len(view.running))
        num_tokens = sum(s.num_tokens for s in view.running)
        self._costs = services.costs
        self._chunk_tokens = max(1, view.max_num_batched_tokens)
        self._row_s = decode_step_s(services.costs, num_rows, num_tokens)

    def prefill_s(self, sequence: SequenceView) -> float:
        """Seconds until its known tokens are computed, when it runs now."""
        num_left = sequence.num_left if sequence.num_left > 1 else 0
        return prefill_s(self._costs, num_left, sequence.num_computed, self._chunk_tokens)

    def service_s(self, sequence: SequenceView) -> float:
        """Seconds of its whole service, never zero; the part that is done counts too."""
        prompt_s = prefill_s(self._costs, sequence.num_prompt_tokens, 0, self._chunk_tokens)
        return max(1e-9, prompt_s + answer_tokens(sequence) * self._row_s)
