"""Made-up measurements that look like a deployment's: smooth, the same for the same time."""

import math

from tandem.messages.operations import Quantiles


def wobble(t: float, seed: int, period_s: float = 40.0) -> float:
    """Smooth noise between 0 and 1."""
    phase = seed * 1.7
    waves = (
        math.sin(t / period_s * 2 * math.pi + phase)
        + 0.6 * math.sin(t / period_s * 5.3 + 2.1 * phase)
        + 0.4 * math.sin(t / period_s * 13.7 + 3.3 * phase)
    )
    return min(1.0, max(0.0, 0.5 + waves / 4))


def quantiles(p50: float, t: float, seed: int, *, tail: float = 2.4) -> Quantiles:
    """Around a median in milliseconds."""
    p50 *= 0.9 + 0.2 * wobble(t, seed)
    return Quantiles(p50=p50, p95=p50 * (1 + (tail - 1) * 0.7), p99=p50 * tail)


def series_value(name: str, t: float, load: float, began_at: float) -> float | None:
    """A sample of a series at `t`; `load` 1 is what the deployment carries well."""
    if t < began_at:
        return None
    busy = load * (0.75 + 0.35 * wobble(t, 3, 90))
    spike = max(0.0, wobble(t, 11, 170) - 0.72) * 4 * load
    if name.startswith("attainment:"):
        return 1.0 - 0.06 * spike * load
    shapes: dict[str, float] = {
        "requests_per_s": 42 * busy,
        "goodput_per_s": 42 * busy * (1 - 0.16 * spike),
        "shed_per_s": 5 * max(0.0, spike - 0.45),
        "failed_per_s": 0.0,
        "output_tokens_per_s": 5200 * busy,
        "queue_p50_ms": 22 * busy + 140 * spike,
        "prefill_p50_ms": 118 * (0.9 + 0.2 * wobble(t, 5)),
        "transfer_p50_ms": 9 * (0.8 + 0.4 * wobble(t, 6)),
        "decode_admission_p50_ms": 6 + 26 * max(0.0, wobble(t, 7, 60) - 0.6) * load,
        "tpot_p50_ms": 21 + 9 * busy,
        "tpot_p99_ms": 30 + 17 * busy * (0.8 + 0.6 * wobble(t, 8)),
        "max_itl_p99_ms": 58 + 60 * wobble(t, 9, 25) * load,
        "busy_prefill": min(1.0, 0.72 * busy + 0.2 * spike),
        "busy_decode": min(1.0, 0.66 * busy),
        "kv_used_share": min(1.0, 0.2 + 0.45 * busy),
        "transfer_bytes_per_s": 310e6 * busy,
        "num_live": 180 * busy,
        "num_queued": 12 * spike,
    }
    if name == "ttft_p50_ms":
        return shapes["queue_p50_ms"] + shapes["prefill_p50_ms"]
    if name == "ttft_p99_ms":
        return 2.1 * shapes["queue_p50_ms"] + 2.0 * shapes["prefill_p50_ms"]
    idle_is_unknown = name.endswith("_ms")
    return None if load == 0 and idle_is_unknown else shapes[name]


SERIES = (
    "requests_per_s",
    "goodput_per_s",
    "shed_per_s",
    "failed_per_s",
    "output_tokens_per_s",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p50_ms",
    "tpot_p99_ms",
    "max_itl_p99_ms",
    "queue_p50_ms",
    "prefill_p50_ms",
    "transfer_p50_ms",
    "decode_admission_p50_ms",
    "busy_prefill",
    "busy_decode",
    "kv_used_share",
    "transfer_bytes_per_s",
    "num_live",
    "num_queued",
)
