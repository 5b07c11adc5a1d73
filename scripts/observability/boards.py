"""The three boards: what is promised and how requests flow, every node, hand-offs."""

from scripts.observability.panels import Json, Panel, Query, Row, Variable, board
from scripts.observability.queries import (
    buckets,
    gauge,
    increase,
    mean,
    quantile,
    rate,
    selector,
    total,
)
from scripts.observability.rules import BUDGET, missed
from tandem import metrics as m

CLASS, NODE = "$sla_class", "$node"
GOOD_BAD = ((None, "red"), (0.9, "orange"), (0.99, "green"))
BURN = ((None, "green"), (1.0, "orange"), (6.0, "red"))
FULL = ((None, "green"), (0.8, "orange"), (0.95, "red"))
ANY = ((None, "green"), (1.0, "red"))
QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
CLASSES = Variable("sla_class", f"label_values({m.SLO_REQUESTS.name}, sla_class)", "SLA class")
NODES = Variable("node", f"label_values({m.NODE_UP.name}, node)", "Node")


def _recorded(name: str) -> str:
    return f'{name}{{sla_class=~"{CLASS}"}}'


def _quantiles(title: str, metric: m.Metric, text: str, target: str = "") -> Panel:
    lines = [Query(quantile(q, metric, sla_class=CLASS), name) for q, name in QUANTILES]
    if target:
        of_class = selector(m.SLA_TARGET, sla_class=CLASS, target=target)
        lines.append(Query(of_class, "target {{sla_class}}"))
    return Panel(title, tuple(lines), "s", text)


def overview() -> Json:
    """Promise first, then the way of a request."""
    rows = (_promise(), _arrival(), _first_token(), _stages(), _decode(), _balance())
    text = "What Tandem promises, whether it holds, and where a request's time goes."
    return board("tandem-overview", "Tandem / Overview", text, rows, (CLASSES,))


def _promise() -> Row:
    hour = _recorded(missed("1h"))
    left = f"1 - {_recorded(missed('3d'))} / {_recorded(BUDGET)}"
    met = rate(m.SLO_REQUESTS, "sla_class", sla_class=CLASS, outcome="met")
    shed = rate(m.SLO_REQUESTS, sla_class=CLASS, outcome="shed")
    return Row(
        "What is promised",
        (
            Panel(
                "Attainment, 1 h",
                (Query(f"1 - {hour}", "{{sla_class}}"),),
                "percentunit",
                "Share of ended requests that kept TTFT and TPOT; shed and failed ones missed.",
                "stat",
                steps=GOOD_BAD,
            ),
            Panel(
                "Burn rate, 1 h",
                (Query(f"{hour} / {_recorded(BUDGET)}", "{{sla_class}}"),),
                "none",
                "Times the pace at which the error budget is spent exactly; above 14.4 pages.",
                "stat",
                steps=BURN,
            ),
            Panel(
                "Budget left, 3 d",
                (Query(left, "{{sla_class}}"),),
                "percentunit",
                "Below 0 it is overspent.",
                "stat",
                steps=((None, "red"), (0.0, "orange"), (0.25, "green")),
            ),
            Panel(
                "Goodput",
                (Query(met, "{{sla_class}}"),),
                "reqps",
                "Requests per second that kept their SLA.",
                "stat",
            ),
            Panel("Shed", (Query(shed, "shed"),), "reqps", "Refused for overload.", "stat"),
        ),
    )


def _arrival() -> Row:
    http = rate(m.HTTP_REQUESTS, "status")
    ends = rate(m.SLO_REQUESTS, "outcome", sla_class=CLASS)
    return Row(
        "Gateways",
        (
            Panel("HTTP by status", (Query(http, "{{status}}"),), "reqps", "Of all gateways."),
            Panel(
                "Requests by outcome",
                (Query(ends, "{{outcome}}"),),
                "reqps",
                "As they end; the gap between all and met is the budget that goes.",
                is_stacked=True,
            ),
            Panel(
                "Open and waiting",
                (
                    Query(total(m.HTTP_OPEN_STREAMS), "open streams"),
                    Query(total(m.GATEWAY_LIVE), "live"),
                    Query(total(m.GATEWAY_WAITING), "without a token"),
                    Query(total(m.HELD_REQUESTS), "held by the coordinator"),
                ),
                "short",
                "Requests without a token that grow are the first sign of overload.",
            ),
            Panel(
                "Refused early",
                (
                    Query(rate(m.GATEWAY_REFUSALS, "reason"), "gateway: {{reason}}"),
                    Query(rate(m.PLACEMENTS_REFUSED, "reason"), "coordinator: {{reason}}"),
                ),
                "reqps",
                "Before any work was done.",
            ),
        ),
    )


def _first_token() -> Row:
    parts = (
        (m.QUEUE, "queue"),
        (m.PREFILL, "prefill"),
        (m.TRANSFER, "transfer"),
        (m.DECODE_ADMISSION, "decode admission"),
    )
    stages = tuple(Query(mean(metric, sla_class=CLASS), name) for metric, name in parts)
    return Row(
        "First token",
        (
            _quantiles("TTFT", m.TTFT, "With the target of each class.", "ttft"),
            Panel(
                "Where it goes (means)",
                stages,
                "s",
                "Queue and prefill make TTFT; transfer and admission delay the second token.",
                is_stacked=True,
            ),
            Panel(
                "First byte over HTTP",
                tuple(Query(quantile(q, m.HTTP_FIRST_BYTE), name) for q, name in QUANTILES),
                "s",
                "At the gateways; minus TTFT it is the gateway's own.",
            ),
        ),
    )


def _stages() -> Row:
    return Row(
        "Stages",
        (
            _quantiles("Queue", m.QUEUE, "From arrival to the first prefill step."),
            _quantiles("Prefill", m.PREFILL, "From the first prefill step to token 0."),
            _quantiles("Transfer", m.TRANSFER, "From token 0 to verified KV."),
            _quantiles("Decode admission", m.DECODE_ADMISSION, "From KV to a turn to decode."),
        ),
    )


def _decode() -> Row:
    tokens = (
        Query(rate(m.OUTPUT_TOKENS, sla_class=CLASS), "output"),
        Query(rate(m.PROMPT_TOKENS, sla_class=CLASS), "prompt"),
        Query(rate(m.CACHED_TOKENS, sla_class=CLASS), "of these cached"),
    )
    return Row(
        "Decode",
        (
            _quantiles("TPOT", m.TPOT, "Mean per request, with the targets.", "tpot"),
            Panel(
                "Longest gap of a request",
                (Query(buckets(m.MAX_ITL, sla_class=CLASS), "{{le}}"),),
                "s",
                "What a reader feels as a stall.",
                "heatmap",
            ),
            Panel("Tokens", tokens, "short", "Per second, of requests as they end."),
        ),
    )


def _balance() -> Row:
    busy = rate(m.NODE_BUSY, "role") + " / " + f"count by (role) ({gauge(m.NODE_UP)})"
    return Row(
        "Balance",
        (
            Panel(
                "Nodes by role",
                (Query(total(m.NODES, "role"), "{{role}}"),),
                "short",
                "That take new work.",
                is_stacked=True,
            ),
            Panel("Busy", (Query(busy, "{{role}}"),), "percentunit", "Share of time in steps."),
            Panel(
                "KV pages in use",
                (Query(gauge(m.NODE_PAGES_USED), "{{node}}"),),
                "percentunit",
                "Neither free nor evictable.",
                steps=FULL,
            ),
            Panel(
                "Decisions",
                (
                    Query(increase(m.BALANCE_DECISIONS, "kind", window="5m"), "{{kind}}"),
                    Query(increase(m.NODES_LOST, window="5m"), "nodes lost"),
                ),
                "short",
                "In five minutes.",
            ),
        ),
    )


def nodes() -> Json:
    """Every node."""
    of = {"node": NODE}
    text = "What each node does, holds and how well it is predicted."
    work = Row(
        "Work",
        (
            Panel(
                "Requests by stage",
                (Query(total(m.NODE_REQUESTS, "stage", **of), "{{stage}}"),),
                "short",
                "Prompts and sequences on these nodes.",
                is_stacked=True,
            ),
            Panel(
                "Busy",
                (Query(rate(m.NODE_BUSY, "node", **of), "{{node}}"),),
                "percentunit",
                "Share of time in steps.",
            ),
            Panel(
                "Tokens out",
                (Query(rate(m.NODE_OUTPUT_TOKENS, "node", **of), "{{node}}"),),
                "short",
                "Per second.",
            ),
            Panel(
                "Prompt tokens waiting",
                (Query(gauge(m.NODE_PREFILL_TOKENS_WAITING, **of), "{{node}}"),),
                "short",
                "Not yet computed.",
            ),
        ),
    )
    return board(
        "tandem-nodes", "Tandem / Nodes", text, (work, _memory(), _health(), _speed()), (NODES,)
    )


def _memory() -> Row:
    of = {"node": NODE}
    held, pages = gauge(m.NODE_HELD_TOKENS, **of), gauge(m.NODE_HELD_PAGES, **of)
    return Row(
        "KV memory",
        (
            Panel(
                "Pages by state",
                (Query(total(m.NODE_PAGES, "state", **of), "{{state}}"),),
                "short",
                "The eight states sum to the pools.",
                is_stacked=True,
            ),
            Panel(
                "In use",
                (Query(gauge(m.NODE_PAGES_USED, **of), "{{node}}"),),
                "percentunit",
                "Neither free nor evictable.",
                steps=FULL,
            ),
            Panel(
                "Tokens per held page",
                (Query(f"{held} / {pages}", "{{node}}"),),
                "short",
                "Against the page size: the rest is unfilled ends, or prompts not yet computed.",
            ),
            Panel(
                "Preemption",
                (
                    Query(rate(m.NODE_PREEMPTIONS, "node", **of), "{{node}} preempted"),
                    Query(rate(m.NODE_WASTED_TOKENS, "node", **of), "{{node}} tokens wasted"),
                ),
                "short",
                "Per second.",
            ),
        ),
    )


def _health() -> Row:
    of = {"node": NODE}
    return Row(
        "Health",
        (
            Panel(
                "Heartbeat age",
                (Query(gauge(m.NODE_HEARTBEAT_AGE, **of), "{{node}}"),),
                "s",
                "Down after 3 s.",
                steps=((None, "green"), (3.0, "red")),
            ),
            Panel(
                "Step age",
                (Query(gauge(m.NODE_STEP_AGE, **of), "{{node}}"),),
                "s",
                "A loop that stands still shows here.",
            ),
            Panel(
                "Slow or draining",
                (
                    Query(gauge(m.NODE_SLOW, **of), "{{node}} slow"),
                    Query(gauge(m.NODE_DRAINING, **of), "{{node}} draining"),
                ),
                "short",
                "1 where it is.",
            ),
        ),
    )


def _speed() -> Row:
    of = {"node": NODE}
    return Row(
        "Speed",
        (
            Panel(
                "Steps",
                (Query(rate(m.NODE_STEPS, "node", **of), "{{node}}"),),
                "ops",
                "Forward passes per second.",
            ),
            Panel(
                "Decode context",
                (Query(gauge(m.NODE_DECODE_TOKENS, **of), "{{node}}"),),
                "short",
                "Tokens of all decode rows together.",
            ),
            Panel(
                "Error of the cost model",
                (Query(gauge(m.NODE_COST_ERROR, **of), "{{node}}"),),
                "percentunit",
                "Admission, routing and balance rest on it; above a half they guess.",
            ),
        ),
    )


def transfers() -> Json:
    """Hand-offs between nodes."""
    of = {"node": NODE}
    failed = rate(m.NODE_TRANSFERS, "node", result="failed", **of)
    share = f"{failed} / ({rate(m.NODE_TRANSFERS, 'node', **of)} > 0)"
    flow = Row(
        "Hand-offs",
        (
            Panel(
                "By result",
                (Query(rate(m.NODE_TRANSFERS, "result", **of), "{{result}}"),),
                "ops",
                "Sent by these nodes.",
            ),
            Panel(
                "Bytes",
                (Query(rate(m.NODE_TRANSFER_BYTES, "node", **of), "{{node}}"),),
                "Bps",
                "KV bytes sent.",
            ),
            Panel(
                "Failed share",
                (Query(share, "{{node}}"),),
                "percentunit",
                "Each failure costs a second prefill.",
                steps=((None, "green"), (0.05, "red")),
            ),
        ),
    )
    holding = Row(
        "Time and pages",
        (
            Panel(
                "Time of a transfer",
                tuple(Query(quantile(q, m.TRANSFER), name) for q, name in QUANTILES),
                "s",
                "From token 0 to verified KV, all classes.",
            ),
            Panel(
                "Under way",
                (Query(gauge(m.NODE_REQUESTS, stage="transferring", **of), "{{node}}"),),
                "short",
                "Requests that wait for their KV, or send it.",
            ),
            Panel(
                "Pages of writers",
                (
                    Query(total(m.NODE_PAGES, "state", state="granted|filling|ready", **of)),
                    Query(total(m.NODE_PAGES, "state", state="draining|quarantined", **of)),
                ),
                "short",
                "Draining for minutes: a writer's stop is not proved.",
            ),
        ),
    )
    text = "KV pages on their way from prefill to decode nodes."
    return board("tandem-transfers", "Tandem / Transfers", text, (flow, holding), (NODES,))
