"""The comparison with other engines: its work, its arithmetic, and engines that fail.

Real engines are driven by `scripts/bench cpu_peers --quick`; here stands a worker of a few lines.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.cpu_peers.catalogue import BASELINE, PEERS, Cell, Site, find_pythons
from benchmarks.cpu_peers.engines import Engine, Worker
from benchmarks.cpu_peers.measure import Figures, Record, measure_cell
from benchmarks.cpu_peers.processes import PeerError, memory_mb, process_tree, worker_path
from benchmarks.cpu_peers.tables import (
    cell_figures,
    cell_table,
    failures,
    num_equal,
    ratio_table,
)
from benchmarks.cpu_peers.work import (
    FULL,
    QUICK,
    Ceilings,
    draw_work,
    output_lengths,
    roofline,
)
from benchmarks.cpu_peers.workers.channel import Request
from loadgen.checkpoint import PRESETS, Shape

WORKER = """
import sys, time
from benchmarks.cpu_peers.workers.channel import Answer, serve

def answer(requests):
    print("whatever a library prints")
    return [Answer(0.1, 0.1 * r.num_tokens, r.prompt_ids[:1] * (r.num_tokens - MISSING))
            for r in requests]

MISSING = int(sys.argv[1])
serve(lambda: ("1.2", answer))
"""
SHAPE = Shape(64, 2, 4, 2, 96, 5000)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with worker_path() as path:
        yield Site({}, tmp_path, path, 1)


def start_worker(missing: int) -> Callable[[Cell, Site], Engine]:
    def start(cell: Cell, site: Site) -> Engine:
        command = [sys.executable, "-c", WORKER, str(missing)]
        return Worker(command, site.environment, site.logs / f"{missing}.log")

    return start


def record(*speeds: float, exact_ids: tuple[tuple[int, ...], ...] = ()) -> Record:
    return Record("1", [Figures(s, 1000 / s, 5000 / s, 100.0, exact_ids) for s in speeds])


def test_lengths_are_long_tailed_and_the_same_in_every_run() -> None:
    lengths = output_lengths(1000, 0)
    assert min(lengths) == 8 and max(lengths) == 256 and 40 < sorted(lengths)[500] < 56
    first, again, other = (draw_work(FULL, 5000, 0, run) for run in (0, 0, 1))
    assert first == again
    assert [r.num_tokens for r in first.batch] == [r.num_tokens for r in other.batch]
    assert not {tuple(r.prompt_ids) for r in first.batch} & {
        tuple(r.prompt_ids) for r in other.batch
    }
    assert {len(r.prompt_ids) for r in first.batch} == {128} and len(first.batch) == 32


def test_the_roofline_by_hand() -> None:
    """The reference's machine and shapes: 45.1 GB/s and 438 GFLOP/s."""
    ceilings = Ceilings(45.1, {"bfloat16": 438.0})
    work = draw_work(FULL, 32_000, 0, 0)
    limit = roofline(PRESETS["300m"], "bfloat16", ceilings, FULL, work)
    assert limit.tpot_ms == pytest.approx(11.9, abs=0.05)
    assert limit.ttft_ms == pytest.approx(1255, rel=0.01)
    flop = 2 * (32 * 128 * 235.97e6 + work.num_output_tokens * 268.74e6)
    assert limit.tokens_per_s == pytest.approx(work.num_output_tokens / (flop / 438e9), rel=1e-3)


def test_ratios_are_paired_by_run() -> None:
    cell = Cell("tiny", "float32", SHAPE, Path())
    records = {
        "tandem-a": record(10.0, 20.0, 40.0, exact_ids=((1, 2), (3, 4))),
        "other": record(5.0, 20.0, 10.0, exact_ids=((1, 2), (3, 5))),
        BASELINE: record(5.0, exact_ids=((1, 2), (3, 4))),
        "gone": Record(failure="not installed"),
    }
    (row,) = [r for r in ratio_table(cell, records).rows if r[1] == "other"]
    assert row == ["tandem-a", "other", "2.00", "2.00", "2.00"]
    assert num_equal(records, "tandem-a") == (2, 2) and num_equal(records, "other") == (1, 2)
    work = draw_work(QUICK, 5000, 0, 0)
    limit = roofline(SHAPE, "float32", Ceilings(10.0, {"float32": 100.0}), QUICK, work)
    rows = cell_table(cell, records, limit).rows
    assert [r[0] for r in rows] == ["tandem-a", "other", BASELINE, "roofline"]
    assert rows[0][4] == "4.00"
    assert failures(cell, records) == ["tiny-float32: gone: not installed"]
    figures = cell_figures(cell, records, limit)["engines"]
    assert figures["tandem-a"]["better_than"]["other"]["tokens_per_s"] == 2.0


def test_a_worker_is_measured_kept_and_ended(site: Site, tmp_path: Path) -> None:
    cell = Cell("tiny", "float32", SHAPE, tmp_path)
    starts = {"good": start_worker(0), "short": start_worker(1), "absent": PEERS["vllm"]}
    records = measure_cell(cell, site, starts, QUICK, num_runs=2, once=["short"], seed=0)
    good = records["good"]
    assert (good.version, len(good.runs), good.failure) == ("1.2", 2, "")
    assert good.median("ttft_ms") == pytest.approx(100) and good.median("memory_mb") > 1
    assert good.median("tpot_ms") == pytest.approx(100)
    assert "7 tokens came, 8 were asked" in records["short"].failure
    assert "not installed: scripts/setup_peers" in records["absent"].failure
    assert "whatever a library prints" in (tmp_path / "0.log").read_text()


def test_an_engine_that_dies_says_why(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="ValueError: no such model"):
        Worker(
            [sys.executable, "-c", "raise ValueError('no such model')"],
            site.environment,
            tmp_path / "dies.log",
        )


def test_a_frozen_worker_goes_on(site: Site) -> None:
    engine = start_worker(0)(Cell("tiny", "float32", SHAPE, Path()), site)
    try:
        assert engine.rest()
        engine.wake()
        (answer,) = engine.answer([Request([7, 8], 3)])
        assert answer.token_ids == [7, 7, 7]
    finally:
        engine.close()


def test_environments_that_are_named_win(tmp_path: Path) -> None:
    found = find_pythons(tmp_path, {"vllm": Path("/somewhere/python")})
    assert found["vllm"] == Path("/somewhere/python")
    assert found["openvino"] == tmp_path / "openvino/bin/python"
    assert found["transformers"] == Path(sys.executable)


def test_memory_of_a_tree_of_processes() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        while len(process_tree(process.pid)) < 2:
            os.sched_yield()
        assert memory_mb(process_tree(process.pid)) > memory_mb([process.pid]) > 0
