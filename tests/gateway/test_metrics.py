"""A gateway's scrape: the ledger's numbers, ends, refusals, HTTP calls."""

import pytest

from gateway.metrics import GatewayMetrics
from gateway.metrics_http import HttpMeter
from gateway.pool_view import PoolView
from gateway.tracing import Caller
from tandem.messages.client import Done
from tandem.messages.common import Timeline, Usage
from tandem.messages.placement import GatewayWelcome
from tests.gateway.scrapes import PATHS, App, Numbers, call, scrape, served_http


def make_metrics(pools: PoolView | None = None, *, vllm: bool = False) -> GatewayMetrics:
    pools = PoolView() if pools is None else pools
    return GatewayMetrics(
        Numbers(), Numbers(), pools, gateway_id="gw", model_name="demo", with_vllm_names=vllm
    )


def done(**changes) -> Done:
    fields = {
        "request_id": bytes(16),
        "reason": "stop",
        "usage": Usage(num_prompt_tokens=30, num_output_tokens=11),
        "timeline": Timeline(received_unix_s=1e9, first_token_s=0.5, finished_s=1.5),
        "sla_class": "standard",
        "sla_attained": True,
    }
    return Done(**{**fields, **changes})


def test_the_ledger_is_read_at_the_scrape() -> None:
    found = scrape(make_metrics())
    assert found["tandem_gateway_live_requests",] == 5
    assert found["tandem_gateway_waiting_requests",] == 2
    assert found["tandem_gateway_output_tokens_total",] == 900
    assert found["tandem_gateway_resends_total",] == 4
    assert found["tandem_gateway_cut_clients_total",] == 3


def test_ends_refusals_and_tokenising_are_counted() -> None:
    metrics = make_metrics()
    metrics.ended(done())
    metrics.refused("rate_limited")
    metrics.tokenised(0.004)
    found = scrape(metrics)
    assert found["tandem_gateway_requests_ended_total", "stop"] == 1
    assert found["tandem_gateway_requests_ended_total", "failed"] == 0
    assert found["tandem_gateway_refusals_total", "rate_limited"] == 1
    assert found["tandem_gateway_tokenising_seconds_bucket", "0.005"] == 1
    assert found["tandem_gateway_tokenising_seconds_bucket", "0.003"] == 0


def test_http_calls_count_by_route_and_made_up_paths_share_one() -> None:
    metrics = make_metrics()
    app = served_http(metrics)
    found = scrape(metrics)
    name = "tandem_http_requests_total"
    assert {key[1:]: n for key, n in found.items() if key[0] == name} == {
        ("GET", "/v1/models", "200"): 1,
        ("GET", "/v1/models/{id:path}", "200"): 1,
        ("POST", "/v1/chat/completions", "200"): 1,
        ("other", "other", "404"): 1,
    }
    assert found["tandem_http_first_byte_seconds_count", "/v1/chat/completions"] == 1
    assert app.num_open == [0, 0, 1, 0] and metrics.num_open_streams == 0
    assert app.callers[2] == Caller("/v1/chat/completions", "00-1-2-01")
    assert app.callers[3] == Caller("other", None)


def test_a_call_that_breaks_leaves_no_stream_open() -> None:
    metrics = make_metrics()
    with pytest.raises(RuntimeError):
        call(HttpMeter(App(), metrics, PATHS), "/broken")
    assert metrics.num_open_streams == 0


def test_vllm_names_show_the_deployment_as_one_engine() -> None:
    pools = PoolView()
    metrics = make_metrics(pools, vllm=True)
    assert ("vllm:kv_cache_usage_perc", "gw", "demo") not in scrape(metrics), "nothing known yet"
    welcome = GatewayWelcome(
        coordinator_incarnation=1,
        sla_classes=(),
        default_class="standard",
        num_prefill_nodes=1,
        num_decode_nodes=1,
        page_size=16,
        num_pages=128,
        kv_used_share=0.25,
    )
    pools.welcome(welcome, 1.0)
    metrics.ended(done())
    found = scrape(metrics)
    assert found["vllm:num_requests_running", "gw", "demo"] == 3
    assert found["vllm:num_requests_waiting", "gw", "demo"] == 2
    assert found["vllm:kv_cache_usage_perc", "gw", "demo"] == 0.25
    assert found["vllm:cache_config_info", "16", "gw", "demo", "128"] == 1
    assert found["vllm:request_time_per_output_token_seconds_sum", "gw", "demo"] == 0.1
    assert found["vllm:generation_tokens_total", "gw", "demo"] == 900
    assert not [key for key in scrape(make_metrics(pools)) if key[0].startswith("vllm:")]
