"""`tandem status` says how fast nodes think they are, and how far off that was."""

from msgspec.structs import replace

from tandem.messages.common import NodeCosts
from tandem.messages.membership import (
    ClusterStatus,
    NodeLoad,
    NodeStatus,
    PageCounts,
    RoleWeights,
)
from tandem.status import render_status

COSTS = NodeCosts(
    step_s=0.005,
    prefill_token_s=1e-4,
    prefill_context_s=4e-8,
    decode_row_s=1e-3,
    decode_context_s=1e-6,
    error=0.0312,
    num_steps=4321,
    transfer_s=0.002,
    transfer_bytes_per_s=1.5e9,
)
PAGES = PageCounts(
    free=1, granted=0, filling=0, ready=0, active=0, cached=0, draining=0, quarantined=0
)


def table(costs: NodeCosts | None) -> list[str]:
    """The cells of the node's row."""
    load = NodeLoad(
        num_steps=5000,
        step_age_s=0.0,
        num_prefill_waiting=0,
        num_prefill_tokens_waiting=0,
        num_decode_running=4,
        num_decode_waiting=0,
        num_transfers=0,
        num_requests=4,
        num_tokens_out=0,
        pages=PAGES,
        num_decode_tokens=3000,
        busy_s=61.0,
        costs=costs,
    )
    node = NodeStatus(
        node_id="n0",
        epoch=1,
        weights=RoleWeights(prefill=1, decode=1),
        control_address="tcp://127.0.0.1:1",
        device="cpu",
        num_pages=1,
        heartbeat_age_s=0.0,
        draining=False,
        load=load,
    )
    status = ClusterStatus(
        coordinator_incarnation=1, uptime_s=1.0, model=None, nodes=(node,), gateways=(), classes=(),
        num_live_requests=0, num_dropped_messages=0,
    )  # fmt: skip
    lines = render_status(status).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("costs of"))
    return lines[at + 1].split()


def test_costs_are_shown_as_what_they_mean() -> None:
    assert table(COSTS) == [
        "n0",
        *("12", "ms"),  # 5 + 4 rows of 1 + 3,000 tokens of 0.001
        *("8,000", "tokens/s"),  # 1,000 tokens in 5 + 100 + 20 ms
        *("2", "ms", "+", "1.5", "GB/s"),
        *("1", "min", "1", "s"),
        "4321",
        "3.1%",
    ]


def test_what_a_node_has_not_done_is_not_known() -> None:
    changes = {"prefill_token_s": 0.0, "prefill_context_s": 0.0, "transfer_s": 0.0}
    assert table(replace(COSTS, **changes, transfer_bytes_per_s=0.0))[3:5] == ["-", "-"]
    assert table(replace(COSTS, decode_row_s=0.0, decode_context_s=0.0))[1] == "-"


def test_a_node_that_has_learned_nothing_says_so() -> None:
    assert table(None) == ["n0", *["?"] * 6]
