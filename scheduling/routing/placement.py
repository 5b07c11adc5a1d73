"""What a request asks, what nodes have, and a policy's answer. Pure.

A policy sees immutable candidates and returns a placement or a refusal that says what to do; the
coordinator validates nothing beyond it, so a bad policy can be slow but cannot corrupt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tandem.messages.common import ErrorCode, LengthPrediction, NodeCosts


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of the pools, in tokens; `num_output_tokens` were already delivered.

    patience: how many times the queue limits it may wait behind (infinite: it is never shed).
    avoid: nodes that failed earlier attempts. is_suspect: two nodes died of it, so it runs alone.
    move_from: a node that holds its KV and shall not decode it any longer. Targets are infinite
    where there are none; `waited_s` had passed since the request came in. ttft_share: the part of
    the TTFT that it may be predicted to take. A prediction is a hint. is_evaluation: work of
    prefill alone, which decodes nowhere.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    max_output_tokens: int
    patience: float = 1.0
    avoid: tuple[str, ...] = ()
    is_suspect: bool = False
    move_from: str | None = None
    ttft_s: float = math.inf
    tpot_s: float = math.inf
    ttft_share: float = 1.0
    waited_s: float = 0.0
    prediction: LengthPrediction | None = None
    is_evaluation: bool = False

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens whose KV prefill computes, where nothing is cached."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_total_tokens(self) -> int:
        """Tokens that the decode node's pool holds in the end."""
        return self.num_prompt_tokens + self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as of its last heartbeat plus what was placed on it since.

    num_prefill_tokens: tokens of prompts that wait or run there, of `num_prompts` requests.
    num_sequences: those that decode or will, with `num_decode_tokens` of context together.
    num_cached_pages: the leading pages of this demand that it has. is_isolated: a suspect runs
    there. `num_placed` counts all placements ever; it rotates equal nodes. page_bytes: KV of one
    page. tightest_tpot_s: of the requests that it decodes. `costs` None: none that could be relied
    on were measured. By these, see `estimates.with_times`: step_s, a step without any prefill, and
    queue_s, until a prompt begins that is placed there now.
    """

    node_id: str
    prefill_weight: float
    decode_weight: float
    draining: bool
    num_pages: int
    page_size: int
    max_num_seqs: int
    num_prefill_tokens: int
    num_sequences: int
    num_pages_held: int
    num_placed: int
    num_cached_pages: int = 0
    is_isolated: bool = False
    num_prompts: int = 0
    num_decode_tokens: int = 0
    max_num_batched_tokens: int = 2048
    page_bytes: int = 0
    tightest_tpot_s: float = math.inf
    costs: NodeCosts | None = None
    step_s: float = 0.0
    queue_s: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing computes or waits there."""
        return self.num_prefill_tokens == 0 and self.num_sequences == 0

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def num_new_tokens(self, demand: Demand) -> int:
        """Tokens to compute here; the last one always is, for its logits."""
        return max(1, demand.num_prefill_tokens - self.num_cached_pages * self.page_size)

    def num_new_pages(self, demand: Demand) -> int:
        """Pages that the request needs here beyond those that are cached."""
        return max(1, self.num_pages_for(demand.num_total_tokens) - self.num_cached_pages)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What may wait on one node before requests are shed: prompt tokens, and sequences."""

    num_tokens: int
    num_requests: int


@dataclass(frozen=True, slots=True)
class Placement:
    """`prefill` None: the decode node computes the prompt itself. `why`: in words, for logs.

    An evaluation is on `decode` alone, which is of the prefill pool.
    """

    prefill: str | None
    decode: str
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request cannot be placed, what to do, and after how long to try again, if at all.

    can_wait: it could be placed once others have ended.
    """

    code: ErrorCode
    message: str
    retry_after_s: float | None = None
    predicted_ttft_s: float | None = None
    can_wait: bool = False


class PlacementPolicy(Protocol):
    """Decides where one request runs."""

    def route(self, demand: Demand, candidates: Sequence[Candidate]) -> Placement | Refusal:
        """A placement on the candidates, or why there is none."""
        ...
