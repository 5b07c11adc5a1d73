"""docs/protocol.md is what the messages say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    program = [sys.executable, ROOT / "scripts/make_protocol", "--check"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"run scripts/make_protocol: {done.stderr}"
    text = (ROOT / "docs/protocol.md").read_text()
    for name in ("### Submit", "### Emission", "### Reserve", "### SamplingParams"):
        assert name in text
