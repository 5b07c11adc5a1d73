"""What operators see of HTTP calls: their traces, and the scrape."""

import sys
from types import ModuleType
from typing import ClassVar

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.http.running import COMPLETION, HttpGateway, make_model

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(InMemorySpanExporter):
    """In the place of the exporter to a collector."""

    made: ClassVar[list["Collector"]] = []

    def __init__(self, endpoint: str, timeout: float) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.made.append(self)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType(EXPORTER)
    module.__dict__["OTLPSpanExporter"] = Collector
    monkeypatch.setitem(sys.modules, EXPORTER, module)
    yield Collector
    Collector.made.clear()


def test_a_call_with_two_answers_has_two_traces_below_its_own(collector, tokenizer) -> None:
    settings = {"otlp_endpoint": "http://collector:4318/v1/traces"}
    with HttpGateway(make_model(tokenizer), settings) as gateway:
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = COMPLETION | {"n": 2}
        assert gateway.ask("POST", "/v1/completions", body, parent).status == 200
        assert gateway.ask("POST", "/v1/completions", COMPLETION).status == 200
        text = gateway.ask("GET", "/metrics").body.decode()
        gateway.until_idle()
    (exporter,) = collector.made
    assert exporter.endpoint == settings["otlp_endpoint"]
    spans = exporter.get_finished_spans()
    roots = [span for span in spans if span.name == "text_completion demo"]
    below = [span for span in roots if span.parent is not None]
    assert (len(roots), len(below)) == (3, 2)
    assert {f"{span.context.trace_id:032x}" for span in below} == {TRACE}
    assert {f"{span.parent.span_id:016x}" for span in below} == {PARENT}
    assert {span.name for span in spans} >= {"queue", "prefill", "decode"}
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["tandem_http_requests_total", "/v1/completions", "200", "POST"] == 2
    assert samples["tandem_gateway_requests_ended_total", "length"] == 3
    assert samples["tandem_gateway_tokenising_seconds_count",] >= 2
    assert samples["tandem_http_first_byte_seconds_count", "/v1/completions"] == 2
