"""One OpenTelemetry trace per ended request, for `--otlp-endpoint`; OpenTelemetry is an extra.

A request's span has its stages below it: queue, prefill, kv_transfer, decode_wait, decode, from the
same timeline that metrics and dashboard read. They are made when it has ended, so a request costs
nothing before that, and nothing at all without the flag.
"""

import importlib
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gateway.actions import NewRequest
from tandem.messages.client import Done
from tandem.messages.common import Timeline
from tandem.stages import stages_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

PROVIDER = "tandem"
EXPORT_TIMEOUT_S = 3.0  # also how long a stop may wait for a collector that is gone
SPAN_NAMES = {
    "queue": "queue",
    "prefill": "prefill",
    "transfer": "kv_transfer",
    "decode_admission": "decode_wait",
    "decode": "decode",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """The HTTP call that a request came by. `traceparent`: as its header says, not checked."""

    route: str
    traceparent: str | None


# Of the task that serves a call, and of the tasks that it starts.
CALLER: ContextVar[Caller | None] = ContextVar("tandem.caller", default=None)


class RequestTraces:
    """See the module. Told of every request that enters the ledger, and of its end."""

    def __init__(self, provider: "TracerProvider", *, model_name: str) -> None:
        self._provider = provider
        self._model_name = model_name
        self._tracer = provider.get_tracer("tandem.gateway")
        self._api: Any = importlib.import_module("opentelemetry.trace")
        propagation: Any = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        self._propagator = propagation.TraceContextTextMapPropagator()
        self._context: Any = importlib.import_module("opentelemetry.context").Context
        self._live: dict[bytes, tuple[Caller | None, dict[str, Any]]] = {}

    def began(self, new: NewRequest) -> None:
        """A request enters the ledger, in the task that its caller's call started."""
        asked = {
            "gen_ai.request.max_tokens": new.params.max_tokens,
            "gen_ai.request.temperature": new.params.temperature,
            "gen_ai.request.top_p": new.params.top_p,
            "tandem.tenant": new.tenant,
        }
        self._live[new.request_id] = (CALLER.get(), asked)

    def ended(self, done: Done) -> None:
        """It has ended: make its spans."""
        caller, asked = self._live.pop(done.request_id, (None, {}))
        is_chat = caller is not None and caller.route.endswith("/chat/completions")
        operation = "chat" if is_chat else "text_completion"
        timeline = done.timeline
        begins_ns = _ns(timeline, 0.0)
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=self._parent(caller),
            kind=self._api.SpanKind.SERVER,
            start_time=begins_ns,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": self._model_name,
                "gen_ai.response.model": self._model_name,
                **{name: value for name, value in asked.items() if value is not None},
                **attributes_of(done),
            },
        )
        if done.reason == "failed":
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, done.message))
        self._stages(span, timeline)
        span.end(_ns(timeline, max(0.0, timeline.finished_s or 0.0)))

    def _parent(self, caller: Caller | None) -> Any:  # noqa: ANN401  a Context
        """The caller's span, where it names one; else the trace begins here."""
        empty = self._context()
        if caller is None or caller.traceparent is None:
            return empty
        return self._propagator.extract({"traceparent": caller.traceparent}, empty)

    def _stages(self, span: Any, timeline: Timeline) -> None:  # noqa: ANN401  a Span
        context = self._api.set_span_in_context(span, self._context())
        nodes = {"prefill": timeline.prefill_node, "decode": timeline.decode_node}
        for stage in stages_of(timeline):
            node = nodes.get(stage.name)
            attributes: dict[str, str | int] = {} if node is None else {"tandem.node": node}
            if stage.name == "transfer":
                attributes["tandem.transfer_bytes"] = timeline.transfer_bytes
            child = self._tracer.start_span(
                SPAN_NAMES[stage.name],
                context=context,
                start_time=_ns(timeline, stage.begins_s),
                attributes=attributes,
            )
            child.end(_ns(timeline, stage.begins_s + stage.seconds))

    def close(self) -> None:
        """Send what is left; may wait for `EXPORT_TIMEOUT_S`."""
        self._provider.shutdown()


def attributes_of(done: Done) -> dict[str, Any]:
    """What an end says, in the semantic conventions' names and, for durations, in vLLM's."""
    seconds = {stage.name: stage.seconds for stage in stages_of(done.timeline)}
    found: dict[str, Any] = {
        "gen_ai.request.id": done.request_id.hex(),
        "gen_ai.response.id": done.request_id.hex(),
        "gen_ai.response.finish_reasons": [done.reason],
        "gen_ai.usage.input_tokens": done.usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": done.usage.num_output_tokens,
        "gen_ai.usage.cache_read.input_tokens": done.usage.num_cached_tokens,
        "gen_ai.latency.time_to_first_token": done.timeline.first_token_s,
        "gen_ai.latency.e2e": done.timeline.finished_s,
        "gen_ai.latency.time_in_queue": seconds.get("queue"),
        "gen_ai.latency.time_in_model_prefill": seconds.get("prefill"),
        "gen_ai.latency.time_in_model_decode": seconds.get("decode"),
        "tandem.sla_class": done.sla_class,
        "tandem.sla_attained": done.sla_attained,
        "tandem.num_attempts": done.timeline.num_attempts,
        "error.type": done.code if done.reason == "failed" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def open_traces(endpoint: str | None, *, gateway_id: str, model_name: str) -> RequestTraces | None:
    """Traces that go to an OTLP/HTTP collector; None without one.

    Raises ValueError with advice where OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    try:
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise ValueError(
            f"--otlp-endpoint needs OpenTelemetry ({error}): pip install 'tandem-serve[otel]', or "
            "leave the flag out"
        ) from None
    names = {"service.name": "tandem-gateway", "service.instance.id": gateway_id}
    provider = sdk.TracerProvider(resource=resources.Resource.create(names), shutdown_on_exit=False)
    exporter = otlp.OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    logger.info("traces go to %s", endpoint)
    return RequestTraces(provider, model_name=model_name)


def _ns(timeline: Timeline, after_s: float) -> int:
    return int((timeline.received_unix_s + after_s) * 1e9)
