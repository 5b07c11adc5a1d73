"""The table's names, and the text of a scrape."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem import metrics as m
from tandem.exposition import Capped, Histogram, Tally, family, render
from tandem.metrics_vllm import VLLM_TABLE

UNITS = {"seconds": "_seconds", "bytes": "_bytes", "ratio": "_ratio"}


@pytest.mark.parametrize("metric", m.TABLE, ids=lambda metric: metric.name)
def test_names_say_kind_and_base_unit(metric: m.Metric) -> None:
    assert re.fullmatch(r"(tandem|process)_[a-z0-9_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    base = metric.name.removesuffix("_total")
    for unit, suffix in UNITS.items():
        assert base.endswith(suffix) == (metric.unit == unit), metric
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert metric.help.endswith(".") and "request_id" not in metric.labels


def test_no_name_is_there_twice() -> None:
    names = [metric.name for metric in (*m.TABLE, *VLLM_TABLE)]
    assert len(set(names)) == len(names)
    assert list(m.TIME_BUCKETS_S) == sorted(set(m.TIME_BUCKETS_S))


def test_a_histogram_counts_up_to_its_bounds() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert histogram.buckets() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert histogram.total == pytest.approx(7.65)


def test_targets_are_bounds_of_all_histograms() -> None:
    tally = Tally([0.123])
    tally.histogram(m.TTFT, ("a",)).observe(0.123)
    counted = dict(tally.histogram(m.TTFT, ("a",)).buckets())
    assert counted["0.123"] == 1 and counted["0.1"] == 0


def test_names_beyond_the_cap_share_one_label() -> None:
    capped = Capped(2)
    assert [capped.label(name) for name in ("a", "b", "c", "a", "d")] == [
        "a",
        "b",
        m.OTHER,
        "a",
        m.OTHER,
    ]


def test_a_scrape_reads_back() -> None:
    tally = Tally()
    tally.add(m.REQUEST_ERRORS, ('quote " and \\ and \n',), 2)
    tally.histogram(m.E2E, ("c",)).observe(0.5)
    text = render([*tally.families(), family(m.NODES, {("prefill",): 3})]).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    (error,) = found["tandem_request_errors"].samples
    assert (error.labels["code"], error.value) == ('quote " and \\ and \n', 2)
    assert found["tandem_nodes"].samples[0].value == 3
    counts = [s for s in found[m.E2E.name].samples if s.name.endswith("_count")]
    assert [sample.value for sample in counts] == [1]
    assert "process_resident_memory_bytes" in found
