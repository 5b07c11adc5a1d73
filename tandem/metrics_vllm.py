"""vLLM's names for what Tandem measures, behind `--vllm-metrics`: routers, pickers and screens that
read vLLM's metrics (Gateway API inference pools, load generators) work unchanged.

`engine` is a node at the coordinator, a gateway at a gateway; `all` is the deployment.
"""

from tandem.metrics import TIME_BUCKETS_S, Kind, Metric

_LABELS = ("model_name", "engine")


def _alias(name: str, kind: Kind, unit: str, text: str, *more: str) -> Metric:
    buckets = TIME_BUCKETS_S if kind == "histogram" else ()
    return Metric(f"vllm:{name}", kind, "both", unit, (*_LABELS, *more), text, buckets)


RUNNING = _alias("num_requests_running", "gauge", "requests", "Requests that decode.")
WAITING = _alias(
    "num_requests_waiting", "gauge", "requests", "Requests without a first token, or a turn."
)
KV_USAGE = _alias("kv_cache_usage_perc", "gauge", "ratio", "KV pages in use; 1 is all of them.")
CACHE_CONFIG = _alias(
    "cache_config_info", "gauge", "1", "Always 1; the KV pool.", "block_size", "num_gpu_blocks"
)
PROMPT_TOKENS = _alias("prompt_tokens_total", "counter", "tokens", "Prompt tokens.")
OUTPUT_TOKENS = _alias("generation_tokens_total", "counter", "tokens", "Output tokens.")
SUCCESS = _alias(
    "request_success_total", "counter", "requests", "Ended requests.", "finished_reason"
)
TTFT = _alias("time_to_first_token_seconds", "histogram", "seconds", "As tandem_request_ttft.")
E2E = _alias("e2e_request_latency_seconds", "histogram", "seconds", "As tandem_request_e2e.")
REQUEST_TPOT = _alias(
    "request_time_per_output_token_seconds", "histogram", "seconds", "As tandem_request_tpot."
)

FINISHED_REASONS = {  # of `tandem.messages.common.FinishReason`
    "stop": "stop",
    "length": "length",
    "cancelled": "abort",
    "failed": "error",
}
VLLM_TABLE: tuple[Metric, ...] = tuple(
    each for each in tuple(globals().values()) if isinstance(each, Metric)
)
