"""`tandem --help` answers at once: what is slow to load is not loaded to answer it."""

import json
import subprocess
import sys
from pathlib import Path

from tandem.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("numpy", "zmq", "torch", "transformers", "tokenizers", "rich", "tqdm", "asyncio", "uvloop")
# `keys` declares its own flags, beside the code that makes keys.
ALLOWED = {"keys": {"zmq", "asyncio"}}


def test_help_of_every_command_loads_nothing_slow() -> None:
    """All of them in one fresh interpreter; that numpy alone is 0.14 s is why."""
    program = f"""
import contextlib, io, json, sys
from tandem.cli import main
found = {{}}
for name in {["", *(c.name for c in COMMANDS if c.name not in ALLOWED), *ALLOWED]!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"] if name else ["--help"])
    assert out.getvalue().startswith(f"usage: tandem"), (name, out.getvalue())
    found[name] = [m for m in {SLOW!r} if m in sys.modules]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=25
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"", *(command.name for command in COMMANDS)}
    too_many = {name: set(loaded) - ALLOWED.get(name, set()) for name, loaded in found.items()}
    assert not any(too_many.values()), too_many
