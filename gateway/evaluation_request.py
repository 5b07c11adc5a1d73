"""One evaluation: what is asked, its attempts, the record that ends it; its answer read. Pure."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gateway.admission import Offer, Rejected
from gateway.attempt import Failure
from gateway.http.services import Evaluated, EvaluationAsked
from gateway.live import Identity
from gateway.prefixes import PrefixChain
from gateway.request import MAX_AVOIDED, End
from scheduling.sla import is_attained
from tandem.frames import Blob
from tandem.messages.common import NodeRef, Timeline, TokenLogprobs
from tandem.messages.evaluation import MAX_LOGPROBS, MAX_TOP, EvaluationDone, EvaluationSpec
from tandem.messages.placement import Place, Placed, PlaceRefused, RequestEnded


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvaluation:
    """A checked evaluation; `received` is on the ledger's clock."""

    request_id: bytes
    asked: EvaluationAsked
    received: float
    received_unix_s: float
    tenant: str = "default"
    tenant_weight: float = 1.0
    sla_class: str | None = None


@dataclass(slots=True)
class LiveEvaluation:
    """An evaluation from its admission to its end."""

    new: NewEvaluation
    number: int = 1  # of the attempt that runs, or is asked a node for
    placed: Placed | None = None
    placed_at: float | None = None
    sent_at: float = 0.0
    heard_at: float = 0.0  # when its node last said that it has it
    asked_at: float | None = None  # None while it waits to be asked for again
    ask_at: float = 0.0
    refused: PlaceRefused | None = None  # the last answer, where the question is repeated
    num_failures: int = 0
    failures: list[Failure] = field(default_factory=list)
    chain: PrefixChain | None = None
    done: EvaluationDone | None = None

    @property
    def request_id(self) -> bytes:
        """The gateway's id of it."""
        return self.new.request_id

    @property
    def node(self) -> NodeRef | None:
        """Where it runs."""
        return None if self.placed is None else self.placed.decode

    @property
    def deadline(self) -> float | None:
        """When it fails, on the gateway's clock."""
        deadline_s = self.new.asked.deadline_s
        return None if deadline_s is None else self.new.received + deadline_s

    def prefixes(self) -> Blob:
        """Routing prefixes of what need not be computed where it is cached."""
        num_tokens = first_needed(self.new.asked)
        if self.chain is None or num_tokens == 0:
            return Blob()
        return self.chain.extend(self.new.asked.prompt_ids.array[:num_tokens])

    def place(self, identity: Identity, prefixes: Blob, now: float) -> Place:
        """The question for a node."""
        new, asked = self.new, self.new.asked
        names = dict.fromkeys(name for failure in self.failures for name in failure.nodes)
        return Place(
            gateway_id=identity.gateway_id,
            incarnation=identity.incarnation,
            request_id=new.request_id,
            attempt=self.number,
            num_prompt_tokens=len(asked.prompt_ids),
            num_output_tokens=0,
            max_output_tokens=0,
            sla_class=new.sla_class,
            ttft_ms=asked.ttft_ms,
            tpot_ms=None,
            tenant=new.tenant,
            tenant_weight=new.tenant_weight,
            priority=asked.priority,
            prefix_hashes=prefixes,
            avoid=tuple(names)[-MAX_AVOIDED:],
            num_deaths=sum(failure.is_death for failure in self.failures),
            waited_s=max(0.0, now - new.received),
            is_evaluation=True,
        )

    def spec(self, placed: Placed, now: float) -> EvaluationSpec:
        """What its node is told."""
        new, asked = self.new, self.new.asked
        return EvaluationSpec(
            request_id=new.request_id,
            attempt=placed.attempt,
            task=asked.task,
            prompt_ids=asked.prompt_ids,
            pooling=asked.pooling,
            num_top=asked.num_top,
            first_scored=asked.first_scored,
            tenant=new.tenant,
            tenant_weight=new.tenant_weight,
            priority=asked.priority,
            targets=placed.targets,
            deadline_s=None if self.deadline is None else max(0.0, self.deadline - now),
            sequence=placed.sequence,
            waited_s=max(0.0, now - new.received),
        )

    def ended(self, end: End | None, identity: Identity, now: float) -> RequestEnded:
        """The coordinator's record of its end; without `end` it was answered."""
        new, done, placed = self.new, self.done, self.placed
        taken_s = max(0.0, now - new.received)
        is_kept = placed is not None and is_attained(placed.targets, taken_s, None)
        return RequestEnded(
            gateway_id=identity.gateway_id,
            incarnation=identity.incarnation,
            request_id=new.request_id,
            attempt=self.number,
            reason="stop" if end is None else end.reason,
            sla_class=(new.sla_class or "") if placed is None else placed.targets.sla_class,
            sla_attained=(end is None or end.reason != "failed") and is_kept,
            ttft_ms=None if done is None else taken_s * 1e3,
            tpot_ms=None,
            num_output_tokens=0,
            num_prompt_tokens=len(new.asked.prompt_ids),
            num_cached_tokens=0 if done is None else done.num_cached_tokens,
            tenant=new.tenant,
            priority=new.asked.priority,
            targets=None if placed is None else placed.targets,
            timeline=self._timeline(now),
            code=None if end is None else end.code,
            message=None if end is None or end.message is None else end.message[:2000],
            is_evaluation=True,
        )

    def _timeline(self, now: float) -> Timeline:
        received, done = self.new.received, self.done
        started_s = None
        if done is not None:
            started_s = min(self.sent_at + done.started_after_s, now) - received
        return Timeline(
            received_unix_s=self.new.received_unix_s,
            placed_s=None if self.placed_at is None else self.placed_at - received,
            prefill_start_s=started_s,
            first_token_s=None if done is None else now - received,
            finished_s=now - received,
            prefill_node=None if self.node is None else self.node.node_id,
            num_attempts=self.number,
        )


def first_needed(asked: EvaluationAsked) -> int:
    """How many of the first tokens need not be computed where their KV is cached."""
    num_tokens = len(asked.prompt_ids)
    if asked.task == "score":
        return min(asked.first_scored, num_tokens) - 1
    return 0 if asked.task == "embed" and asked.pooling == "mean" else num_tokens - 1


def check_asked(asked: EvaluationAsked, offer: Offer) -> None:
    """Whether this model and these nodes can do it. Raises Rejected."""
    ids, num_tokens = asked.prompt_ids.array, len(asked.prompt_ids)
    if num_tokens == 0:
        raise Rejected("invalid_request", "the input is empty: give at least one token")
    if int(ids.min()) < 0 or int(ids.max()) >= offer.vocab_size:
        text = f"token ids must be from 0 to {offer.vocab_size - 1}: use this model's tokenizer"
        raise Rejected("invalid_request", text)
    if num_tokens > offer.max_model_len:
        raise Rejected(
            "context_too_long",
            f"the input has {num_tokens} tokens and the context is {offer.max_model_len}: shorten "
            "it, or send it in parts",
        )
    if asked.task == "classify" and not offer.num_labels:
        text = f"{offer.model} generates text and has no classification head"
        raise Rejected("invalid_request", text)
    if asked.task == "score":
        _check_score(asked, offer)


def _check_score(asked: EvaluationAsked, offer: Offer) -> None:
    if offer.num_labels:
        text = f"{offer.model} has a classification head and gives no token probabilities"
        raise Rejected("invalid_request", text)
    if not 0 <= asked.num_top <= MAX_TOP:
        text = f"{asked.num_top} alternatives to a token are asked for: from 0 to {MAX_TOP} can be"
        raise Rejected("invalid_request", text)
    if asked.first_scored < 1:
        text = "the first token has no logprob, as nothing comes before it: begin with the second"
        raise Rejected("invalid_request", text)
    num_scored = max(0, len(asked.prompt_ids) - asked.first_scored)
    if num_scored * (1 + asked.num_top) > MAX_LOGPROBS:
        most = MAX_LOGPROBS // (1 + asked.num_top)
        raise Rejected(
            "invalid_request",
            f"{asked.num_top} alternatives to each of {num_scored} tokens are more than an answer "
            f"holds: ask for fewer alternatives, or for {most} tokens at once",
        )


def fits(done: EvaluationDone, asked: EvaluationAsked, num_labels: int) -> bool:
    """Whether an answer has the shape of what was asked."""
    if asked.task != "score":
        num_bytes = len(done.vector)
        wanted = 4 * num_labels if asked.task == "classify" else num_bytes
        return num_bytes > 0 and num_bytes % 4 == 0 and num_bytes == wanted
    num_scored = max(0, len(asked.prompt_ids) - asked.first_scored)
    num_top = len(done.top_ids)
    has_top = num_top == num_scored * asked.num_top
    return (
        has_top and len(done.top_logprobs) == 4 * num_top and len(done.logprobs) == 4 * num_scored
    )


def read_answer(done: EvaluationDone, asked: EvaluationAsked) -> Evaluated:
    """The answer's numbers; it `fits`."""
    num_tokens = len(asked.prompt_ids)
    if asked.task != "score":
        return Evaluated(num_tokens, vector=_floats(done.vector))
    chosen = _floats(done.logprobs).tolist()
    shape = (len(chosen), asked.num_top)
    ids = done.top_ids.array.reshape(shape).tolist()
    values = _floats(done.top_logprobs).reshape(shape).tolist()
    logprobs = tuple(
        TokenLogprobs(logprob=logprob, top=tuple(zip(*top, strict=True)))
        for logprob, *top in zip(chosen, ids, values, strict=True)
    )
    return Evaluated(num_tokens, logprobs=logprobs)


def _floats(blob: Blob) -> npt.NDArray[np.float32]:
    return np.frombuffer(blob.data, "<f4")
