"""What the endpoints are given: streams of the ledger, the tokenizer, what is served now."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from gateway.admission import Offer
from tandem.frames import TokenIds
from tandem.messages.client import Accepted, Done, Output, Refused, Submit
from tandem.messages.common import TokenLogprobs

FromLedger = Accepted | Refused | Output | Done
Conversation = Sequence[Mapping[str, object]]
Task = Literal["embed", "score", "classify"]
Take = Callable[[Output], bool]  # False: it is the reader's after all


class Stream(Protocol):
    """One request in the ledger: `Refused`, or `Accepted`, any number of `Output`, one `Done`."""

    async def next(self) -> FromLedger:
        """The next word; not to be called after `Refused` or `Done`. None is lost where the caller
        is cancelled."""

    def divert(self, take: Take) -> None:
        """From now on, while a reader waits in `next`, tokens go to `take` first."""

    def cancel(self) -> None:
        """Nobody reads on: end it; harmless when it is over, or called twice."""


class Text(Protocol):
    """The tokenizer, in threads of its own; raises `gateway.admission.Rejected`."""

    async def encode(
        self, text: str, *, add_special_tokens: bool, at_most: int | None = None
    ) -> TokenIds:
        """Ids of a text, in which the names of special tokens are plain text; refused where they
        are surely more than `at_most`, or than the context has."""

    async def render(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Mapping[str, object]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: Mapping[str, str | int | float | bool],
    ) -> TokenIds:
        """Ids of a conversation by the model's own chat template."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""

    def token_text(self, token_id: int) -> str:
        """What one token stands for, as logprobs show it."""

    def token_bytes(self, token_id: int) -> bytes:
        """The same in bytes: of a part of a character, that part (gateway/token_pieces.py)."""


@dataclass(frozen=True, slots=True)
class EvaluationAsked:
    """Work of prefill alone. `num_top` alternatives are listed with each scored token.

    Without a class it is the tenant's default, without a deadline it waits for as long as it takes.
    """

    task: Task
    prompt_ids: TokenIds
    pooling: Literal["last", "mean"] = "last"
    num_top: int = 0
    first_scored: int = 1  # index of the first prompt token whose logprob is wanted
    sla_class: str | None = None
    ttft_ms: float | None = None  # a target of its own, for the time to the answer
    priority: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """`vector`: float32, not normalised (embed: hidden size; classify: one per class);
    `logprobs`: of the prompt tokens from `first_scored` on."""

    num_prompt_tokens: int
    vector: npt.NDArray[np.float32] | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


class Evaluate(Protocol):
    """Runs it on a prefill node; raises `gateway.http.errors.ApiError`. Cancelling frees it."""

    async def __call__(self, asked: EvaluationAsked, *, key: str | None) -> Evaluated:
        """`key` names the caller's key."""


class Open(Protocol):
    """Enters a request, whose prompt must be token ids, under the caller's key."""

    def __call__(self, submit: Submit, key: str | None, request_id: bytes | None = None) -> Stream:
        """`request_id` is a new one of the server's own making; None: one is made."""


class TurnAway(Protocol):
    """A look at a call's targets and size under overload, before its prompt is made into tokens."""

    def __call__(self, submit: Submit, key: str | None, num_bytes: int) -> None:
        """Raises `gateway.admission.Rejected`."""


@dataclass(frozen=True, slots=True)
class Services:
    """Handed to the endpoints by the composition."""

    offer: Callable[[], Offer]
    open: Open
    turn_away: TurnAway
    text: Text
    evaluate: Evaluate
    created_unix_s: int
