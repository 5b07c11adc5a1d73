"""Hand-off and interference benchmarks: what their figures are made of."""

import os
import re
from pathlib import Path

import pytest

from benchmarks.handoff import exposed
from benchmarks.handoff.cases import FULL
from benchmarks.handoff.catalogue import ALL, PARTS
from benchmarks.handoff.copying import CopyCosts, copy_costs
from benchmarks.handoff.stream import Near, far_side
from benchmarks.handoff.wire import Size
from benchmarks.interference.cores import here, memory_load
from benchmarks.interference.layouts import layouts
from benchmarks.interference.streams import Windows
from benchmarks.stamped import ADMITTED, TOKEN, StampBook, stamped
from tandem.child_process import ProcessPlan

ID = "0f" * 16


def test_stamps_are_read_from_the_output_of_nodes() -> None:
    book = StampBook()
    for line in (
        f"stamp {ADMITTED} {ID} 12.5000000",
        f"stamp {TOKEN} {ID} 12.7000000",
        f"stamp {TOKEN} {ID} 12.9000000",
        "ready decode tcp://127.0.0.1:1",
    ):
        book.take_line("decode-0", line)
    assert book.wait_for(ADMITTED, ID) == 12.5
    assert book.tokens_of(ID) == [12.7, 12.9]
    assert book.tokens_of("aa" * 16) == []
    with pytest.raises(TimeoutError, match="no node told the moment 'token'"):
        book.wait_for(TOKEN, "aa" * 16, timeout_s=0.01)


def test_only_nodes_are_started_with_stamps() -> None:
    node = ProcessPlan(name="decode-0", module="decode_node", flags=("--a",))
    gateway = ProcessPlan(name="gateway", module="gateway", flags=("--b",))
    assert stamped(gateway) is gateway
    altered = stamped(node)
    assert (altered.module, altered.flags) == ("benchmarks.stamped", ("decode_node", "--a"))


def test_a_hand_off_is_the_sum_of_its_parts() -> None:
    handoffs = [
        exposed.Handoff(ttft_s=1.0, parts_s=(0.002, 0.001, 0.003, 0.004), num_bytes=64),
        exposed.Handoff(ttft_s=2.0, parts_s=(0.004, 0.001, 0.003, 0.012), num_bytes=64),
        exposed.Handoff(ttft_s=4.0, parts_s=(0.006, 0.001, 0.003, 0.030), num_bytes=64),
    ]
    row = exposed.summarise("m", 1024, handoffs, CopyCosts(0.0, 0.5, 0.0))
    assert (row["copies_ms"], row["copies_share"]) == (32_000, 16)
    assert (row["ttft_ms"], row["exposed_ms"], row["share"]) == (2000, 20, 0.01)
    assert row["parts_ms"] == {"copy": 4, "commit": 1, "verify": 3, "admit": 12}
    assert row["worst_share"] == 0.01


def test_costs_of_copies_are_told_per_byte() -> None:
    costs = copy_costs(FULL[0].page_bytes, pool_bytes=4 << 20)
    assert 0 < costs.copy < 1e-7 and 0 < costs.verification < 1e-7
    assert FULL[0].token_bytes == 2 * 8 * 5 * 64 * 4


def test_gaps_belong_to_the_window_that_both_tokens_came_in() -> None:
    windows = Windows({"calm": [(0.0, 1.0), (2.0, 3.0)], "disturbed": [(1.0, 2.0)]})
    times = [[0.1, 0.3, 0.9, 1.2, 1.4, 2.5, 2.6], [1.5]]
    assert windows.gaps_s("calm", times) == pytest.approx([0.2, 0.6, 0.1])
    assert windows.gaps_s("disturbed", times) == pytest.approx([0.2])
    assert windows.gaps_s("other", times) == []
    with windows.open("other"):
        pass
    assert len(windows.spans["other"]) == 1


def test_layouts_differ_in_where_prefill_is() -> None:
    split, memory, mixed = layouts([3, 5, 7])
    assert split.decode == {3} and split.others == {5}
    assert (split.num_prefill, mixed.num_prefill) == (1, 0)
    assert mixed.decode == mixed.others == {3, 5} and not memory.has_prompts
    with pytest.raises(ValueError, match="this process has one"):
        layouts([0])


def test_a_memory_load_runs_where_it_is_told_and_ends() -> None:
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    with here({core}), memory_load(core):
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


def test_pages_and_bare_stream_between_two_processes() -> None:
    size = Size(page_kib=64, num_pages=16)
    assert (size.num_bytes, size.num_chunks) == (1 << 20, 2)
    with far_side(size, encrypt=True) as control:
        near = Near(size, control, encrypt=True)
        try:
            assert min(near.send_pages(), near.send_pages(), near.send_bare()) > 0
        finally:
            near.close()


def test_the_page_of_claims_names_both_commands() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/claims.md").read_text()
    assert set(re.findall(r"scripts/bench handoff (\w+)", text)) == PARTS.keys() - {ALL}
    assert "`scripts/bench handoff`" in text and "`scripts/bench interference`" in text
