"""Steps of the fake device that take what the linear cost model says."""

import time

import numpy as np
import pytest

from node.fake_device import parse_costs
from node.fake_runner import FAKE_LAYOUT, FakeRunner, batch_s
from node.runner import SequenceStep, StepBatch
from tandem.messages.common import NodeCosts

COSTS = NodeCosts(
    step_s=0.002,
    prefill_token_s=0.001,
    prefill_context_s=1e-5,
    decode_row_s=0.003,
    decode_context_s=1e-4,
)


def sequence(num_tokens: int, start: int) -> SequenceStep:
    table = np.arange(-(-(start + num_tokens) // FAKE_LAYOUT.page_size), dtype=np.int32)
    return SequenceStep(np.ones(num_tokens, np.int32), start, table, None)


def test_a_step_takes_its_shape() -> None:
    chunk, row = sequence(10, 20), sequence(1, 40)
    assert batch_s(COSTS, StepBatch(())) == pytest.approx(0.002)
    of_chunk = 0.010 + 1e-5 * 10 * 25
    assert batch_s(COSTS, StepBatch((chunk,))) == pytest.approx(0.002 + of_chunk)
    of_rows = 0.006 + 1e-4 * (41 + 7)
    both = StepBatch((row, chunk), padding_contexts=(7,))
    assert batch_s(COSTS, both) == pytest.approx(0.002 + of_chunk + of_rows)


def test_a_runner_takes_its_time() -> None:
    pool = np.zeros((4, FAKE_LAYOUT.page_bytes), np.uint8)
    runner = FakeRunner(pool, vocab_size=100, costs=COSTS)
    began = time.monotonic()
    runner.run(StepBatch((sequence(30, 0),)))
    assert time.monotonic() - began >= 0.032


def test_costs_are_read_from_a_flag() -> None:
    assert parse_costs(None) is None
    assert parse_costs("0.002:0.001:1e-5:0.003:0.0001") == COSTS
    for wrong in ("", "1:2:3:4", "1:2:3:4:x", "1:2:3:4:-5", "1:2:3:4:nan"):
        with pytest.raises(ValueError, match="five numbers"):
            parse_costs(wrong)
