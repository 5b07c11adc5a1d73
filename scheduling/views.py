"""What policies see and say: immutable views of one node's requests, and a plan for a step.

Policies decide, the node validates and executes: a bad policy can be slow but never corrupts. The
same objects run on a node and in the simulator. What is made for every request in every step is a
struct: making it takes 1 us, a frozen dataclass of as many fields 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from tandem.messages.common import LengthPrediction, NodeCosts

RequestKey = tuple[bytes, int]
# auto: whichever of the three the node finds cheapest for this request now.
PreemptMode = Literal["auto", "recompute", "swap", "migrate"]


class SequenceView(msgspec.Struct, frozen=True):
    """One request on this node. `age` is the coordinator's placement order, lower is older.

    num_tokens: known tokens, prompt and output. num_computed: tokens whose KV is in pages.
    num_pages: pages that it holds, num_promised: further ones set aside for its growth. Times are
    on the node's clock; `waited_s` had passed before `arrived_at`. Targets are infinite where
    there are none. A prediction is a hint: it may be absent, and it may be wrong.

    is_begun: some of its prompt was computed here already. num_cached: tokens whose KV was found in
    pages and not computed. prefix_id: equal for requests whose first pages are equal; None where it
    is shorter than these.
    """

    key: RequestKey
    age: int
    arrived_at: float
    priority: int
    tenant: str
    num_prompt_tokens: int
    num_tokens: int
    num_computed: int
    max_total_tokens: int
    num_pages: int = 0
    num_promised: int = 0
    waited_s: float = 0.0
    ttft_s: float = math.inf
    tpot_s: float = math.inf
    tenant_weight: float = 1.0
    last_token_at: float | None = None
    num_preemptions: int = 0
    prediction: LengthPrediction | None = None
    is_begun: bool = False
    num_cached: int = 0
    prefix_id: bytes | None = None

    @property
    def num_output_tokens(self) -> int:
        """Output tokens known so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Known tokens whose KV is still to be computed."""
        return self.num_tokens - self.num_computed

    @property
    def received_at(self) -> float:
        """When its client's request came in, on this node's clock."""
        return self.arrived_at - self.waited_s

    @property
    def first_token_due_at(self) -> float:
        """When its first token breaks the promise."""
        return self.received_at + self.ttft_s


@dataclass(frozen=True, slots=True)
class NodeView:
    """Everything that a batch policy may base one step on.

    prefill: prompts that may run now, in the prefill policy's order. waiting: requests whose KV has
    arrived, not yet admitted to decode. running: admitted, one token each per step. swapped:
    preempted to host memory; admitted like waiting ones, for the pages that they had.

    Pages: `num_free_pages` may be claimed by anybody now (cached ones included, promised ones not).
    Running requests need them to grow beyond what they are promised; where they run out the node
    holds rows back, so a policy that lets that happen should preempt, and keep
    `num_watermark_pages` free when it admits.
    """

    now: float
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_weight: float
    decode_weight: float
    prefill: tuple[SequenceView, ...]
    waiting: tuple[SequenceView, ...]
    running: tuple[SequenceView, ...]
    swapped: tuple[SequenceView, ...] = ()
    page_size: int = 16
    num_pages: int = 2**31
    num_free_pages: int = 2**31
    num_watermark_pages: int = 0


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Admitted requests decode in the same step when listed in `decode`.

    Running requests that are not listed in `decode` are held. `preempt` takes pages from running
    requests before anything is admitted. `padding_contexts` are dead rows of static batching (see
    `node.runner.StepBatch`). With nothing to do, `wake_at` asks to be planned again at that time.
    """

    decode: tuple[RequestKey, ...] = ()
    prefill: tuple[tuple[RequestKey, int], ...] = ()
    admit: tuple[RequestKey, ...] = ()
    preempt: tuple[tuple[RequestKey, PreemptMode], ...] = ()
    padding_contexts: tuple[int, ...] = ()
    wake_at: float | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """What policies may ask besides the view. `costs` are this node's, see `scheduling.costs`."""

    costs: NodeCosts


class BatchPolicy(Protocol):
    """Composes every step of a node over the requests of both its guests."""

    def plan(self, view: NodeView, services: Services) -> StepPlan:
        """The next step."""


class PrefillPolicy(Protocol):
    """Orders the prompts of a node that wait for pages, and those that have them."""

    def order(
        self, sequences: Sequence[SequenceView], now: float, services: Services
    ) -> list[RequestKey]:
        """All of them, the next to run first; those left out wait until they are asked again."""
