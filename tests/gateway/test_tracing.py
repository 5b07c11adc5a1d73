"""One trace per ended request, by the SDK's own exporter in memory."""

import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.actions import NewRequest
from gateway.tracing import CALLER, Caller, RequestTraces, open_traces
from tandem.frames import TokenIds
from tandem.messages.client import Done
from tandem.messages.common import Timeline, Usage
from tandem.sampling import SamplingParams

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMELINE = Timeline(
    received_unix_s=1_000_000.0,
    prefill_start_s=0.25,
    first_token_s=0.5,
    transfer_end_s=0.625,
    decode_start_s=0.75,
    finished_s=2.0,
    prefill_node="p0",
    decode_node="d0",
    transfer_bytes=4096,
)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = RequestTraces(provider, model_name="demo")
    yield made
    made.close()


def new_request() -> NewRequest:
    return NewRequest(
        request_id=bytes(16),
        client=b"c",
        label="",
        prompt_ids=TokenIds([1, 2]),
        params=SamplingParams(max_tokens=8, temperature=0.5),
        seed=1,
        sla_class=None,
        ttft_ms=None,
        tpot_ms=None,
        priority=0,
        deadline_s=None,
        received=0.0,
        received_unix_s=1_000_000.0,
    )


def done(**changes) -> Done:
    fields = {
        "request_id": bytes(16),
        "reason": "stop",
        "usage": Usage(num_prompt_tokens=2, num_output_tokens=6),
        "timeline": TIMELINE,
        "sla_class": "standard",
        "sla_attained": True,
    }
    return Done(**{**fields, **changes})


def spans(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def attributes(span: ReadableSpan) -> dict:
    return dict(span.attributes or {})


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None and span.end_time is not None
    return (span.start_time / 1e9 - 1_000_000, span.end_time / 1e9 - 1_000_000)


def test_stages_are_below_the_request_as_the_timeline_has_them(traces, exporter) -> None:
    traces.began(new_request())
    traces.ended(done())
    found = spans(exporter)
    root = found.pop("text_completion demo")
    assert {name: seconds(span) for name, span in found.items()} == {
        "queue": (0.0, 0.25),
        "prefill": (0.25, 0.5),
        "kv_transfer": (0.5, 0.625),
        "decode_wait": (0.625, 0.75),
        "decode": (0.75, 2.0),
    }
    assert seconds(root) == (0.0, 2.0) and root.kind is SpanKind.SERVER and root.parent is None
    assert {span.parent.span_id for span in found.values()} == {root.context.span_id}
    assert attributes(found["kv_transfer"])["tandem.transfer_bytes"] == 4096
    assert attributes(found["prefill"])["tandem.node"] == "p0"
    assert attributes(root)["gen_ai.request.max_tokens"] == 8
    assert attributes(root)["gen_ai.usage.output_tokens"] == 6
    assert attributes(root)["gen_ai.latency.time_to_first_token"] == 0.5
    assert attributes(root)["gen_ai.response.finish_reasons"] == ("stop",)


def test_the_callers_span_is_the_parent(traces, exporter) -> None:
    token = CALLER.set(Caller("/v1/chat/completions", f"00-{TRACE}-{PARENT}-01"))
    traces.began(new_request())
    CALLER.reset(token)
    traces.ended(done())
    root = spans(exporter)["chat demo"]
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("header", ["nonsense", f"00-{'0' * 32}-{PARENT}-01", ""])
def test_a_bad_header_begins_a_trace_of_its_own(traces, exporter, header: str) -> None:
    token = CALLER.set(Caller("/v1/completions", header))
    traces.began(new_request())
    CALLER.reset(token)
    traces.ended(done())
    assert spans(exporter)["text_completion demo"].parent is None


def test_a_request_that_failed_early_has_no_stages_and_says_why(traces, exporter) -> None:
    timeline = Timeline(received_unix_s=1_000_000.0, finished_s=0.5)
    traces.began(new_request())
    traces.ended(done(reason="failed", code="overloaded", message="full", timeline=timeline))
    ((name, root),) = spans(exporter).items()
    assert name == "text_completion demo" and root.status.status_code is StatusCode.ERROR
    assert attributes(root)["error.type"] == "overloaded"


def test_without_the_flag_or_the_extra_nothing_is_traced(monkeypatch) -> None:
    assert open_traces(None, gateway_id="gw", model_name="demo") is None
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(ValueError, match=r"pip install 'tandem-serve\[otel\]'"):
        open_traces("http://127.0.0.1:1/v1/traces", gateway_id="gw", model_name="demo")
