"""The coordinator's scrape: what members say, and how requests ended."""

from prometheus_client.parser import text_string_to_metric_families

from coordinator.metrics import CoordinatorMetrics, outcome_of
from tandem import metrics as m
from tandem import metrics_vllm as v
from tandem.messages.common import SlaTargets, Timeline
from tandem.messages.membership import Goodbye
from tandem.messages.placement import PlaceRefused
from tests.coordinator.conftest import Cluster

TARGETS = SlaTargets(sla_class="interactive", ttft_ms=500, tpot_ms=50)


def scrape(metrics: CoordinatorMetrics, cluster: Cluster) -> dict[tuple[str, ...], float]:
    """(sample's name, label values in the order of their names) -> value."""
    text = metrics.render(cluster.now).decode()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def timeline(**changes) -> Timeline:
    stages = {
        "prefill_start_s": 0.2,
        "first_token_s": 0.3,
        "transfer_end_s": 0.35,
        "decode_start_s": 0.4,
        "finished_s": 1.4,
    }
    return Timeline(received_unix_s=1e9, **{**stages, **changes})


def test_nodes_are_as_their_heartbeats_say(cluster: Cluster) -> None:
    metrics = CoordinatorMetrics(cluster.core)
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    cluster.beat("p0", num_transfers_done=7, num_transfers_failed=2, transfer_bytes=4096)
    cluster.beat("d0", used=48, num_decode_running=5, busy_s=12.5, draining=True)
    found = scrape(metrics, cluster)
    assert found["tandem_nodes", "prefill"] == 1 and found["tandem_nodes", "decode"] == 0
    assert found["tandem_nodes_draining",] == 1
    assert found["tandem_node_transfers_total", "p0", "done", "prefill"] == 7
    assert found["tandem_node_transfers_total", "p0", "failed", "prefill"] == 2
    assert found["tandem_node_transfer_bytes_total", "p0", "prefill"] == 4096
    assert found["tandem_node_pages_used_ratio", "d0", "decode"] == 0.75
    assert found["tandem_node_pages", "d0", "decode", "active"] == 48
    assert found["tandem_node_requests", "d0", "decode", "decode_running"] == 5
    assert found["tandem_node_busy_seconds_total", "d0", "decode"] == 12.5
    assert found["tandem_model_info", "demo"] == 1


def test_a_node_that_went_silent_is_lost_and_one_that_left_is_not(cluster: Cluster) -> None:
    metrics = CoordinatorMetrics(cluster.core)
    assert scrape(metrics, cluster)["tandem_nodes_lost_total",] == 0
    for name in ("p0", "p1"):
        cluster.join(name, "prefill")
        cluster.beat(name)
    cluster.send("p1", Goodbye(node_id="p1", incarnation=1, epoch=cluster.epochs["p1"]))
    cluster.pass_time(4)
    found = scrape(metrics, cluster)
    assert found["tandem_nodes_lost_total",] == 1
    assert not [key for key in found if "p0" in key], "its series are gone with it"


def test_an_end_is_counted_by_class_and_outcome(cluster: Cluster) -> None:
    metrics = CoordinatorMetrics(cluster.core)
    of = {"sla_class": "interactive", "targets": TARGETS}
    metrics.ended(cluster.report(1, **of, num_prompt_tokens=30, num_cached_tokens=16))
    metrics.ended(cluster.report(2, **of, sla_attained=False, ttft_ms=900.0))
    metrics.ended(cluster.report(3, **of, reason="failed", code="overloaded", num_output_tokens=0))
    metrics.ended(cluster.report(4, sla_class="", reason="failed", code="node_failed"))
    found = scrape(metrics, cluster)
    name = "tandem_slo_requests_total"
    outcomes = {key[1:]: value for key, value in found.items() if key[0] == name and value}
    assert outcomes == {
        ("met", "interactive"): 1,
        ("ttft", "interactive"): 1,
        ("shed", "interactive"): 1,
        ("error", "standard"): 1,
    }
    assert found["tandem_prompt_tokens_total", "interactive"] == 30
    assert found["tandem_cached_tokens_total", "interactive"] == 16
    assert found["tandem_request_errors_total", "node_failed"] == 1


def test_stages_come_from_the_timeline(cluster: Cluster) -> None:
    metrics = CoordinatorMetrics(cluster.core)
    metrics.ended(cluster.report(1, timeline=timeline(), ttft_ms=300.0, max_itl_ms=40.0))
    one_token = timeline(transfer_end_s=None, decode_start_s=None)
    metrics.ended(cluster.report(2, timeline=one_token, ttft_ms=300.0, tpot_ms=None))
    found = scrape(metrics, cluster)
    for stage, total, num in (
        ("queue", 0.4, 2),
        ("prefill", 0.2, 2),
        ("transfer", 0.05, 1),
        ("decode_admission", 0.05, 1),
        ("e2e", 2.8, 2),
        ("max_itl", 0.04, 1),
        ("tpot", 0.005, 1),
    ):
        assert found[f"tandem_request_{stage}_seconds_count", "standard"] == num, stage
        assert abs(found[f"tandem_request_{stage}_seconds_sum", "standard"] - total) < 1e-9, stage
    # The standard class promises 2 s: the share within it can be read off.
    assert found["tandem_request_ttft_seconds_bucket", "2.0", "standard"] == 2


def test_outcomes_name_what_was_late(cluster: Cluster) -> None:
    def outcome(**changes) -> str:
        return outcome_of(cluster.report(1, sla_attained=False, **changes), TARGETS)

    assert outcome(ttft_ms=501.0, tpot_ms=50.0) == "ttft"
    assert outcome(ttft_ms=500.0, tpot_ms=51.0) == "tpot"
    assert outcome(ttft_ms=501.0, tpot_ms=51.0) == "both"
    assert outcome(ttft_ms=None, tpot_ms=None, reason="cancelled") == "ttft"
    assert outcome(reason="failed", code="overloaded") == "shed"
    assert outcome(reason="failed", code="deadline_exceeded") == "error"


def test_tenants_and_refusals_have_bounded_labels(cluster: Cluster) -> None:
    metrics = CoordinatorMetrics(cluster.core)
    for number in range(m.MAX_TENANTS + 20):
        metrics.ended(cluster.report(number, tenant=f"client/{number}"))
    refused = PlaceRefused(
        request_id=bytes(16), attempt=1, code="no_decode_node", message="there is none"
    )
    metrics.refused(refused)
    metrics.event("order")
    found = scrape(metrics, cluster)
    tenants = {key[-1]: n for key, n in found.items() if key[0] == "tandem_tenant_requests_total"}
    assert len(tenants) == m.MAX_TENANTS + 1 and tenants[m.OTHER] == 20
    assert found["tandem_placements_refused_total", "no_decode_node"] == 1
    assert found["tandem_events_total", "order"] == 1


def test_vllm_names_are_there_only_when_asked_for(cluster: Cluster) -> None:
    plain = CoordinatorMetrics(cluster.core)
    named = CoordinatorMetrics(cluster.core, with_vllm_names=True)
    cluster.join("p0", "prefill")
    cluster.join("d0", "decode")
    cluster.beat("d0", used=16, num_decode_running=3, num_decode_waiting=2)
    for metrics in (plain, named):
        metrics.ended(cluster.report(1, timeline=timeline(), num_prompt_tokens=30, ttft_ms=300.0))
    assert not [key for key in scrape(plain, cluster) if key[0].startswith("vllm:")]
    found = scrape(named, cluster)
    assert found[v.RUNNING.name, "d0", "demo"] == 3
    assert found[v.WAITING.name, "d0", "demo"] == 2
    assert found[v.KV_USAGE.name, "d0", "demo"] == 0.25
    assert found["vllm:cache_config_info", "16", "d0", "demo", "64"] == 1
    assert found["vllm:prompt_tokens_total", "all", "demo"] == 30
    assert found["vllm:request_success_total", "all", "stop", "demo"] == 1
    assert found["vllm:time_to_first_token_seconds_count", "all", "demo"] == 1
