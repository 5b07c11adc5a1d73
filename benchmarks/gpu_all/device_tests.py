"""Parts that are tests of their own elsewhere: run here, with what they print."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_all.setting import LeftOut, Setting, Table

ROOT = Path(__file__).resolve().parents[2]
# Plugins that a machine with a GPU may lack, and warnings of its versions, are no error there.
PYTEST = (
    "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
    "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=ignore",
)  # fmt: skip


def run_tests(setting: Setting, title: str, path: str, needed: tuple[str, ...]) -> Table:
    """Of one file, on the GPU; in a dry run they are only found.

    LeftOut where one of the `needed` modules is missing; RuntimeError where a test fails.
    """
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing and not setting.is_dry:
        raise LeftOut(f"{path} needs {', '.join(missing)}")
    command = [sys.executable, *PYTEST, path, *(["--collect-only"] if setting.is_dry else [])]
    said: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:  # at once: the part may be ended at any time
            print(line.rstrip(), flush=True)
            said.append(line.strip())
    text = "\n".join(said)
    if lacking := re.findall(r"ModuleNotFoundError: No module named '([\w.]+)'", text):
        raise LeftOut(f"{path} needs {', '.join(sorted(set(lacking)))}")
    if process.returncode != 0:
        raise RuntimeError(f"{path} ended with status {process.returncode}")
    told = [line for line in said if re.match(r".*: \d", line) or " passed" in line]
    return Table(title, ("what they print",), [(line,) for line in told], {"told": told})
