"""What a batch policy sees and says: immutable views of one node's requests, and a plan.

Policies decide, the node validates and executes: a bad policy can be slow but never corrupts.
"""

from dataclasses import dataclass
from typing import Protocol

RequestKey = tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class SequenceView:
    """One request on this node. `age` is the coordinator's placement order, lower is older.

    num_tokens: known tokens, prompt and output. num_computed: tokens whose KV is in pages.
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


@dataclass(frozen=True, slots=True)
class NodeView:
    """Everything that a policy may base one step on.

    prefill: prompts that may run now, in the prefill policy's order. waiting: requests whose KV has
    arrived, not yet admitted to decode. running: admitted, one token each per step.
    """

    now: float
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_weight: float
    decode_weight: float
    prefill: tuple[SequenceView, ...]
    waiting: tuple[SequenceView, ...]
    running: tuple[SequenceView, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Admitted requests decode in the same step when listed in `decode`.

    Running requests that are not listed in `decode` are held. `padding_contexts` are dead rows of
    static batching (see `node.runner.StepBatch`). With nothing to do, `wake_at` asks to be planned
    again at that time.
    """

    decode: tuple[RequestKey, ...] = ()
    prefill: tuple[tuple[RequestKey, int], ...] = ()
    admit: tuple[RequestKey, ...] = ()
    padding_contexts: tuple[int, ...] = ()
    wake_at: float | None = None


class BatchPolicy(Protocol):
    """Composes every step of a node over the requests of both its guests."""

    def plan(self, view: NodeView) -> StepPlan:
        """The next step."""
