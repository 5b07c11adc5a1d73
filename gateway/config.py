"""What an operator may set on a gateway; flags, variables and file keys follow from it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tandem.config import Help


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Run a gateway: clients, tokenising, exactly-once streams."""

    model: Annotated[str, Help("model folder, or a Hub name to download")]
    host: Annotated[str, Help("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Help("port for clients; 0 picks a free one")] = 7301
    http_host: Annotated[str, Help("address to listen on for HTTP")] = "127.0.0.1"
    http_port: Annotated[
        int, Help("port for HTTP callers; 0 picks a free one, -1 is no HTTP at all")
    ] = 8000
    http_tls_cert: Annotated[
        str | None, Help("PEM file of the HTTP certificate and its chain; default: plain HTTP")
    ] = None
    http_tls_key: Annotated[
        str | None, Help("PEM file of its private key; default: it is in the certificate's file")
    ] = None
    http_max_body_mib: Annotated[int, Help("MiB that the body of an HTTP call may have")] = 16
    http_keep_alive_s: Annotated[
        float, Help("how long an idle HTTP connection stays open for the next call")
    ] = 60.0
    http_idle_s: Annotated[
        float,
        Help("how long HTTP callers may take for a request's head, or leave an answer unread"),
    ] = 10.0
    http_comment_s: Annotated[
        float, Help("a comment keeps an event stream open that has been silent for so long")
    ] = 10.0
    max_http_connections: Annotated[int, Help("HTTP connections at most; more are refused")] = 4096
    advertised_host: Annotated[
        str | None, Help("host that clients on other machines reach it by; default: host")
    ] = None
    keys: Annotated[
        str | None, Help("keys folder (tandem keys init); without it, loopback only")
    ] = None
    allow_unauthenticated: Annotated[
        bool, Help("listen on an address that other machines reach, without keys")
    ] = False
    coordinator: Annotated[str, Help("address of the coordinator")] = "tcp://127.0.0.1:7300"
    name: Annotated[
        str | None, Help("gateway name, unique in the deployment; default: made up")
    ] = None
    served_model_name: Annotated[
        str | None, Help("name that clients call the model by; default: the folder's name")
    ] = None
    max_model_len: Annotated[
        int | None, Help("longest prompt plus answer in tokens; default: the nodes'")
    ] = None
    max_live_requests: Annotated[int, Help("requests in flight at most; more are refused")] = 1024
    max_prompt_mib: Annotated[
        int, Help("MiB that prompts waiting for the tokenizer may take; more are refused")
    ] = 256
    tenants: Annotated[
        str | None, Help("TOML file of tenants: their client keys, weights, rates and limits")
    ] = None
    client_messages_per_s: Annotated[
        float, Help("messages that a client may send in the long run; ten times that at once")
    ] = 2000.0
    client_silence_s: Annotated[
        float, Help("a client that says nothing of a request for so long loses it")
    ] = 30.0
    max_client_backlog_kib: Annotated[
        int, Help("KiB of one stream that a client may leave unacknowledged")
    ] = 4096
    num_tokenizer_threads: Annotated[int, Help("threads that tokenise prompts")] = 2
    drain_s: Annotated[float, Help("how long Ctrl-C waits for requests in flight")] = 30.0
    length_predictor: Annotated[
        str | None, Help("file of `tandem train-predictor`; default: a table of recent lengths")
    ] = None
    record_dir: Annotated[
        str | None, Help("folder to record lengths in, for `tandem train-predictor`; no text")
    ] = None
    vllm_metrics: Annotated[
        bool, Help("GET /metrics also under vLLM's names, for tools that know those")
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        Help("OpenTelemetry collector for a trace per request, as http://HOST:4318/v1/traces"),
    ] = None
    event_log: Annotated[
        str | None, Help("file or folder to record every event and decision in, for scripts/replay")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Help("least severe log lines shown")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Help("of log lines, on standard error")] = "text"

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        for name in (
            "max_live_requests",
            "max_prompt_mib",
            "max_client_backlog_kib",
            "num_tokenizer_threads",
            "http_max_body_mib",
            "max_http_connections",
        ):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"{flag} is {getattr(self, name)}, but must be at least 1")
        for name in ("http_keep_alive_s", "http_idle_s", "http_comment_s"):
            if getattr(self, name) <= 0:
                flag = name.replace("_", "-")
                raise ValueError(f"{flag} is {getattr(self, name):g}, but must be above 0")
        if not -1 <= self.http_port <= 65535:
            raise ValueError(
                f"http-port is {self.http_port}: give 1 to 65535, 0 for a free one, -1 for none"
            )
        if self.client_silence_s < 1:
            raise ValueError(
                f"client-silence-s is {self.client_silence_s:g}, but clients speak once per "
                "second: it must be at least 1"
            )
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(
                f"max-model-len is {self.max_model_len}, but prompt and answer need at least 2"
            )
