"""A gateway's GET /metrics: the ledger at the scrape, what ended or was refused as it happened.

`GatewayMetrics.render()` is the text. The shell tells what happens; `HttpMeter` (gateway/
metrics_http.py) counts HTTP calls into the same tally.
"""

from collections.abc import Iterator
from typing import Protocol, get_args

from prometheus_client.metrics_core import Metric as Family

from gateway.metrics_vllm import vllm_families
from gateway.pool_view import PoolView
from tandem import metrics as m
from tandem import metrics_vllm as v
from tandem.exposition import Tally, family, render
from tandem.messages.client import Done
from tandem.messages.common import ErrorCode
from tandem.messages.evaluation import EvaluationTask
from tandem.version import installed_version


class LedgerNumbers(Protocol):
    """What is read of the ledger at a scrape."""

    def __len__(self) -> int: ...

    @property
    def num_waiting(self) -> int:
        """Live requests without a token."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all live prompts."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens delivered since the start."""

    @property
    def num_dropped(self) -> int:
        """Messages that were late, unknown or nobody's."""


class SessionNumbers(Protocol):
    """What is read of the clients' sessions at a scrape."""

    num_resends: int
    num_cuts: int


class GatewayMetrics:
    """See the module. `with_vllm_names`: also under the names that vLLM has for them."""

    def __init__(
        self,
        ledger: LedgerNumbers,
        sessions: SessionNumbers,
        pools: PoolView,
        *,
        gateway_id: str,
        model_name: str,
        with_vllm_names: bool = False,
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._pools = pools
        self._labels = (model_name, gateway_id)
        self._with_vllm_names = with_vllm_names
        self._version = installed_version()
        self.tally = Tally()
        self.num_open_streams = 0  # over HTTP
        self._tokenising = self.tally.histogram(m.GATEWAY_TOKENISING)
        self._begin()

    def _begin(self) -> None:
        """Series that exist before anything happened: a rate needs a first value."""
        for reason in v.FINISHED_REASONS:
            self.tally.add(m.GATEWAY_ENDED, (reason,), 0)
        self.tally.add(m.GATEWAY_REFUSALS, ("overloaded",), 0)
        for task in get_args(EvaluationTask):
            self.tally.add(m.GATEWAY_EVALUATIONS, (task, "ok"), 0)

    # --- what happens -----------------------------------------------------------------------

    def ended(self, done: Done) -> None:
        """A request of the ledger's ended."""
        self.tally.add(m.GATEWAY_ENDED, (done.reason,))
        if self._with_vllm_names:
            self._note_for_vllm(done)

    def _note_for_vllm(self, done: Done) -> None:
        tally, labels, num = self.tally, self._labels, done.usage.num_output_tokens
        tally.add(v.SUCCESS, (*labels, v.FINISHED_REASONS[done.reason]))
        tally.add(v.PROMPT_TOKENS, labels, done.usage.num_prompt_tokens)
        first_s, finished_s = done.timeline.first_token_s, done.timeline.finished_s
        if finished_s is not None:
            tally.histogram(v.E2E, labels).observe(max(0.0, finished_s))
        if first_s is not None:
            tally.histogram(v.TTFT, labels).observe(max(0.0, first_s))
        if first_s is not None and finished_s is not None and num > 1:
            seconds = max(0.0, finished_s - first_s) / (num - 1)
            tally.histogram(v.REQUEST_TPOT, labels).observe(seconds)

    def refused(self, code: ErrorCode) -> None:
        """A request never entered the ledger."""
        self.tally.add(m.GATEWAY_REFUSALS, (code,))

    def evaluated(self, task: str, outcome: str) -> None:
        """An embedding, a score or a classification is over: `ok`, or why not."""
        self.tally.add(m.GATEWAY_EVALUATIONS, (task, outcome))

    def tokenised(self, seconds: float) -> None:
        """A prompt became token ids."""
        self._tokenising.observe(max(0.0, seconds))

    # --- a scrape ---------------------------------------------------------------------------

    def render(self) -> bytes:
        """The text."""
        return render(self._families())

    def _families(self) -> Iterator[Family]:
        ledger = self._ledger
        yield family(m.BUILD_INFO, {(self._version, "gateway"): 1})
        yield family(m.HTTP_OPEN_STREAMS, {(): self.num_open_streams})
        yield family(m.GATEWAY_LIVE, {(): len(ledger)})
        yield family(m.GATEWAY_WAITING, {(): ledger.num_waiting})
        yield family(m.GATEWAY_PROMPT_TOKENS, {(): ledger.num_prompt_tokens})
        yield family(m.GATEWAY_OUTPUT_TOKENS, {(): ledger.num_output_tokens})
        yield family(m.GATEWAY_DROPPED, {(): ledger.num_dropped})
        yield family(m.GATEWAY_RESENDS, {(): self._sessions.num_resends})
        yield family(m.GATEWAY_CUTS, {(): self._sessions.num_cuts})
        yield from self.tally.families()
        if self._with_vllm_names:
            yield from vllm_families(self._labels, ledger, self._pools)
