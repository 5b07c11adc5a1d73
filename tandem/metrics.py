"""Every metric that Tandem exposes, in one table: docs, dashboards, alerts and scrapes follow it.

Names are `tandem_<what>_<base unit>`, `_total` on counters and nowhere else; none has a colon, as
Prometheus keeps those for recording rules. Label values are few and known, or capped
(`MAX_TENANTS`); request ids are never labels.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["coordinator", "gateway", "both"]

MAX_TENANTS = 100
MAX_ROUTES = 64
OTHER = "other"  # of what is beyond a cap

# From 1 ms, dense below a second, where interactive targets lie. The coordinator adds the targets
# of its own classes: only a bound can be read off exactly.
TIME_BUCKETS_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1),
    *(0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0),
    *(20.0, 30.0, 45.0, 60.0, 90.0, 120.0),
)

OUTCOMES = ("met", "ttft", "tpot", "both", "error", "shed")
ROLES = ("prefill", "decode", "mixed", "closed")


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. `unit` is the base unit of its values; `buckets` are a histogram's bounds."""

    name: str
    kind: Kind
    process: Process
    unit: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


def _seconds(
    name: str, labels: tuple[str, ...], text: str, process: Process = "coordinator"
) -> Metric:
    return Metric(name, "histogram", process, "seconds", labels, text, TIME_BUCKETS_S)


def _count(
    name: str, unit: str, labels: tuple[str, ...], text: str, process: Process = "coordinator"
) -> Metric:
    return Metric(name, "counter", process, unit, labels, text)


def _now(
    name: str, unit: str, labels: tuple[str, ...], text: str, process: Process = "coordinator"
) -> Metric:
    return Metric(name, "gauge", process, unit, labels, text)


# --- the deployment, by the coordinator ----------------------------------------------------------

BUILD_INFO = _now(
    "tandem_build_info", "1", ("version", "role"), "Always 1; what runs here.", "both"
)
MODEL_INFO = _now(
    "tandem_model_info", "1", ("model_name",), "Always 1; the model that members serve."
)
NODES = _now("tandem_nodes", "nodes", ("role",), "Nodes that take new work, by role.")
NODES_DRAINING = _now("tandem_nodes_draining", "nodes", (), "Nodes that finish and leave.")
NODES_LOST = _count(
    "tandem_nodes_lost_total",
    "nodes",
    (),
    "Nodes that went down without a goodbye: silent, wedged, or replaced by a newer process.",
)
GATEWAYS = _now("tandem_gateways", "gateways", (), "Gateways that say hello.")
LIVE_REQUESTS = _now(
    "tandem_live_requests", "requests", (), "Requests that are placed on nodes and have not ended."
)
HELD_REQUESTS = _now(
    "tandem_held_requests", "requests", (), "Requests that wait at the coordinator for a node."
)
PLACEMENTS_REFUSED = _count(
    "tandem_placements_refused_total",
    "answers",
    ("reason",),
    "Questions for nodes that were answered no, by error code; a fail-over asks again.",
)
BALANCE_DECISIONS = _count(
    "tandem_balance_decisions_total",
    "decisions",
    ("kind",),
    "Decisions about roles: roles (done), observed (would be), kept, infeasible, and move.",
)
EVENTS = _count(
    "tandem_events_total",
    "events",
    ("kind",),
    "Lines of the coordinator's event log: decision, member, order, request, error.",
)
MESSAGES_DROPPED = _count(
    "tandem_messages_dropped_total", "messages", (), "Messages that were late, unknown or unsound."
)

# --- requests by SLA class, counted once at their end --------------------------------------------

SLA_TARGET = _now(
    "tandem_sla_target_seconds",
    "seconds",
    ("sla_class", "target"),
    "Targets of the class: ttft, tpot.",
)
SLA_OBJECTIVE = _now(
    "tandem_sla_objective_ratio",
    "ratio",
    ("sla_class",),
    "Share of requests that must keep both targets.",
)
SLO_REQUESTS = _count(
    "tandem_slo_requests_total",
    "requests",
    ("sla_class", "outcome"),
    "Ended requests: met; missed by ttft, tpot or both; error; shed (refused for overload).",
)
REQUESTS_ENDED = _count(
    "tandem_requests_ended_total",
    "requests",
    ("sla_class", "reason"),
    "Ended requests by finish reason: stop, length, cancelled, failed.",
)
REQUEST_ERRORS = _count(
    "tandem_request_errors_total", "requests", ("code",), "Failed requests by error code."
)
TTFT = _seconds(
    "tandem_request_ttft_seconds",
    ("sla_class",),
    "From a request's arrival at its gateway to token 0.",
)
TPOT = _seconds(
    "tandem_request_tpot_seconds", ("sla_class",), "Mean time per output token after token 0."
)
MAX_ITL = _seconds(
    "tandem_request_max_itl_seconds",
    ("sla_class",),
    "Longest wait of a request between two deliveries of tokens.",
)
E2E = _seconds("tandem_request_e2e_seconds", ("sla_class",), "From a request's arrival to its end.")
QUEUE = _seconds(
    "tandem_request_queue_seconds",
    ("sla_class",),
    "From arrival to the first prefill step: tokenising, placement, waiting.",
)
PREFILL = _seconds(
    "tandem_request_prefill_seconds", ("sla_class",), "From the first prefill step to token 0."
)
TRANSFER = _seconds(
    "tandem_request_transfer_seconds",
    ("sla_class",),
    "From token 0 to verified KV on the decode node.",
)
DECODE_ADMISSION = _seconds(
    "tandem_request_decode_admission_seconds",
    ("sla_class",),
    "From verified KV to the first decode step.",
)
PROMPT_TOKENS = _count(
    "tandem_prompt_tokens_total", "tokens", ("sla_class",), "Prompt tokens of ended requests."
)
OUTPUT_TOKENS = _count(
    "tandem_output_tokens_total", "tokens", ("sla_class",), "Output tokens of ended requests."
)
CACHED_TOKENS = _count(
    "tandem_cached_tokens_total",
    "tokens",
    ("sla_class",),
    "Prompt tokens of ended requests that a prefix cache had.",
)
TENANT_REQUESTS = _count(
    "tandem_tenant_requests_total",
    "requests",
    ("tenant", "outcome"),
    f"As tandem_slo_requests_total, by tenant; beyond {MAX_TENANTS} tenants: {OTHER}.",
)
TENANT_TOKENS = _count(
    "tandem_tenant_tokens_total",
    "tokens",
    ("tenant", "kind"),
    f"Tokens of ended requests: prompt, output; beyond {MAX_TENANTS} tenants: {OTHER}.",
)

# --- nodes, from their last heartbeats -----------------------------------------------------------

_NODE = ("node", "role")
NODE_UP = _now("tandem_node_up", "1", _NODE, "1 for each member; gone with it.")
NODE_DRAINING = _now("tandem_node_draining", "1", _NODE, "1 while it finishes and leaves.")
NODE_SLOW = _now("tandem_node_slow", "1", _NODE, "1 while its steps take far longer than others'.")
NODE_HEARTBEAT_AGE = _now(
    "tandem_node_heartbeat_age_seconds", "seconds", _NODE, "Since its last heartbeat came."
)
NODE_STEP_AGE = _now(
    "tandem_node_step_age_seconds", "seconds", _NODE, "Since its step loop last came round."
)
NODE_PAGES = _now(
    "tandem_node_pages",
    "pages",
    (*_NODE, "state"),
    "KV pages by state; the eight states sum to the pool.",
)
NODE_PAGES_USED = _now(
    "tandem_node_pages_used_ratio",
    "ratio",
    _NODE,
    "Share of the pool that is neither free nor evictable cache.",
)
NODE_HELD_PAGES = _now(
    "tandem_node_held_pages", "pages", _NODE, "Pages that residents hold, shared ones each time."
)
NODE_HELD_TOKENS = _now(
    "tandem_node_held_tokens", "tokens", _NODE, "Tokens whose KV residents keep in those."
)
NODE_REQUESTS = _now(
    "tandem_node_requests",
    "requests",
    (*_NODE, "stage"),
    "Requests: prefill_waiting, transferring, decode_waiting, decode_running.",
)
NODE_PREFILL_TOKENS_WAITING = _now(
    "tandem_node_prefill_waiting_tokens", "tokens", _NODE, "Prompt tokens not yet computed."
)
NODE_DECODE_TOKENS = _now(
    "tandem_node_decode_context_tokens", "tokens", _NODE, "Contexts of its decode rows together."
)
NODE_OUTPUT_TOKENS = _count(
    "tandem_node_output_tokens_total", "tokens", _NODE, "Tokens that it has emitted."
)
NODE_STEPS = _count("tandem_node_steps_total", "steps", _NODE, "Forward passes.")
NODE_BUSY = _count(
    "tandem_node_busy_seconds_total",
    "seconds",
    _NODE,
    "Time in steps; its rate is busy share.",
)
NODE_PREEMPTIONS = _count(
    "tandem_node_preemptions_total", "preemptions", _NODE, "Requests whose pages were taken."
)
NODE_WASTED_TOKENS = _count(
    "tandem_node_wasted_tokens_total",
    "tokens",
    _NODE,
    "Tokens whose KV a preemption dropped and that were computed again.",
)
NODE_TRANSFERS = _count(
    "tandem_node_transfers_total",
    "transfers",
    (*_NODE, "result"),
    "Hand-offs that it sent: done, failed (refused, broken, withdrawn or too late).",
)
NODE_TRANSFER_BYTES = _count(
    "tandem_node_transfer_bytes_total", "bytes", _NODE, "KV bytes of hand-offs that it sent."
)
NODE_COST_ERROR = _now(
    "tandem_node_cost_model_error_ratio",
    "ratio",
    _NODE,
    "Median of |predicted - measured| / measured over its last steps.",
)

# --- a gateway -----------------------------------------------------------------------------------

HTTP_REQUESTS = _count(
    "tandem_http_requests_total",
    "requests",
    ("route", "method", "status"),
    "HTTP requests answered; a stream counts when it begins.",
    "gateway",
)
HTTP_OPEN_STREAMS = _now(
    "tandem_http_open_streams", "streams", (), "Event streams that are open.", "gateway"
)
HTTP_FIRST_BYTE = _seconds(
    "tandem_http_first_byte_seconds",
    ("route",),
    "From a request's arrival to the first byte of its answer.",
    "gateway",
)
GATEWAY_LIVE = _now(
    "tandem_gateway_live_requests", "requests", (), "Requests in the ledger.", "gateway"
)
GATEWAY_WAITING = _now(
    "tandem_gateway_waiting_requests",
    "requests",
    (),
    "Of those, the ones that have no token yet.",
    "gateway",
)
GATEWAY_PROMPT_TOKENS = _now(
    "tandem_gateway_prompt_tokens", "tokens", (), "Tokens of all live prompts.", "gateway"
)
GATEWAY_TOKENISING = _seconds(
    "tandem_gateway_tokenising_seconds",
    (),
    "What a prompt took to become token ids, the wait for a thread included.",
    "gateway",
)
GATEWAY_OUTPUT_TOKENS = _count(
    "tandem_gateway_output_tokens_total", "tokens", (), "Tokens delivered to clients.", "gateway"
)
GATEWAY_ENDED = _count(
    "tandem_gateway_requests_ended_total",
    "requests",
    ("reason",),
    "Ended requests by finish reason.",
    "gateway",
)
GATEWAY_EVALUATIONS = _count(
    "tandem_gateway_evaluations_total",
    "evaluations",
    ("task", "outcome"),
    "Embeddings, scores and classifications by outcome: ok, cancelled, or the error's code.",
    "gateway",
)
GATEWAY_RESENDS = _count(
    "tandem_gateway_resends_total",
    "streams",
    (),
    "Streams sent again from some token on, or their ends: a client asked, or stayed silent.",
    "gateway",
)
GATEWAY_CUTS = _count(
    "tandem_gateway_cut_clients_total",
    "requests",
    (),
    "Requests ended because their clients were silent or did not read on.",
    "gateway",
)
GATEWAY_REFUSALS = _count(
    "tandem_gateway_refusals_total",
    "requests",
    ("reason",),
    "Requests refused before they entered the ledger, by error code.",
    "gateway",
)
GATEWAY_DROPPED = _count(
    "tandem_gateway_messages_dropped_total",
    "messages",
    (),
    "Messages of nodes and coordinator that were late or unknown.",
    "gateway",
)

# --- the process itself, by prometheus-client ----------------------------------------------------

PROCESS_METRICS = (
    _now("process_virtual_memory_bytes", "bytes", (), "Virtual memory size.", "both"),
    _now("process_resident_memory_bytes", "bytes", (), "Resident memory size.", "both"),
    _now("process_start_time_seconds", "seconds", (), "Start time, unix.", "both"),
    _count("process_cpu_seconds_total", "seconds", (), "CPU time, user and system.", "both"),
    _now("process_open_fds", "descriptors", (), "Open file descriptors.", "both"),
    _now("process_max_fds", "descriptors", (), "Limit on those.", "both"),
)

# All of the above, in the order in which they are written down.
TABLE: tuple[Metric, ...] = (
    *(each for each in tuple(globals().values()) if isinstance(each, Metric)),
    *PROCESS_METRICS,
)
