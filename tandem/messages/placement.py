"""Gateway <-> coordinator: who serves a request, and how it ended. Counts only, never prompts."""

from typing import Annotated

import msgspec

from tandem.frames import Blob
from tandem.messages.common import (
    Attempt,
    Counter,
    Duration,
    ErrorCode,
    FinishReason,
    Message,
    ModelIdentity,
    Name,
    NodeRef,
    RequestId,
    ShortText,
    SlaTargets,
    Wire,
)


class GatewayHello(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A gateway introduces itself; resent every second as its heartbeat."""

    gateway_id: Name
    incarnation: Counter
    model: ModelIdentity
    num_live_requests: Counter


class NodeDown(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A node lost its lease or left: attempts that run on this epoch or an older one are over."""

    node_id: Name
    epoch: Counter
    reason: ShortText


class GatewayWelcome(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Answer to every hello: the classes on offer and the state of the pools.

    `max_model_len` is the nodes' (None before the first node). `recent_downs` repeats what a lost
    `NodeDown` said.
    """

    coordinator_incarnation: Counter
    sla_classes: tuple[SlaTargets, ...]
    default_class: Name
    num_prefill_nodes: Counter
    num_decode_nodes: Counter
    max_model_len: Counter | None = None
    recent_downs: Annotated[tuple[NodeDown, ...], msgspec.Meta(max_length=256)] = ()


class GatewayRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The gateway does not fit this deployment; both values are in the reason."""

    reason: ShortText


class Place(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ask for nodes; idempotent by (gateway incarnation, request, attempt)."""

    gateway_id: Name
    incarnation: Counter
    request_id: RequestId
    attempt: Attempt
    num_prompt_tokens: Counter
    num_output_tokens: Counter
    max_output_tokens: Counter
    sla_class: Name | None
    ttft_ms: Duration | None
    tpot_ms: Duration | None
    tenant: Name
    priority: int
    prefix_hashes: Blob


class Placed(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Where the attempt runs. `prefill` None: on the decode node. `sequence` is its age."""

    request_id: RequestId
    attempt: Attempt
    prefill: NodeRef | None
    decode: NodeRef
    targets: SlaTargets
    sequence: Counter


class PlaceRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The attempt cannot run, and what to do about it."""

    request_id: RequestId
    attempt: Attempt
    code: ErrorCode
    message: ShortText
    retry_after_s: Duration | None = None


class RequestEnded(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The terminal state of a request, for accounting; resent until acknowledged."""

    gateway_id: Name
    incarnation: Counter
    request_id: RequestId
    attempt: Attempt
    reason: FinishReason
    sla_class: Name
    sla_attained: bool
    ttft_ms: Duration | None
    tpot_ms: Duration | None
    num_output_tokens: Counter


class RequestEndedAck(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The coordinator counted it."""

    request_id: RequestId


class ClassCounts(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests of one SLA class that ended since the coordinator started."""

    targets: SlaTargets
    num_ended: Counter
    num_attained: Counter
    num_failed: Counter


FromGateway = GatewayHello | Place | RequestEnded
ToGatewayFromCoordinator = (
    GatewayWelcome | GatewayRefused | Placed | PlaceRefused | RequestEndedAck | NodeDown
)
