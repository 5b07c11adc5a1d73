"""How soon a caller wants its tokens: by fields, else by headers. Pure."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.http.errors import ApiError
from gateway.openai.evaluation_requests import EvaluationRequest
from gateway.openai.requests import GenerationRequest

CLASS_HEADER = "x-tandem-sla-class"
TTFT_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
TPOT_HEADERS = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
# A target out of range has overflowed deadlines elsewhere, and jumped the queue.
MIN_TARGET_MS, MAX_TARGET_MS = 1.0, 3_600_000.0
MAX_PRIORITY = 100
MAX_DEADLINE_S = 86_400.0
CLASS_NAME = re.compile(r"[A-Za-z0-9._:/@+ -]{1,128}")


@dataclass(frozen=True, slots=True)
class Targets:
    """As `Submit` takes them."""

    sla_class: str | None
    ttft_ms: float | None
    tpot_ms: float | None
    priority: int
    deadline_s: float | None


def targets_of(
    request: GenerationRequest | EvaluationRequest, headers: Mapping[str, str]
) -> Targets:
    """Targets out of range are clamped. Raises ApiError for what is no number or name."""
    sla_class = request.sla_class or headers.get(CLASS_HEADER)
    if sla_class is not None and not CLASS_NAME.fullmatch(sla_class):
        raise ApiError(400, "sla_class is no name of a class", param="sla_class")
    priority = request.priority or 0
    if abs(priority) > MAX_PRIORITY:
        text = f"priority is {priority}, but must be from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        raise ApiError(400, f"{text} (higher goes first)", param="priority")
    deadline_s = request.deadline_s
    if deadline_s is not None:
        if deadline_s <= 0:
            raise ApiError(400, "deadline_s must be above 0", param="deadline_s")
        deadline_s = min(deadline_s, MAX_DEADLINE_S)
    return Targets(
        sla_class=sla_class,
        ttft_ms=_target("ttft_ms", request.ttft_ms, TTFT_HEADERS, headers),
        tpot_ms=_target("tpot_ms", request.tpot_ms, TPOT_HEADERS, headers),
        priority=priority,
        deadline_s=deadline_s,
    )


def _target(
    field: str, given: float | None, names: tuple[str, ...], headers: Mapping[str, str]
) -> float | None:
    if given is None:
        name = next((name for name in names if name in headers), None)
        if name is None:
            return None
        field, given = name, _number(name, headers[name])
    if not math.isfinite(given):
        raise ApiError(400, f"{field} must be a finite number of milliseconds", param=field)
    return min(max(given, MIN_TARGET_MS), MAX_TARGET_MS)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ApiError(400, f"{name} must be a number of milliseconds", param=name) from None
