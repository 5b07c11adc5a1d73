"""The state of a deployment: asked from its coordinator, and written as a table for people."""

import asyncio
import uuid
from typing import Any

import msgspec
import zmq.asyncio

from tandem.errors import UnavailableError
from tandem.keys import COORDINATOR, Keyring
from tandem.messages.client import Malformed
from tandem.messages.common import NodeCosts
from tandem.messages.membership import (
    ClusterStatus,
    Decision,
    GatewayStatus,
    NodeLoad,
    NodeStatus,
    PageCounts,
    StatusQuery,
)
from tandem.messages.placement import ClassCounts
from tandem.sockets import Link
from tandem.tables import format_table

ANSWER_S = 5.0
PAGE_STATES = PageCounts.__struct_fields__


def operator_link(
    context: zmq.asyncio.Context,
    union: Any,  # noqa: ANN401  a type expression
    coordinator: str,
    keys: Keyring | None,
) -> Link[Any]:
    """A link of a command to the coordinator."""
    name = "anonymous" if keys is None else keys.name
    return Link(
        context,
        union,
        identity=f"operator/{name}/{uuid.uuid4().hex}".encode(),
        address=coordinator,
        keys=keys,
        server="/".join(COORDINATOR),
    )


async def query_status(coordinator: str, keys: Keyring | None = None) -> ClusterStatus:
    """Ask a coordinator. Raises UnavailableError where none answers in time."""
    context = zmq.asyncio.Context()
    link: Link[ClusterStatus | Malformed] | None = None
    try:
        link = operator_link(context, ClusterStatus | Malformed, coordinator, keys)
        async with asyncio.timeout(ANSWER_S):
            return await _collect(link)
    except TimeoutError:
        trouble = None if link is None else link.trouble
        raise UnavailableError(
            trouble
            or f"no coordinator answers at {coordinator} within {ANSWER_S:g} s: start a deployment "
            "with `tandem up --model MODEL`, or name the right address (the coordinator prints it "
            "as `ready coordinator tcp://host:port`)",
            code="unavailable",
        ) from None
    finally:
        if link is not None:
            link.close()
        context.term()


async def _collect(link: Link[ClusterStatus | Malformed]) -> ClusterStatus:
    """All pieces of a status as one: a large deployment does not fit one message."""
    answers = link.messages()
    query = StatusQuery()
    nodes: list[NodeStatus] = []
    gateways: list[GatewayStatus] = []
    while True:
        link.send(query)
        answer = await anext(answers)
        if isinstance(answer, Malformed):
            raise UnavailableError(
                f"the coordinator at {link.address} cannot read this program's messages: "
                f"{answer.message}",
                code="unavailable",
            )
        nodes += answer.nodes
        gateways += answer.gateways
        if not answer.has_more:
            whole = {"nodes": tuple(nodes), "gateways": tuple(gateways)}
            return msgspec.structs.replace(answer, **whole)
        query = StatusQuery(
            after_node=nodes[-1].node_id if nodes else None,
            after_gateway=gateways[-1].gateway_id if gateways else None,
        )


def render_status(status: ClusterStatus) -> str:
    """Nodes, their pages by state, their costs, gateways, SLA classes."""
    model = status.model
    lines = [
        f"coordinator up {_duration(status.uptime_s)}, {status.num_live_requests} live requests, "
        f"{status.num_dropped_messages} messages dropped, {status.num_shed} requests shed, "
        f"{status.num_queued} wait for a node",
        "model       "
        + (
            f"{model.served_name} ({model.dtype}, context {model.max_model_len:,}, weights "
            f"{model.weights_fingerprint[:12]})"
            if model
            else "none: no node was admitted"
        ),
        "",
        *_node_table(status.nodes),
        *(f"down lately: {d.node_id}, epoch {d.epoch}: {d.reason}" for d in status.downs),
        "",
        *_page_table(status.nodes),
        "",
        *_cost_table(status.nodes),
        "",
        *format_table(
            ("gateway", "live requests", "heartbeat"),
            [
                (
                    f"{g.gateway_id}, draining" if g.draining else g.gateway_id,
                    str(g.num_live_requests),
                    f"{g.heartbeat_age_s:.1f} s ago",
                )
                for g in status.gateways
            ],
        ),
        "",
        *_class_table(status.classes),
        *_decision_lines(status.decisions),
    ]
    return "\n".join(lines)


def _decision_lines(decisions: tuple[Decision, ...]) -> list[str]:
    """What the coordinator decided by itself, the latest first."""
    if not decisions:
        return []
    return ["", *(f"{_duration(d.age_s)} ago: {d.kind}: {d.message}" for d in decisions)]


def _node_table(nodes: tuple[NodeStatus, ...]) -> list[str]:
    header = (
        "node", "role", "epoch", "prefill waiting", "decoding", "decode waiting", "transfers",
        "steps", "in a step for", "cached prefixes", "heartbeat", "address",
    )  # fmt: skip
    rows = []
    for node in nodes:
        load = node.load
        counts = (
            (
                load.num_prefill_waiting,
                load.num_decode_running,
                load.num_decode_waiting,
                load.num_transfers,
                load.num_steps,
            )
            if load
            else ("?",) * 5
        )
        rows.append(
            (
                node.node_id,
                describe_role(node),
                str(node.epoch),
                *(str(count) for count in counts),
                f"{load.step_age_s:.1f} s" if load and load.has_work else "-",
                str(node.num_cached_prefixes),
                f"{node.heartbeat_age_s:.1f} s ago",
                node.control_address,
            )
        )
    return format_table(header, rows)


def _page_table(nodes: tuple[NodeStatus, ...]) -> list[str]:
    rows = [
        (
            node.node_id,
            str(node.num_pages),
            *(str(getattr(node.load.pages, state)) if node.load else "?" for state in PAGE_STATES),
        )
        for node in nodes
    ]
    return format_table(("pages of", "all", *PAGE_STATES), rows)


def _cost_table(nodes: tuple[NodeStatus, ...]) -> list[str]:
    """What nodes say of their own speed: a decode step as they are loaded now, a long prompt."""
    header = ("costs of", "decode step", "prefill", "transfer", "busy", "steps known", "error")
    rows = []
    for node in nodes:
        costs = node.load.costs if node.load else None
        if node.load is None or costs is None:
            rows.append((node.node_id, *["?"] * 6))
            continue
        busy = _duration(node.load.busy_s)
        steps = (str(costs.num_steps), f"{costs.error:.1%}")
        speeds = (_decode_step(node.load, costs), _prefill_speed(costs), _transfer(costs))
        rows.append((node.node_id, *speeds, busy, *steps))
    return format_table(header, rows)


def _decode_step(load: NodeLoad, costs: NodeCosts) -> str:
    if not (costs.decode_row_s or costs.decode_context_s):
        return "-"  # it has done none, so what one takes is not known
    rows_s = costs.decode_row_s * load.num_decode_running
    contexts_s = costs.decode_context_s * load.num_decode_tokens
    return f"{(costs.step_s + rows_s + contexts_s) * 1e3:.3g} ms"


def _prefill_speed(costs: NodeCosts) -> str:
    if not (costs.prefill_token_s or costs.prefill_context_s):
        return "-"
    num_tokens = 1000
    pairs_s = costs.prefill_context_s * num_tokens * num_tokens / 2
    seconds = costs.step_s + costs.prefill_token_s * num_tokens + pairs_s
    return f"{num_tokens / seconds:,.0f} tokens/s" if seconds > 0 else "?"


def _transfer(costs: NodeCosts) -> str:
    if not (costs.transfer_s or costs.transfer_bytes_per_s):
        return "-"
    speed = costs.transfer_bytes_per_s / 1e9
    return f"{costs.transfer_s * 1e3:.3g} ms" + (f" + {speed:.3g} GB/s" if speed else "")


def _class_table(classes: tuple[ClassCounts, ...]) -> list[str]:
    header = ("SLA class", "TTFT", "TPOT", "ended", "attained", "failed", "attainment")
    rows = [
        (
            c.targets.sla_class,
            f"{c.targets.ttft_ms:g} ms",
            f"{c.targets.tpot_ms:g} ms",
            str(c.num_ended),
            str(c.num_attained),
            str(c.num_failed),
            f"{c.num_attained / c.num_ended:.1%}" if c.num_ended else "-",
        )
        for c in classes
    ]
    return format_table(header, rows)


def describe_role(node: NodeStatus) -> str:
    """`prefill`, `decode`, or the shares of both; whether it is slow, or leaves."""
    prefill, decode = node.weights.prefill, node.weights.decode
    if prefill and decode:
        role = f"{prefill / (prefill + decode):.0%} prefill"
    elif prefill or decode:
        role = "prefill" if prefill else "decode"
    else:
        role = "closed"
    return role + ", slow" * node.is_slow + ", draining" * node.draining


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
