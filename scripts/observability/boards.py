"""Two boards: every node, and hand-offs between them."""

from scripts.observability.panels import FULL, QUANTILES, Json, Panel, Query, Row, Variable, board
from scripts.observability.queries import gauge, quantile, rate, total
from tandem import metrics as m

NODE = "$node"
NODES = Variable("node", f"label_values({m.NODE_UP.name}, node)", "Node")


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
                tuple(
                    Query(total(m.NODE_PAGES, "state", state=states, **of), "{{state}}")
                    for states in ("granted|filling|ready", "draining|quarantined")
                ),
                "short",
                "Draining for minutes: a writer's stop is not proved.",
            ),
        ),
    )
    text = "KV pages on their way from prefill to decode nodes."
    return board("tandem-transfers", "Tandem / Transfers", text, (flow, holding), (NODES,))
