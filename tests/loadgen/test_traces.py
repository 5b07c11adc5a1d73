"""Traces and arrivals: formats, windows, copies, and a random stream of its own for each."""

import itertools
import json
import statistics

import pytest

from loadgen.traces import constant_trace, overlaid, read_trace, sampled
from simulator.performance.arrivals import Load


def write_mooncake(path, num_requests=10):
    rows = [
        {
            "timestamp": 1000 * i,
            "input_length": 1300 + i,
            "output_length": 5,
            "hash_ids": [0, 10 * i + 1, 10 * i + 2],
        }
        for i in range(num_requests)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return read_trace(path)


def test_mooncake_shares_full_blocks_only(tmp_path):
    trace = write_mooncake(tmp_path / "m.jsonl")
    assert trace.block_tokens == 512
    assert trace.requests[3].arrived_at == 3.0
    assert trace.requests[3].num_prompt == 1303
    assert trace.requests[3].blocks == (0, 31)  # the third block is not full
    assert trace.rate == pytest.approx(10 / 9)


def test_azure_times_begin_at_zero_in_order(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:05.0000000,30,0\n2023-11-16 18:17:03.9799600,4808,10\n"
    )
    trace = read_trace(path)
    assert [(r.num_prompt, r.num_output) for r in trace.requests] == [(4808, 10), (30, 1)]
    assert trace.requests[1].arrived_at == pytest.approx(1.02004, abs=1e-5)


def test_lengths_need_arrivals(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n74,918\n290,905\n")
    trace = read_trace(path)
    assert not trace.has_times
    with pytest.raises(ValueError, match="poisson"):
        Load(trace=trace, num_requests=2, process="trace")
    with pytest.raises(ValueError, match="rate"):
        Load(trace=trace, num_requests=2)


def test_other_files_are_explained(tmp_path):
    with pytest.raises(ValueError, match="no trace at"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="ContextTokens"):
        read_trace(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text('{"timestamp": "soon"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl"):
        read_trace(tmp_path / "x.jsonl")


def test_copies_keep_the_rate_per_copy_and_share_nothing(tmp_path):
    trace = write_mooncake(tmp_path / "m.jsonl")
    many = overlaid(trace, 35, seed=1)
    assert len(many.requests) == 35
    times = [r.arrived_at for r in many.requests]
    assert times == sorted(times)
    assert max(times) <= 10.0
    heads = {r.blocks[0] for r in many.requests}
    assert len(heads) == 4  # a system prompt per copy
    assert many == overlaid(trace, 35, seed=1) != overlaid(trace, 35, seed=2)


def test_a_window_begins_at_zero(tmp_path):
    trace = write_mooncake(tmp_path / "m.jsonl", 50)
    windows = [overlaid(trace, 10, seed) for seed in range(5)]
    assert all(w.requests[0].arrived_at == 0.0 for w in windows)
    assert len({w.requests[0].num_prompt for w in windows}) > 1


@pytest.mark.parametrize(
    ("process", "low", "high"), [("poisson", 0.9, 1.1), ("gamma", 2.5, 3.5), ("mmpp", 1.1, 2.5)]
)
def test_arrivals_have_the_rate_and_the_burstiness(process, low, high):
    load = Load(trace=constant_trace(8, 8), num_requests=15_000, rate=50.0, process=process)
    times = [r.arrived_at for r in load.requests(seed=3).requests]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.02, rel=0.1)
    assert low < statistics.stdev(gaps) / statistics.mean(gaps) < high


def test_arrivals_and_lengths_are_independent_streams(tmp_path):
    path = tmp_path / "s.csv"
    rows = "".join(f"{i},{2 * i}\n" for i in range(1, 100))
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + rows)
    trace = read_trace(path)
    loads = [
        Load(trace=trace, num_requests=50, rate=rate, process=process).requests(7)
        for rate, process in ((1.0, "poisson"), (9.0, "gamma"))
    ]
    lengths = [[(r.num_prompt, r.num_output) for r in load.requests] for load in loads]
    assert lengths[0] == lengths[1]
    assert len(sampled(trace, 250, 0).requests) == 250


def test_a_trace_is_scaled_to_a_rate(tmp_path):
    trace = write_mooncake(tmp_path / "m.jsonl")
    load = Load(trace=trace, num_requests=10, rate=20.0, process="trace")
    assert load.requests(0).rate == pytest.approx(20.0)
    alone = Load(trace=trace, num_requests=1, rate=20.0, process="trace")
    assert len(alone.requests(0).requests) == 1
