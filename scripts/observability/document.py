"""docs/metrics.md: the table, as a page."""

from collections.abc import Iterable

from tandem.metrics import MAX_TENANTS, OTHER, TABLE, TIME_BUCKETS_S, Metric, Process
from tandem.metrics_vllm import VLLM_TABLE

HEAD = f"""# Metrics

Written by `scripts/make_grafana` from `tandem/metrics.py`; a test keeps it so.

The coordinator serves `GET /metrics` on its dashboard's port (7400), each gateway on its HTTP port
(8000). With keys both want an operator's bearer key (`tandem keys bearer --role operator`). Nodes
serve none: theirs are in the coordinator's, from their last heartbeats (at most half a second old).

```yaml
scrape_configs:
  - job_name: tandem
    authorization: {{credentials_file: /etc/prometheus/tandem.key}}  # where keys are in force
    static_configs:
      - targets: [coordinator:7400, gateway-0:8000]
rule_files: [tandem-rules.yaml]  # deploy/prometheus/rules.yaml
```

Dashboards for Grafana are in `deploy/grafana/`, alert rules in `deploy/prometheus/rules.yaml`;
[what each alert means and what to do](operations.md#what-each-alert-means-and-what-to-do).

Units are base units. Counters start at 0 with their process: use `rate` or `increase`. `sla_class`
is a class of the coordinator's config; of tenants the first {MAX_TENANTS} have their own label
value, the others share `{OTHER}`. `role` is what a node does now (prefill, decode, mixed, closed);
a role switch begins a new series. No label holds a request's id.

Bounds of all histograms, in seconds:
{", ".join(f"{bound:g}" for bound in TIME_BUCKETS_S)}.
The coordinator's also have the targets of all its classes, so that the share of requests within a
target can be read off exactly. A percentile cannot say whether a request kept both targets:
`tandem_slo_requests_total` counts that, at each request's end.
"""

VLLM = """## vLLM's names

`--vllm-metrics` on the coordinator and on gateways adds these, for tools that know vLLM's: endpoint
pickers of the Kubernetes Gateway API (queue, running requests, KV use), load generators, screens.
At a gateway `engine` is its name and the KV pool is the whole deployment's; at the coordinator it
is a node's name, and `all` where vLLM has one value per server. There is no
`vllm:inter_token_latency_seconds`: Tandem measures a request's mean and its longest gap, not each
token, and an invented distribution would mislead.
"""


MORE = """## Traces

`--otlp-endpoint http://HOST:4318/v1/traces` on a gateway (`pip install 'tandem-serve[otel]'`)
sends one trace per ended request, over HTTP or ZeroMQ, to an OpenTelemetry collector: `chat MODEL`
or `text_completion MODEL` with `queue`, `prefill`, `kv_transfer`, `decode_wait` and `decode` below
it. A `traceparent` header makes it a child of the caller's span, and is obeyed where it says not
to sample. Attributes are those of the GenAI conventions (`gen_ai.usage.input_tokens`,
`gen_ai.response.finish_reasons`, ...), vLLM's latencies (`gen_ai.latency.time_to_first_token`,
...), and `tandem.node`, `tandem.transfer_bytes`, `tandem.sla_class`, `tandem.sla_attained`,
`tandem.tenant`, `tandem.num_attempts`. Prompts and answers are never in them. Spans are made when
a request has ended; without the flag nothing is.

## KV events

`--kv-events-port PORT` on a node publishes what enters and leaves its prefix cache in the format
of vLLM's ZeroMQ events: a PUB socket, frames topic (`kv@NODE@MODEL`), sequence number (8 bytes,
big-endian), and a MessagePack batch of `BlockStored`, `BlockRemoved` and `AllBlocksCleared` as
tagged arrays. A block is a page. What differs: hashes are the first 8 bytes of Tandem's keyed page
hashes, so nobody can compute those of a prompt; `token_ids` are empty and `parent_block_hash` is
null; there is no replay socket (a gap in the numbers says that something was missed;
`AllBlocksCleared` begins a list of everything, which comes whenever the coordinator asks for one).
Subscribers are not asked for a key: the socket is on loopback, or on `--host` with
`--allow-unauthenticated`.
"""


def render() -> str:
    """The page."""
    parts = [HEAD]
    titles: tuple[tuple[str, Process], ...] = (
        ("Of the coordinator", "coordinator"),
        ("Of a gateway", "gateway"),
        ("Of both", "both"),
    )
    for title, process in titles:
        parts.append(f"## {title}\n")
        parts.append(_table(each for each in TABLE if each.process == process))
    return "\n".join((*parts, VLLM, _table(VLLM_TABLE), MORE))


def _table(metrics: Iterable[Metric]) -> str:
    lines = ["| metric | type | unit | labels | meaning |", "|-|-|-|-|-|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        text = metric.help.replace("|", "\\|")
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {text} |")
    return "\n".join(lines) + "\n"
