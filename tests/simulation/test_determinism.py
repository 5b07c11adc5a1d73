"""The same seed gives the same trace, in any interpreter and whatever the hashes of strings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", [1, 14, 47])
def test_a_seed_is_a_scenario(seed: int) -> None:
    outputs = [
        subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "simulate"), "--seed", str(seed)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=20,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    ]
    assert "trace" in outputs[0]
    assert len(set(outputs)) == 1, outputs
