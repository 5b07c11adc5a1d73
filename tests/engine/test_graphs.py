"""Captured decode steps over resident rows give what the plain runner gives, whatever came before.

Here "captured" steps are called, not replayed; `test_graphs_gpu.py` has them replayed.
"""

import numpy as np
import pytest
import torch

from engine.decoder import kv_layout
from engine.graphs import captured_sizes, draw_and_advance
from engine.resident_batch import Draw, ResidentBatch, RowStep
from engine.resident_build import StepLimits, kept_logits_bytes, largest_step
from engine.sampler import Sampler
from kernels.decode_rows import POSITION, TOKEN
from node.runner import SampleRequest, SequenceStep, StepBatch
from tandem.sampling import SamplingParams
from tests.engine.resident_world import CONFIG, NUM_PAGES, PARAMS, Request, make_runners, run_both

CPU = torch.device("cpu")
NOTHING = np.zeros(0, np.int32)


def test_the_logits_that_captured_steps_keep_are_counted() -> None:
    layout = kv_layout(CONFIG, 4, "bfloat16")
    assert kept_logits_bytes(100, layout, 1) == 0
    assert kept_logits_bytes(100, layout, 6) == 2 * (1 + 2 + 4) * 100 * 2


def test_sizes_end_with_the_largest_and_rise() -> None:
    assert captured_sizes(1) == (1,)
    assert captured_sizes(6) == (1, 2, 4, 6)
    assert captured_sizes(64) == (1, 2, 4, 8, 16, 32, 48, 64)
    assert captured_sizes(70)[-2:] == (64, 70)


@pytest.mark.timeout(90)  # the first one compiles the CPU's kernels
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bundle", ["plain", "invariant"])
def test_any_course_of_steps_gives_the_plain_runners_tokens(bundle: str, seed: int) -> None:
    plain, ours = run_both(bundle, seed, 100)
    if bundle == "invariant":
        assert torch.equal(ours.pool.tensor[:NUM_PAGES], plain.pool.tensor[:NUM_PAGES])


def test_more_rows_than_pages_for_them() -> None:
    """As many rows as the tests on a device have."""
    _, ours = run_both("plain", 0, 100, max_rows=20)
    assert ours.rows.num_sent_rows > 20


def decoding(num_tokens: int, first_page: int) -> Request:
    """A request whose last token is to be computed next; its pages cover it and no more."""
    pages = list(range(first_page, first_page - (-num_tokens // 4)))
    request = Request((b"%d" % first_page, 1), PARAMS[0], [3] * num_tokens, num_tokens, pages)
    request.num_computed = num_tokens - 1
    return request


def test_a_row_that_goes_on_is_told_of_new_pages_only() -> None:
    _, runner = make_runners("plain", 4)
    rows, request = runner.rows, decoding(6, 0)
    sent = []
    for _ in range(8):
        before = rows.num_sent_rows, rows.num_sent_pages
        drawn = runner.run(StepBatch((request.step(1),))).sampled[0]
        sent.append((rows.num_sent_rows - before[0], rows.num_sent_pages - before[1]))
        assert drawn is not None
        request.tokens.append(drawn.token_id)
        request.num_computed += 1
        if len(request.tokens) > 4 * len(request.pages):
            request.pages.append(20 + len(request.pages))
    # Positions 5 to 12 of pages of 4: new ones are needed at 8 and 12.
    assert sent == [(1, 2), (0, 0), (0, 0), (0, 1), (0, 0), (0, 0), (0, 0), (0, 1)]


def row(hint: str, position: int, pages: list[int], draw: Draw | None = None) -> RowStep:
    step = SequenceStep(np.array([7], np.int32), position, np.array(pages, np.int32), None)
    return RowStep(hint, step, draw)


def test_rows_keep_their_places_and_idle_ones_lie_in_the_scratch_page() -> None:
    rows = ResidentBatch(8, 4, 4, 99, CPU)
    assert rows.place([row(name, 5, [i, i + 10]) for i, name in enumerate("abcde")], 8) == [
        *range(5)
    ]
    # b and d end, f comes: c keeps its place, e and f fill up, what is left is idle.
    assert rows.place([row(name, 5, [i, i + 10]) for i, name in enumerate("acef")], 4) == [
        0,
        2,
        1,
        3,
    ]
    rows.place([row("c", 5, [1, 11])], 4)
    batch = rows.batch(4)
    assert batch.page_ids.tolist() == [11, 99, 99, 99]
    assert batch.context_lens.tolist() == [6, 1, 1, 1]


def test_idle_rows_never_move() -> None:
    rows = ResidentBatch(2, 4, 4, 99, CPU)
    rows.place([row("a", 5, [3, 4])], 2)
    for _ in range(3):
        rows.advance(torch.tensor([50, 60]), torch.tensor([1.0, 2.0]))
    assert rows.state[:, POSITION].tolist() == [8, 0]
    assert rows.state[:, TOKEN].tolist() == [50, 0]


def test_a_sequence_that_comes_back_with_other_pages_is_sent_again() -> None:
    rows = ResidentBatch(2, 4, 4, 99, CPU)
    for pages in ([3, 4], [3, 5], [3], [6, 4, 7]):
        rows.place([row("a", 2, pages)], 1)
        assert rows.batch(1).block_tables[0, : len(pages)].tolist() == pages


def test_tokens_drawn_on_the_device_are_those_of_the_sampler() -> None:
    torch.manual_seed(3)
    logits = torch.randn(40, 3000, dtype=torch.float64).mul_(4).bfloat16().double()
    requests = [
        SampleRequest(
            SamplingParams(temperature=(0.0, 0.3, 1.0, 2.5)[i % 4]),
            2**64 - 1 - i,
            i % 3,
            i,
            NOTHING,
            NOTHING,
            (),
        )
        for i in range(40)
    ]
    rows = ResidentBatch(40, 1, 4, 99, CPU)
    draws = [Draw(r.seed, r.choice, r.output_index, r.params.temperature or 0.0) for r in requests]
    rows.place([row(str(i), 0, [i], draw) for i, draw in enumerate(draws)], 40)
    draw_and_advance(rows, logits, with_noise=True)
    expected = [s.token_id for s in Sampler().sample(logits, requests)]
    assert rows.results[:, 0].tolist() == expected
    assert rows.results[:, 1].all()


def test_logits_that_are_no_numbers_fail_their_row_alone() -> None:
    rows = ResidentBatch(3, 1, 4, 99, CPU)
    rows.place([row(name, 0, [1], Draw(temperature=1.0)) for name in "abc"], 3)
    logits = torch.zeros(3, 5)
    logits[1, 2] = torch.nan
    draw_and_advance(rows, logits, with_noise=True)
    assert rows.results[:, 1].tolist() == [1, 0, 1]
    assert all(0 <= token < 5 for token in rows.results[:, 0].tolist())


def test_the_largest_step_fills_every_row_and_token_within_the_scratch_page() -> None:
    plain, _ = make_runners("invariant", 6)
    step = largest_step(plain.layout, NUM_PAGES, StepLimits(6, 20, 48))
    assert [len(s.token_ids) for s in step.sequences] == [1] * 6 + [14]
    assert [s.start for s in step.sequences] == [47] * 6 + [0]
    assert all(drawn is not None for drawn in plain.run(step).sampled)
    assert not plain.pool.tensor[:NUM_PAGES].any()
    rows_only = largest_step(plain.layout, NUM_PAGES, StepLimits(6, 6, 48))
    assert rows_only.num_tokens == 6
