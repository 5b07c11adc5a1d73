"""Step counts and bounds from lengths; reading traces."""

from pathlib import Path

import pytest

from loadgen.workload import (
    continuous_steps,
    decode_steps,
    read_lengths,
    sample_workload,
    static_steps,
    step_bound,
)


def test_steps_of_hand_made_lengths() -> None:
    steps = decode_steps([1, 5, 2, 9, 2])
    assert steps == [4, 1, 8, 1]
    assert static_steps(steps, 2) == 4 + 8
    assert continuous_steps(steps, 2) == 9
    assert step_bound([1, 5, 2, 9, 2], 2) == pytest.approx(12 / 9)


def test_equal_lengths_leave_nothing_to_win() -> None:
    assert step_bound([17] * 64, 16) == 1.0


def test_lengths_are_clipped_and_missing_columns_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("time,tokens\n0,3\n1,900\n2,0\n")
    assert read_lengths(trace, "tokens", clip=256) == [3, 256, 1]
    with pytest.raises(ValueError, match="'time', 'tokens'"):
        read_lengths(trace, "length", clip=256)
    with pytest.raises(ValueError, match="no trace at"):
        read_lengths(tmp_path / "absent.csv", "tokens", clip=256)


def test_samples_repeat_under_a_seed() -> None:
    first = sample_workload("w", range(100), num_requests=10, prompt_len=4, seed=3)
    again = sample_workload("w", range(100), num_requests=10, prompt_len=4, seed=3)
    assert first == again
    assert len(set(first.output_lens)) == 10
