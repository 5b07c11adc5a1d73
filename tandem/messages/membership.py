"""Node <-> coordinator, and the operator's questions: membership, heartbeats, status, drain."""

from typing import Annotated

import msgspec

from tandem.frames import Blob
from tandem.layout import KVLayout
from tandem.messages.common import (
    Address,
    Counter,
    Duration,
    Message,
    ModelIdentity,
    Name,
    NodeCosts,
    ShortText,
    Wire,
)
from tandem.messages.placement import ClassCounts, NodeDown


class RoleWeights(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of a node's step budget; zero closes a role."""

    prefill: Duration
    decode: Duration


class RoleOrder(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weights that a node shall have; a node obeys the highest (incarnation, number)."""

    coordinator_incarnation: Counter
    number: Counter
    weights: RoleWeights


class NodeHello(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A node asks to be admitted; resent until answered."""

    node_id: Name
    incarnation: Counter
    control_address: Address
    weights: RoleWeights
    model: ModelIdentity
    layout: KVLayout
    num_pages: Counter
    max_num_seqs: Counter
    max_num_batched_tokens: Counter
    device: Name


class NodeWelcome(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Admission: the epoch that all of the node's messages carry from now on."""

    coordinator_incarnation: Counter
    epoch: Counter
    lease_s: Duration
    heartbeat_s: Duration


class NodeRefused(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The node does not fit this deployment; both values are in the reason."""

    reason: ShortText


class PageCounts(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pages by state; the eight sum to the pool."""

    free: Counter
    granted: Counter
    filling: Counter
    ready: Counter
    active: Counter
    cached: Counter
    draining: Counter
    quarantined: Counter


class NodeLoad(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a node has to do, as of its last step.

    `num_decode_tokens`: contexts of its decode rows together. Since its start: `num_preempted`
    preemptions, `num_wasted_tokens` whose KV was dropped and computed again, `busy_s` in steps,
    `num_transfers_done` and `_failed` hand-offs sent and the bytes of those, `num_prompt_tokens` of
    prompts computed and `num_cached_tokens` of prompts found in its cache. Residents hold
    `num_held_pages` pages, in which they keep the KV of `num_held_tokens` tokens.
    """

    num_steps: Counter
    step_age_s: Duration
    num_prefill_waiting: Counter
    num_prefill_tokens_waiting: Counter
    num_decode_running: Counter
    num_decode_waiting: Counter
    num_transfers: Counter
    num_requests: Counter
    num_tokens_out: Counter
    pages: PageCounts
    has_work: bool = False
    predicted_step_s: Duration = 0.0
    num_decode_tokens: Counter = 0
    num_preempted: Counter = 0
    num_wasted_tokens: Counter = 0
    busy_s: Duration = 0.0
    costs: NodeCosts | None = None
    num_held_tokens: Counter = 0
    num_held_pages: Counter = 0
    num_transfers_done: Counter = 0
    num_transfers_failed: Counter = 0
    transfer_bytes: Counter = 0
    num_prompt_tokens: Counter = 0
    num_cached_tokens: Counter = 0


class LinkReport(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node's way to the pages of another: the transport that it chose and its speed when it was
    opened, in words with what else was tried. `transport` None: there is none, and why."""

    node_id: Name
    transport: Name | None
    bytes_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    explanation: Annotated[str, msgspec.Meta(max_length=200)]


class CacheDelta(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What entered and left a node's prefix cache: routing prefixes of page hashes, 8 bytes each.

    Delta `number` follows `number - 1`; a snapshot follows nothing and replaces everything.
    """

    number: Counter
    is_snapshot: bool
    added: Blob
    removed: Blob


class Heartbeat(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A node lives, and whether it makes progress; `weights` are in force there.

    `links` are told when they change, and now and then; None: as before.
    """

    node_id: Name
    incarnation: Counter
    epoch: Counter
    sequence: Counter
    draining: bool
    load: NodeLoad
    cache: CacheDelta | None = None
    weights: RoleWeights | None = None
    links: Annotated[tuple[LinkReport, ...], msgspec.Meta(max_length=64)] | None = None


class HeartbeatAck(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Renews the node's lease, counted from when that heartbeat was sent.

    `wants_snapshot`: a cache delta is missing here. `drain`: an operator wants the node to leave.
    """

    epoch: Counter
    sequence: Counter
    wants_snapshot: bool = False
    drain: bool = False
    roles: RoleOrder | None = None


class Goodbye(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A drained node leaves."""

    node_id: Name
    incarnation: Counter
    epoch: Counter


class Rejoin(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The coordinator does not know this node or epoch: say hello again."""

    reason: ShortText


class StatusQuery(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """An operator asks for the state of everything; for what comes after these names, in order."""

    after_node: Name | None = None
    after_gateway: Name | None = None


class DrainMember(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """An operator wants a node or gateway to finish what it has and leave; `force`: also the last
    node of a role."""

    name: Name
    force: bool = False


class SetWeights(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """An operator gives a node other roles, and keeps the balancer from changing them for a while;
    `force`: also where only a slow node, or one that turns to it, is left for a role."""

    name: Name
    weights: RoleWeights
    force: bool = False


class WeightsAnswer(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Whether the node will have the weights, or why not."""

    accepted: bool
    message: ShortText


class Decision(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that the coordinator decided by itself, in words, and how long ago."""

    age_s: Duration
    kind: Name
    message: ShortText


class DrainAnswer(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Whether the member will drain, or why not."""

    accepted: bool
    message: ShortText


class NodeStatus(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node as the coordinator sees it; of its `num_links` links the few that are worst."""

    node_id: Name
    epoch: Counter
    weights: RoleWeights
    control_address: Address
    device: Name
    num_pages: Counter
    heartbeat_age_s: Duration
    draining: bool
    load: NodeLoad | None
    is_slow: bool = False
    num_cached_prefixes: Counter = 0
    links: tuple[LinkReport, ...] = ()
    num_links: Counter = 0


class GatewayStatus(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway as the coordinator sees it."""

    gateway_id: Name
    num_live_requests: Counter
    heartbeat_age_s: Duration
    draining: bool = False


class ClusterStatus(Message, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The state of everything, members in the order of their names.

    `has_more`: a message may not be longer; ask again after the last names. `downs` are the nodes
    that went down lately, `num_shed` counts placements that were refused for overload. `num_queued`
    wait at the coordinator for a node; `decisions` are the last ones, the latest first.
    """

    coordinator_incarnation: Counter
    uptime_s: Duration
    model: ModelIdentity | None
    nodes: tuple[NodeStatus, ...]
    gateways: tuple[GatewayStatus, ...]
    classes: tuple[ClassCounts, ...]
    num_live_requests: Counter
    num_dropped_messages: Counter
    num_shed: Counter = 0
    downs: tuple[NodeDown, ...] = ()
    has_more: bool = False
    num_queued: Counter = 0
    decisions: Annotated[tuple[Decision, ...], msgspec.Meta(max_length=64)] = ()


FromOperator = StatusQuery | DrainMember | SetWeights
FromNode = NodeHello | Heartbeat | Goodbye
ToNode = NodeWelcome | NodeRefused | HeartbeatAck | Rejoin
