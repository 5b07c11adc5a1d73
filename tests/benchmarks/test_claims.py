"""Claims and comparisons: their documents name what exists, their figures are what they say."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.claims import grouping, ordering, paged_allocators
from benchmarks.claims.catalogue import CLAIMS
from benchmarks.claims.scheduler_cost import plan_times_ms
from benchmarks.claims.utilisation import row_shares
from benchmarks.claims.views import node_view
from benchmarks.compare.calibration import as_toml
from benchmarks.compare.catalogue import COMPARISONS
from benchmarks.compare.policies_sim import variants
from benchmarks.compare.sim_report import (
    FIGURES,
    Beside,
    Compared,
    compared,
    num_swapped_pairs,
    simulated_figures,
)
from benchmarks.compare.sim_vs_real import replayed
from benchmarks.decode_step.catalogue import STEPS
from benchmarks.kernels.catalogue import KERNELS
from benchmarks.options import Options
from benchmarks.report import Report, Table, publish
from benchmarks.run import parse_options, run_benchmark
from benchmarks.simulated import Variant, paired_ratio, run_variant, scenario, trace_from
from benchmarks.traces import SOURCES, Lengths, load_lengths, sample_lengths
from loadgen.open_loop import DueRequest, OpenMeasurement, Outcome
from scheduling.batch.catalogue import BATCH_POLICIES, make_batch_policy
from simulator.performance.profiles import load_profile, parse_profile
from simulator.performance.scenario import simulate

ROOT = Path(__file__).resolve().parents[2]
CLAIMS_PAGE = ROOT / "docs/claims.md"
QUICK = Options(quick=True, traces=None, seed=0)


def test_the_page_of_claims_names_commands_that_exist_and_all_of_them() -> None:
    text = CLAIMS_PAGE.read_text()
    named = set(re.findall(r"scripts/bench (claims|compare|kernels|decode_step) (\w+)", text))
    catalogues = {
        "claims": CLAIMS,
        "compare": COMPARISONS,
        "kernels": KERNELS,
        "decode_step": STEPS,
    }
    there = {(kind, name) for kind, catalogue in catalogues.items() for name in catalogue}
    assert named == there


def test_the_page_of_claims_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", CLAIMS_PAGE.read_text())
    missing = [link for link in links if not (CLAIMS_PAGE.parent / link).exists()]
    assert links and not missing


def test_a_report_ends_with_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("speeds", ("name", "x"), [["first", "1.0"], ["second one", "12.5"]])
    report = Report([table], ("a note",), {"x": 12.5})
    publish("claims speed", lambda: report, {"quick": True})
    *text, last = capsys.readouterr().out.splitlines()
    assert text == [
        "speeds", "name           x", "first        1.0", "second one  12.5", "", "- a note",
    ]  # fmt: skip
    document = json.loads(last)
    assert document["benchmark"] == "claims speed" and document["figures"] == {"x": 12.5}
    assert document["settings"] == {"quick": True} and document["machine"]["num_cpus"] >= 1


def test_errors_of_a_benchmark_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(options: Options) -> Report:
        raise ValueError(f"no {options.seed}")

    assert run_benchmark("claims", "", {"it": fail}, ["it", "--seed", "7"]) == 1
    assert capsys.readouterr().err == "error: no 7\n"
    with pytest.raises(SystemExit):
        parse_options("p", "", ["it"], ["other"])


def test_allocators_as_a_claim() -> None:
    report = paged_allocators.run(QUICK)
    rows = report.figures["allocators"]
    paged, before = rows["paged 16"], rows[paged_allocators.BASELINE]
    assert paged["useful"] > 0.9 > before["useful"]
    assert paged["concurrency_ratio"] > 1.5 and paged["waste_change"] < -0.7
    assert [row[0] for row in report.tables[0].rows] == list(rows)


def test_drawn_lengths_are_always_the_same(tmp_path: Path) -> None:
    for name in SOURCES:
        assert load_lengths(name, None)[:50] == load_lengths(name, None)[:50]
    few = sample_lengths("sharegpt", None, 20, 1, longest=1500)
    assert len(few) == 20 and max(each.num_final for each in few) <= 1500
    with pytest.raises(ValueError, match="no sharegpt_lengths"):
        load_lengths("sharegpt", tmp_path)


def test_rows_with_a_request() -> None:
    static, continuous = row_shares([9, 2, 9, 2], 2)
    assert (static, continuous) == (18 / 32, 18 / 18)
    assert row_shares([5] * 8, 4) == (1.0, 1.0)


def test_views_for_timing_are_within_what_a_node_shows() -> None:
    view = node_view(100, seed=1)
    assert (len(view.running), len(view.waiting), len(view.prefill)) == (25, 37, 38)
    assert len(plan_times_ms("fifo", 10, 3, seed=0)) == 3


def test_every_policy_has_a_variant_that_can_be_made() -> None:
    made = variants(sorted(BATCH_POLICIES))
    assert [v.batch for v in made].count("fifo") == 1 and made[0].name == "fifo"
    known = [*made, *grouping.MAGNUS_VARIANTS, *grouping.WAIT_VARIANTS, *ordering.GUARDS]
    for variant in known:
        assert make_batch_policy(variant.batch, variant.batch_options) is not None


def test_variants_serve_the_same_requests() -> None:
    base = scenario(trace_from("few", [Lengths(64, 20), Lengths(200, 5)]), 12, 4.0)
    fifo, sjf = (
        run_variant(variant, base, (3,))[0]
        for variant in (Variant("a", "fifo"), Variant("b", "sjf", "sjf", sigma=0.0))
    )
    assert [r.num_output for r in fifo.requests] == [r.num_output for r in sjf.requests]
    assert [r.arrived_at for r in fifo.requests] == [r.arrived_at for r in sjf.requests]
    assert sjf.requests[0].prediction is not None and fifo.requests[0].prediction is None
    assert all(r.finished_at is not None for r in sjf.requests)


def test_ratios_are_paired_by_seed() -> None:
    ratio = paired_ratio([2.0, 4.0], [1.0, 2.0])
    assert (ratio.mean, ratio.plus_minus) == (2.0, 0.0)
    assert str(ratio) == "2.00±0.00"
    assert str(paired_ratio([3.0, 1.0], [2.0, 0.0])) == "2.00±?"
    assert paired_ratio([3.0], [0.0]).figures == {"ratio": 0.0, "plus_minus": None}
    spread = paired_ratio([1.0, 3.0, 0.0], [1.0, 1.0, 2.0])
    assert spread.mean == 1.0 and (spread.plus_minus or 0.0) > 1.0


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = load_profile("a100-llama3-8b")
    path = tmp_path / "here.toml"
    path.write_text(as_toml(profile))
    assert load_profile(str(path)) == profile
    with pytest.raises(ValueError):
        parse_profile({"name": "empty"})


def test_a_real_run_is_replayed_at_its_own_times() -> None:
    requests = [DueRequest(0.1 * n, 30 + n, 4, 1.0, 1.0) for n in range(6)]
    measured = OpenMeasurement(tuple(Outcome(r, 0.0) for r in requests), 0.5)
    result = simulate(replayed(measured, load_profile("a100-llama3-8b"), "fifo", seed=1))
    assert [(r.num_prompt, r.num_output) for r in result.requests] == [
        (30 + n, 4) for n in range(6)
    ]
    assert [r.arrived_at for r in result.requests] == pytest.approx([0.1 * n for n in range(6)])
    figures = simulated_figures(result)
    assert 0 < figures["ttft_p50_ms"] <= figures["ttft_p90_ms"] < 1000


def test_swapped_pairs_leave_ties_out() -> None:
    def row(real: float, simulated: float) -> Compared:
        return compared("", [dict.fromkeys(FIGURES, real)], [dict.fromkeys(FIGURES, simulated)])

    assert num_swapped_pairs([row(10, 10), row(20, 15), row(40, 12)], tie=0.1) == (1, 3)
    assert num_swapped_pairs([row(10, 10), row(10.5, 5)], tie=0.1) == (0, 0)


def test_an_error_counts_beyond_a_tenth_and_twice_the_real_spread() -> None:
    steady = Beside([100.0, 101.0, 99.0], 111.0)
    assert steady.bound == 0.1
    assert not steady.holds
    restless = Beside([80.0, 100.0, 120.0], 130.0)
    assert restless.spread == pytest.approx(0.2)
    assert restless.error == pytest.approx(0.3)
    assert restless.holds
