"""Pages, links, histogram, intervals, layouts and break-even, each alone."""

import math

import numpy as np
import pytest

from loadgen.traces import constant_trace
from node.growth import Grower, Overcommit
from simulator.performance.break_even import break_even
from simulator.performance.candidates import BlockHolders
from simulator.performance.links import Links
from simulator.performance.meters import GapHistogram
from simulator.performance.pages import BlockPages
from simulator.performance.plots import explain_missing_plots
from simulator.performance.results import interval
from simulator.performance.scenario import Layout, parse_layout, simulate
from tests.performance.conftest import make_profile, make_scenario


def test_blocks_are_shared_cached_and_evicted_tail_first():
    holders = BlockHolders()
    pages = BlockPages(10, 2, Overcommit("full"), holders.listener(0))
    first, other = (b"first", 1), (b"other", 1)
    assert pages.claim((), 6, Grower(first, 1, 1)) == 1
    assert pages.publish([1, 2]) == [1, 2]
    assert pages.claim((1,), 4, None) == 0  # another request with the same head
    assert pages.claim((1, 2), 6, None) is None
    pages.release(first, [1, 2], 2, 1)
    pages.release(other, [1], 2, 0)
    assert (pages.num_held, pages.num_cached, pages.num_available) == (0, 4, 10)
    assert holders.matches((1, 2, 3)) == {0: 2}
    assert pages.claim((), 8, None) == 0  # takes the tail's pages
    assert pages.match((1, 2)) == 1
    assert holders.matches((1, 2)) == {0: 1}
    assert pages.num_evicted == 1


def test_the_nodes_that_have_a_prefix_are_found_by_depth():
    holders = BlockHolders()
    for node, blocks in enumerate([(1, 2, 3), (1, 2), (9,)]):
        for block in blocks:
            holders.listener(node)(block, True)
    assert holders.matches((1, 2, 3, 4)) == {0: 3, 1: 2}
    assert holders.matches(()) == {}


def test_links_serve_in_turn_and_ship_while_chunks_compute():
    links = Links(make_profile(transfer_s=0.0), 3)
    alone = links.ship(0, 1, [(0.0, 10**8), (5.0, 10**7)])
    assert alone == pytest.approx(5.1)
    # The receiver is busy with 1.1 s of work from 0.0 on, of which this one sees the rest.
    assert links.ship(2, 1, [(0.6, 10**8)]) == pytest.approx(2.1)
    assert links.num_bytes == 21 * 10**7


def test_percentiles_of_gaps_are_right_to_a_percent():
    histogram = GapHistogram()
    gaps = np.linspace(0.001, 1.0, 1000)
    histogram.add_many(gaps, 3)
    histogram.add(50.0)
    for share in (0.1, 0.5, 0.99):
        assert histogram.percentile(share) == pytest.approx(share, rel=0.02)
    assert histogram.num_gaps == 3001
    assert math.isnan(GapHistogram().percentile(0.5))


def test_intervals_are_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.plus_minus == pytest.approx(4.30 / math.sqrt(3), rel=1e-3)
    assert interval([1.0]).plus_minus == math.inf


@pytest.mark.parametrize("text", ["2p3d", "4m", "1p2d1m"])
def test_layouts_are_read_and_written(text):
    assert str(parse_layout(text)) == text


@pytest.mark.parametrize("text", ["", "2p", "3x", "1p1p1d", "0p1d", "p1d"])
def test_layouts_that_cannot_serve_are_refused(text):
    with pytest.raises(ValueError, match="node"):
        parse_layout(text)


def test_break_even_falls_with_the_bandwidth():
    tokens = []
    for bandwidth in (1e7, 1e9):
        profile = make_profile(transfer_bytes_per_s=bandwidth)
        found = break_even(profile, num_rows=8, num_context=4000, tpot_s=0.02, chunk_tokens=256)
        tokens.append(found.num_tokens or 10**9)
        assert "prompt" in str(found)
    assert tokens[1] < tokens[0]


def test_missing_matplotlib_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install" in (explain_missing_plots() or "")


def test_fewer_candidates_do_not_change_what_the_least_loaded_policy_chooses():
    """The nodes that are offered contain the one that it would have chosen among all."""
    changes = {"placement_policy": "least_loaded", "trace": constant_trace(300, 30)}
    every, some = (
        simulate(
            make_scenario("12p8d", rate=100.0, num_requests=300, max_candidates=limit, **changes)
        )
        for limit in (None, 8)
    )
    assert [r.finished_at for r in every.requests] == [r.finished_at for r in some.requests]


def test_twenty_nodes_and_two_thousand_requests():
    scenario = make_scenario("12p8d", rate=150.0, num_requests=2000, max_candidates=16)
    result = simulate(scenario)
    assert result.summary()["num_finished"] == result.summary()["num_requests"]
    assert result.summary()["cached_share"] > 0.1
    assert Layout(num_prefill=12, num_decode=8).num_nodes == 20


def test_equal_seeds_give_equal_results_and_others_do_not():
    profile = make_profile(noise_sigma=0.1)
    summaries = [
        simulate(make_scenario("1p1d", num_requests=100, profile=profile, seed=seed)).summary()
        for seed in (1, 1, 2)
    ]
    assert summaries[0] == summaries[1] != summaries[2]
