"""The chosen cells of the fault matrix, run in real processes: every client saw its exact answer.

`scripts/faults` runs them all once; each test here looks at one cell's outcome.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.fault_matrix.cells import all_cells
from scripts.fault_matrix.chosen import CHOSEN

ROOT = Path(__file__).resolve().parents[2]
MATRIX_S = 840
pytestmark = [pytest.mark.slow, pytest.mark.timeout(MATRIX_S + 30)]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    """The last line of the run; everything before it is shown where a test fails."""
    done = subprocess.run(
        [ROOT / "scripts/faults"], capture_output=True, text=True, timeout=MATRIX_S
    )
    print(done.stderr[-8000:])
    print(done.stdout)
    lines = done.stdout.splitlines()
    assert lines, f"exit status {done.returncode}"
    result: dict[str, Any] = json.loads(lines[-1])
    return result


@pytest.mark.parametrize("name", CHOSEN)
def test_cell(summary: dict[str, Any], name: str) -> None:
    cell = summary["cells"][name]
    assert cell["passed"], "\n".join(cell["problems"])


def test_many_tokens_were_compared(summary: dict[str, Any]) -> None:
    assert summary["num_cells"] == len(CHOSEN)
    assert summary["num_tokens_compared"] > 100 * len(CHOSEN)


def test_the_chosen_cells_cover_the_matrix() -> None:
    cells = all_cells()
    chosen = [cells[name] for name in CHOSEN]
    assert len(set(CHOSEN)) == len(CHOSEN) >= 40
    assert {c.role for c in chosen} >= {"prefill", "decode", "coordinator", "gateway", "client"}
    assert {c.phase for c in chosen} == {c.phase for c in cells.values()}
    assert sum(c.shape.is_real for c in chosen) >= 6
