"""What made-up deployments tell: verdicts with reasons, events, one request's record."""

from typing import Literal

from tandem.messages.common import Timeline
from tandem.messages.operations import RequestRecord, StageTimes, Step

State = Literal["empty", "idle", "loaded", "death", "many", "calm"]
STATES: tuple[State, ...] = ("empty", "idle", "loaded", "death", "many", "calm")


def record_of(request_id: str, now: float) -> RequestRecord:
    """A request that ended well enough."""
    received = now - 41.0
    return RequestRecord(
        request_id=(request_id + "0" * 32)[:32],
        gateway_id="gateway",
        tenant="chat-web",
        sla_class="interactive",
        ttft_target_ms=500.0,
        tpot_target_ms=50.0,
        priority=0,
        received_unix_s=received,
        reason="stop",
        code=None,
        message=None,
        sla_attained=False,
        ttft_ms=612.0,
        tpot_ms=31.4,
        max_itl_ms=118.0,
        num_prompt_tokens=3120,
        num_output_tokens=214,
        num_cached_tokens=1024,
        timeline=Timeline(
            received_unix_s=received,
            placed_s=0.004,
            prefill_start_s=0.418,
            first_token_s=0.612,
            transfer_end_s=0.631,
            decode_start_s=0.655,
            finished_s=7.33,
            prefill_node="prefill-1",
            decode_node="decode-0",
            transfer_bytes=412_876_800,
        ),
        steps=(
            Step(
                after_s=0.004,
                text="placed: prefill-1 computes 2,096 tokens (1,024 are cached "
                "there), decode-0 decodes; predicted TTFT 480 ms of 500 ms",
            ),
            Step(
                after_s=0.418,
                text="prefill began 370 ms later than predicted: prefill-1 had "
                "11 prompts before it",
            ),
            Step(after_s=7.33, text="ended by stop; SLA missed by TTFT 612 ms over 500 ms"),
        ),
    )


def verdict_of(state: State, index: int) -> tuple[str, str | None, str, float]:
    """Verdict, limiting stage, explanation, and the share that was kept."""
    if state in ("empty", "idle"):
        return "no traffic", None, "No request of this class ended in the last 3 days.", 1.0
    if index == 2:
        return "no traffic", None, "No request of this class ended in the last 3 days.", 1.0
    if state == "death" and index == 0:
        why = (
            "TTFT p95 is 741 ms where 500 ms are promised; 58 % of it is queue: prompts wait "
            "for prefill since decode-1 went down and mixed-0 turned to decode."
        )
        return "violated", "queue", why, 0.941
    if state == "loaded" and index == 0:
        why = (
            "Burns its budget 1.9 times too fast over 5 minutes. The slowest twentieth spends "
            "52 % of its TTFT waiting for a prefill node."
        )
        return "at risk", "queue", why, 0.981
    return "ok", "prefill", "Kept with room; most of its TTFT is prefill.", 0.9984


NO_STAGES = StageTimes(
    queue=None,
    prefill=None,
    transfer=None,
    decode_admission=None,
    ttft=None,
    tpot=None,
    max_itl=None,
)
EVENTS = (
    ("member", "coordinator listens on tcp://10.0.0.1:7300, incarnation 3"),
    ("member", "node prefill-0 joined as epoch 7: NVIDIA H200, 4,096 pages, prefill 1 / decode 0"),
    ("member", "node decode-0 joined as epoch 11: NVIDIA H200, 4,096 pages, prefill 0 / decode 1"),
    ("member", "gateway gateway joined: model qwen3-8b"),
    ("request", "request 7be1f02c9d3344aa was placed again: prefill-1 answered transfer_failed"),
    (
        "decision",
        "observed: early rejection of 12 requests of interactive: predicted TTFT 640 ms "
        "is above 500 ms",
    ),
    (
        "decision",
        "roles: turns decode-2 from decode to both roles (0.4 / 0.6): load 1.77 of the "
        "target becomes 1.08; needs 2.61 prefill and 1.92 decode nodes",
    ),
    (
        "decision",
        "roles: turns decode-3 from decode to prefill: load 1.08 of the target becomes "
        "0.87; needs 2.61 prefill and 1.92 decode nodes",
    ),
    ("order", "operator: weights of decode-3 prefill 1 / decode 0 (from the dashboard)"),
    ("error", "gateway-1: 3 frames of an unknown type were dropped"),
)
