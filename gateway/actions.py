"""What the gateway's ledger is told beside wire messages, and what it asks of its shell."""

from dataclasses import dataclass, field

import msgspec

from tandem.frames import TokenIds
from tandem.messages.common import LengthPrediction, NodeRef
from tandem.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRequest:
    """A validated, tokenised request. `params` has no None but in seed and logprobs.

    `client` is the routing identity of who submitted it. `received` is on the ledger's clock.
    `delivered` and `num_chars` are what the client already has from another gateway. `prediction`
    is of its whole answer; it travels on, and changes nothing here.
    """

    request_id: bytes
    client: bytes
    label: str
    prompt_ids: TokenIds
    params: SamplingParams
    seed: int
    sla_class: str | None
    ttft_ms: float | None
    tpot_ms: float | None
    priority: int
    deadline_s: float | None
    received: float
    received_unix_s: float
    tenant: str = "default"
    tenant_weight: float = 1.0
    delivered: TokenIds = field(default_factory=TokenIds)
    num_chars: int = 0
    prediction: LengthPrediction | None = None
    choice: int = 0


class ToClient(msgspec.Struct, frozen=True):
    """Send to a client."""

    client: bytes
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class ToCoordinator:
    """Send to the coordinator."""

    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class ToNode:
    """Send to a node."""

    node: NodeRef
    message: msgspec.Struct


@dataclass(frozen=True, slots=True)
class CloseNode:
    """A node is down: hang up, unless a higher epoch of it is linked by now."""

    node_id: str
    epoch: int
    reason: str


Action = ToClient | ToCoordinator | ToNode | CloseNode
