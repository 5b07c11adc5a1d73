"""What operators see of a deployment: the dashboard's snapshot, time series and request records.

The coordinator's HTTP side sends these as JSON; `tandem top`, `tandem explain` and the dashboard
read them. Times are unix seconds or durations in seconds unless the name says otherwise. Rates and
busy shares are over the last ten seconds. Shares are between 0 and 1; None where nothing is known.
"""

import msgspec

from tandem.messages.common import ErrorCode, FinishReason, NodeCosts, Timeline
from tandem.messages.membership import PageCounts, RoleWeights

SNAPSHOT_VERSION = 1
WINDOWS_S = {"5m": 300, "1h": 3600, "3d": 259_200}


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of values shown to operators; fields may be added, readers ignore what they lack."""


class Quantiles(View, frozen=True, kw_only=True):
    """Of some duration, in milliseconds."""

    p50: float
    p95: float
    p99: float


class WindowVerdict(View, frozen=True, kw_only=True):
    """A class over one window. `burn_rate`: times the pace at which the error budget of the window
    is spent exactly; shed requests count as missed."""

    num_ended: int
    num_attained: int
    num_failed: int
    num_shed: int
    attainment: float | None
    burn_rate: float | None


class StageTimes(View, frozen=True, kw_only=True):
    """Where TTFT and the wait for the first decode step go, over five minutes.

    queue: received to prefill start; prefill: to token 0; transfer: token 0 to the KV's arrival;
    decode_admission: to the start of decode.
    """

    queue: Quantiles | None
    prefill: Quantiles | None
    transfer: Quantiles | None
    decode_admission: Quantiles | None
    ttft: Quantiles | None
    tpot: Quantiles | None
    max_itl: Quantiles | None


class ClassVerdict(View, frozen=True, kw_only=True):
    """One SLA class. `windows` by the names of `WINDOWS_S`.

    `verdict`: "ok", "at risk" (it burns its budget too fast), "violated" (below its attainment over
    an hour), "no traffic". `limiting_stage`: queue, prefill, transfer, decode admission or decode;
    `explanation` says it in words. `budget_left` is of three days, below 0 where it is overspent.
    """

    sla_class: str
    ttft_ms: float
    tpot_ms: float
    attainment: float
    verdict: str
    explanation: str
    limiting_stage: str | None
    budget_left: float | None
    windows: dict[str, WindowVerdict]
    stages: StageTimes


class NodeView(View, frozen=True, kw_only=True):
    """One node. `role`: prefill, decode, mixed or closed; `state`: ok, slow, draining or down.

    `useful_share` of the KV memory in use holds tokens; the rest of it is `last_page_waste`, the
    unfilled ends of sequences' last pages, both as shares of the pages that residents hold.
    """

    node_id: str
    role: str
    state: str
    weights: RoleWeights
    device: str
    epoch: int
    heartbeat_age_s: float
    num_pages: int
    pages: PageCounts | None
    useful_share: float | None
    last_page_waste: float | None
    busy_share: float | None
    num_prefill_waiting: int
    num_prefill_tokens_waiting: int
    num_decode_running: int
    num_decode_waiting: int
    num_transfers: int
    tokens_per_s: float
    transfer_bytes_per_s: float
    num_transfers_done: int
    num_transfers_failed: int
    num_preempted: int
    costs: NodeCosts | None


class GatewayView(View, frozen=True, kw_only=True):
    """One gateway."""

    gateway_id: str
    state: str
    num_live_requests: int
    heartbeat_age_s: float


class LiveView(View, frozen=True, kw_only=True):
    """A request that is placed, or waits for a node (`decode_node` None)."""

    request_id: str
    gateway_id: str
    tenant: str
    sla_class: str
    age_s: float
    attempt: int
    num_prompt_tokens: int
    prefill_node: str | None
    decode_node: str | None


class Event(View, frozen=True, kw_only=True):
    """A line of the log: `kind` is decision, member, order, request or error."""

    number: int
    unix_s: float
    kind: str
    text: str


class Rates(View, frozen=True, kw_only=True):
    """Per second. `goodput` counts requests that kept their SLA, `shed` those refused early."""

    requests: float
    goodput: float
    output_tokens: float
    input_tokens: float
    shed: float
    failed: float


class Balance(View, frozen=True, kw_only=True):
    """P:D now, and what the balancer thinks of it."""

    mode: str
    num_prefill: int
    num_decode: int
    num_mixed: int
    explanation: str
    cooldown_s: float | None


class Snapshot(View, frozen=True, kw_only=True):
    """Everything at one instant; sent each second. `events` are those since the last one sent."""

    version: int
    unix_s: float
    coordinator_incarnation: int
    uptime_s: float
    model: str | None
    max_model_len: int | None
    classes: tuple[ClassVerdict, ...]
    balance: Balance
    rates: Rates
    nodes: tuple[NodeView, ...]
    gateways: tuple[GatewayView, ...]
    live: tuple[LiveView, ...]
    num_live: int
    num_queued: int
    events: tuple[Event, ...]


class Series(View, frozen=True, kw_only=True):
    """Samples of a window in columns: `values[name][i]` was measured at `unix_s[i]`.

    Names: requests_per_s, goodput_per_s, shed_per_s, failed_per_s, output_tokens_per_s,
    ttft_p50_ms, ttft_p99_ms, tpot_p50_ms, tpot_p99_ms, max_itl_p99_ms, queue_p50_ms,
    prefill_p50_ms, transfer_p50_ms, decode_admission_p50_ms, num_prefill, num_decode, num_mixed,
    busy_prefill, busy_decode, kv_used_share, transfer_bytes_per_s, num_live, num_queued, and
    attainment:CLASS. `decisions` are the events of kind "decision" in the window.
    """

    step_s: float
    unix_s: tuple[float, ...]
    values: dict[str, tuple[float | None, ...]]
    decisions: tuple[Event, ...]


class Step(View, frozen=True, kw_only=True):
    """A decision about one request, why, and how long after it was received."""

    after_s: float
    text: str


class RequestRecord(View, frozen=True, kw_only=True):
    """One ended or live request, for the drill-down and `tandem explain`; no text, no tokens."""

    request_id: str
    gateway_id: str
    tenant: str
    sla_class: str
    ttft_target_ms: float
    tpot_target_ms: float
    priority: int
    received_unix_s: float
    reason: FinishReason | None
    code: ErrorCode | None
    message: str | None
    sla_attained: bool | None
    ttft_ms: float | None
    tpot_ms: float | None
    max_itl_ms: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    timeline: Timeline | None
    steps: tuple[Step, ...]
