"""Gateway <-> node: work of prefill alone, whose answer is numbers and no tokens.

The command is resent until the answer is there; while it is not, the node says that it has it. The
answer is kept until the gateway says that it is over, which is resent until that was heard.
"""

from typing import Annotated, Literal

import msgspec

from tandem.frames import Blob, TokenIds
from tandem.messages.common import (
    Attempt,
    Counter,
    Duration,
    ErrorCode,
    Int64,
    Message,
    Name,
    RequestId,
    ShortText,
    SlaTargets,
    Wire,
)

EvaluationTask = Literal["embed", "score", "classify"]
Pooling = Literal["last", "mean"]
MAX_TOP = 20
# An answer travels in one message: a logprob takes 4 bytes, an alternative 8, of its 8 MiB.
MAX_LOGPROBS = 700_000


class EvaluationSpec(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attempt at an evaluation.

    embed: the final hidden state, of the last token or the mean over all. score: the logprob of
    every prompt token from index `first_scored` (at least 1) on, and `num_top` alternatives to
    each. classify: what the classification head gives for the last token. The other fields are
    those of `RequestSpec`.
    """

    request_id: RequestId
    attempt: Attempt
    task: EvaluationTask
    prompt_ids: TokenIds
    tenant: Name
    priority: Int64
    targets: SlaTargets
    deadline_s: Duration | None
    sequence: Counter
    pooling: Pooling = "last"
    num_top: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP)] = 0
    first_scored: Counter = 1
    waited_s: Duration = 0.0
    tenant_weight: Duration = 1.0

    @property
    def num_scored(self) -> int:
        """Tokens whose logprob is wanted."""
        return max(0, len(self.prompt_ids) - self.first_scored) if self.task == "score" else 0


class EvaluatePrompt(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Compute this, in pages of the node that are free again when it is done."""

    spec: EvaluationSpec


class EvaluationTaken(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The evaluation waits or runs here."""

    request_id: RequestId
    attempt: Attempt


class EvaluationDone(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The answer, or with `code` why there is none.

    float32 and little-endian: `vector`, `logprobs` [scored], `top_logprobs` [scored, num_top],
    best first, of the tokens in `top_ids`. Times are since the command arrived.
    """

    request_id: RequestId
    attempt: Attempt
    vector: Blob
    logprobs: Blob
    top_ids: TokenIds
    top_logprobs: Blob
    num_cached_tokens: Counter = 0
    started_after_s: Duration = 0.0
    ended_after_s: Duration = 0.0
    code: ErrorCode | None = None
    message: ShortText | None = None


class EvaluationOver(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The gateway has the answer of this attempt, or wants it and earlier ones no more."""

    request_id: RequestId
    attempt: Attempt


class EvaluationForgotten(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The node has nothing of the attempt any more."""

    request_id: RequestId
    attempt: Attempt


EvaluationCommand = EvaluatePrompt | EvaluationOver
EvaluationAnswer = EvaluationTaken | EvaluationDone | EvaluationForgotten
