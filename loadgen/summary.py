"""A run's figures: rates, goodput, latencies, of the whole run and of its steady part. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from loadgen.drive import UNFINISHED, Driven, Fate
from loadgen.goodput import Targets
from loadgen.report import percentiles_ms

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "late_ms")
TRIMMED_SHARE = 0.1  # of due times, at each end: filling and emptying the system


def summarise(driven: Driven, targets: Targets) -> dict[str, Any]:
    """Figures of everything, and under `steady` of what was due in the middle of the run."""
    span_s = max((fate.due.at_s for fate in driven.fates), default=0.0)
    whole = _figures(driven.fates, max(span_s, driven.duration_s), targets)
    errors = Counter(fate.error_code for fate in driven.fates if fate.error_code is not None)
    texts = sorted({fate.error_text for fate in driven.fates if fate.error_text})
    document = whole | {
        "num_sent": len(driven.fates),
        "num_unfinished": errors[UNFINISHED],
        "errors": dict(sorted(errors.items())),
        "error_texts": texts[:3],
        "duration_s": round(driven.duration_s, 3),
    }
    low, high = TRIMMED_SHARE * span_s, (1 - TRIMMED_SHARE) * span_s
    middle = [fate for fate in driven.fates if low <= fate.due.at_s <= high]
    if span_s > 0 and len(middle) > 1:
        document["steady"] = _figures(middle, high - low, targets)
    return document


def _figures(fates: Sequence[Fate], seconds: float, targets: Targets) -> dict[str, Any]:
    samples = [fate.sample for fate in fates if fate.sample is not None]
    num_good = sum(targets.is_good(sample) for sample in samples)
    refused_s = [f.error_after_s for f in fates if f.error_code not in (None, UNFINISHED)]
    return {
        "num_done": len(samples),
        "num_good": num_good,
        "num_refused": len(refused_s),
        "attainment": round(num_good / len(fates), 4),
        "requests_per_s": round(len(samples) / seconds, 3),
        "goodput_per_s": round(num_good / seconds, 3),
        "output_tokens_per_s": round(sum(s.num_tokens for s in samples) / seconds, 2),
        "num_output_tokens": sum(s.num_tokens for s in samples),
        "num_prompt_tokens": sum(len(f.due.request.prompt_ids) for f in fates if f.sample),
        "num_cached_tokens": sum(s.num_cached_tokens for s in samples),
        "ttft_ms": percentiles_ms([s.ttft_s for s in samples]),
        "tpot_ms": percentiles_ms([s.tpot_s for s in samples if s.tpot_s is not None]),
        "itl_ms": percentiles_ms([gap for s in samples for gap in s.gaps_s]),
        "e2el_ms": percentiles_ms([s.end_s for s in samples]),
        "late_ms": percentiles_ms([fate.late_s for fate in fates]),
        "refusal_ms": percentiles_ms(refused_s),
    }


def records(driven: Driven) -> list[dict[str, Any]]:
    """One line per request, for the saved file and for plots."""
    return [_record(fate) for fate in driven.fates]


def _record(fate: Fate) -> dict[str, Any]:
    record: dict[str, Any] = {
        "due_s": round(fate.due.at_s, 6),
        "late_s": round(fate.late_s, 6),
        "num_prompt_tokens": len(fate.due.request.prompt_ids),
    }
    sample = fate.sample
    if sample is None:
        return record | {"error": fate.error_code, "error_after_s": round(fate.error_after_s, 6)}
    return record | {
        "num_output_tokens": sample.num_tokens,
        "ttft_s": round(sample.ttft_s, 6),
        "end_s": round(sample.end_s, 6),
        "gaps_s": [round(gap, 6) for gap in sample.gaps_s],
        "request_id": sample.request_id,
    }
