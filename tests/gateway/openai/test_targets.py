"""SLA fields and headers."""

from typing import Any

import pytest
from starlette.datastructures import Headers

from gateway.http.errors import ApiError
from gateway.openai.requests import CompletionRequest
from gateway.openai.targets import Targets, targets_of


def read(headers: dict[str, str] | None = None, **fields: Any) -> Targets:
    return targets_of(CompletionRequest(prompt="a", **fields), Headers(headers))


def test_nothing_is_nothing() -> None:
    assert read() == Targets(None, None, None, 0, None)


def test_headers_of_others_are_understood_and_fields_go_first() -> None:
    headers = {"X-LLM-D-SLO-TTFT-MS": "200", "x-slo-tpot-ms": "30.5", "X-Tandem-SLA-Class": "batch"}
    assert read(headers) == Targets("batch", 200.0, 30.5, 0, None)
    told = read(headers, ttft_ms=5.0, tpot_ms=6.0, sla_class="x", priority=-3, deadline_s=9.0)
    assert told == Targets("x", 5.0, 6.0, -3, 9.0)
    assert read({"x-slo-ttft-ms": "7", "x-llm-d-slo-ttft-ms": "8"}).ttft_ms == 8.0


def test_targets_are_clamped() -> None:
    assert read(ttft_ms=-5.0, tpot_ms=1e300, deadline_s=1e12) == Targets(
        None, 1.0, 3_600_000.0, 0, 86_400.0
    )


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "", "x", "1" * 10_000, "5 ms"])
def test_headers_that_are_no_finite_numbers_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        read({"x-slo-ttft-ms": text})
    assert (caught.value.status, caught.value.param) == (400, "x-slo-ttft-ms")


@pytest.mark.parametrize(
    "fields",
    [
        {"sla_class": "a\nb"},
        {"sla_class": "x" * 1000},
        {"priority": 101},
        {"priority": -(2**63)},
        {"deadline_s": 0.0},
        {"ttft_ms": float("nan")},
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400
