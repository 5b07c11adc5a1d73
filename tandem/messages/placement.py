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
    Int64,
    LengthPrediction,
    Message,
    ModelIdentity,
    Name,
    NodeRef,
    RequestId,
    ShortText,
    SlaTargets,
    Timeline,
    Wire,
)


class TurnedAway(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests of an SLA class (None: the default) that a gateway refused by itself, since its
    start, because their like had just been refused for overload."""

    sla_class: Name | None
    num_requests: Counter


class GatewayHello(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A gateway introduces itself; resent every second as its heartbeat.

    `nodes` have its requests: one that died while there was no coordinator is told by `NodeDown`.
    """

    gateway_id: Name
    incarnation: Counter
    model: ModelIdentity
    num_live_requests: Counter
    is_draining: bool = False
    nodes: Annotated[tuple[NodeRef, ...], msgspec.Meta(max_length=4096)] = ()
    turned_away: Annotated[tuple[TurnedAway, ...], msgspec.Meta(max_length=256)] = ()


class NodeDown(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A node lost its lease or left: attempts that run on this epoch or an older one are over."""

    node_id: Name
    epoch: Counter
    reason: ShortText


class GatewayWelcome(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Answer to every hello: the classes on offer and the state of the pools.

    `max_model_len`, `page_size` and `kv_dtype` are the nodes' (None before the first node).
    `recent_downs` repeats what a lost `NodeDown` said. From `draining_nodes`, and from
    `closed_decodes`, which take no new sequences, requests may move away. `drain`: an operator
    wants this gateway to leave. Of the nodes' `num_pages` KV pages `kv_used_share` are in use.
    """

    coordinator_incarnation: Counter
    sla_classes: tuple[SlaTargets, ...]
    default_class: Name
    num_prefill_nodes: Counter
    num_decode_nodes: Counter
    max_model_len: Counter | None = None
    page_size: Counter | None = None
    kv_dtype: Name | None = None
    draining_nodes: Annotated[tuple[Name, ...], msgspec.Meta(max_length=256)] = ()
    closed_decodes: Annotated[tuple[Name, ...], msgspec.Meta(max_length=256)] = ()
    drain: bool = False
    recent_downs: Annotated[tuple[NodeDown, ...], msgspec.Meta(max_length=256)] = ()
    num_pages: Counter = 0
    kv_used_share: Duration | None = None


class GatewayRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The gateway does not fit this deployment; both values are in the reason."""

    reason: ShortText


class Place(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Ask for nodes; idempotent by (gateway incarnation, request, attempt).

    `prefix_hashes` are routing prefixes (8 bytes each) of the prompt's page hashes. `avoid` are
    nodes that failed earlier attempts, `num_deaths` how many of those their nodes' deaths ended
    (two make a suspect, which runs alone). `move_from` is a draining node that holds the request's
    KV: it prefills from its cache, another one decodes. `waited_s`: since the gateway received the
    request, which counts towards its TTFT. `is_evaluation`: work of prefill alone; the node that
    does it is the answer's `decode`, and nothing of a decode pool is counted.
    """

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
    priority: Int64
    prefix_hashes: Blob
    tenant_weight: Duration = 1.0
    avoid: Annotated[tuple[Name, ...], msgspec.Meta(max_length=16)] = ()
    num_deaths: Counter = 0
    move_from: Name | None = None
    prediction: LengthPrediction | None = None
    waited_s: Duration = 0.0
    is_evaluation: bool = False


class Placed(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Where the attempt runs. `prefill` None: on the decode node. `sequence` is its age."""

    request_id: RequestId
    attempt: Attempt
    prefill: NodeRef | None
    decode: NodeRef
    targets: SlaTargets
    sequence: Counter


class MoveRequest(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The request would be better off on another decode node than the one of this attempt.

    A wish, sent once: the gateway begins a move as for a draining node, or lets it be.
    """

    request_id: RequestId
    attempt: Attempt


class PlaceRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The attempt cannot run, and what to do about it."""

    request_id: RequestId
    attempt: Attempt
    code: ErrorCode
    message: ShortText
    retry_after_s: Duration | None = None
    predicted_ttft_s: Duration | None = None


class RequestEnded(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The terminal state of a request, for accounting; resent until acknowledged.

    `max_itl_ms` is its longest wait between two deliveries of tokens. The TTFT of an evaluation is
    the time to its answer.
    """

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
    num_prompt_tokens: Counter = 0
    num_cached_tokens: Counter = 0
    tenant: Name = "default"
    priority: Int64 = 0
    targets: SlaTargets | None = None
    timeline: Timeline | None = None
    max_itl_ms: Duration | None = None
    code: ErrorCode | None = None
    message: ShortText | None = None
    is_evaluation: bool = False


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
    GatewayWelcome
    | GatewayRefused
    | Placed
    | PlaceRefused
    | MoveRequest
    | RequestEndedAck
    | NodeDown
)
