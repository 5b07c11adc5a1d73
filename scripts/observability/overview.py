"""The first board: what is promised, and the way of a request through its stages."""

from scripts.observability.panels import FULL, QUANTILES, Json, Panel, Query, Row, Variable, board
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

CLASS = "$sla_class"
GOOD_BAD = ((None, "red"), (0.9, "orange"), (0.99, "green"))
BURN = ((None, "green"), (1.0, "orange"), (6.0, "red"))
CLASSES = Variable("sla_class", f"label_values({m.SLO_REQUESTS.name}, sla_class)", "SLA class")


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
