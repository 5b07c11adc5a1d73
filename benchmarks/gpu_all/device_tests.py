"""Parts that are tests of their own elsewhere: run here, with what they print."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_all.setting import LeftOut, Setting, Table

ROOT = Path(__file__).resolve().parents[2]
# Settings for plugins that a machine with a GPU may lack are no error there.
PYTEST = (
    "-m", "pytest", "-q", "-s", "-x", "-p", "no:cacheprovider",
    "-o", "addopts=--import-mode=importlib",
    "-W", "ignore::pytest.PytestConfigWarning", "-W", "ignore::pytest.PytestUnknownMarkWarning",
)  # fmt: skip


def run_tests(setting: Setting, title: str, path: str, needed: tuple[str, ...]) -> Table:
    """Of one file, on the GPU; in a dry run they are only found.

    LeftOut where one of the `needed` modules is missing; RuntimeError where a test fails.
    """
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing and not setting.is_dry:
        raise LeftOut(f"{path} needs {', '.join(missing)}")
    command = [sys.executable, *PYTEST, path, *(["--collect-only"] if setting.is_dry else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    if done.returncode != 0:
        raise RuntimeError(f"{path} ended with status {done.returncode}: {done.stdout[-1500:]}")
    rows = [(line,) for line in [*lines, *done.stdout.strip().splitlines()[-1:]]]
    return Table(title, ("what they print",), rows, {"status": done.returncode})
