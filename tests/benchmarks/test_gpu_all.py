"""The GPU's benchmark command where there is no GPU: it says so, and a dry run runs its code."""

import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_all import command
from benchmarks.gpu_all.attempts import one_by_one
from benchmarks.gpu_all.setting import Table

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_it_says_what_it_needs(monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_parts_keep_their_order_and_unknown_ones_are_refused(capsys) -> None:
    assert command.parse(["--only", "step,ceilings"]).only == ["ceilings", "step"]
    with pytest.raises(SystemExit):
        command.parse(["--only", "steps"])
    assert "no part steps" in capsys.readouterr().err


def test_every_part_is_a_module() -> None:
    folder = ROOT / "benchmarks/gpu_all"
    assert all((folder / f"{name}.py").exists() for name in command.PARTS)


@pytest.mark.timeout(120)
def test_a_dry_run_needs_torch_triton_and_numpy_only(tmp_path: Path) -> None:
    """What a machine with a GPU has; it prints tables, and ends in one line of JSON."""
    for name in ("msgspec", "numba", "zmq", "xxhash", "transformers", "cupy"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
        command.COMMIT_VARIABLE: "abc",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_all", "--dry-run", "--only", "ceilings,engine_step"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *tables, last = done.stdout.splitlines()
    assert any("empty kernel in a graph" in line for line in tables)
    document = json.loads(last)
    assert document["machine"]["commit"] == "abc"
    assert document["parts"]["ceilings"]["ended"] == "well"
    assert document["parts"]["ceilings"]["figures"]["copy_gb_s"] > 0
    assert document["parts"]["engine_step"]["ended"] == "left out"
    assert any("this part cannot run with" in line for line in tables)


def test_a_part_out_of_time_is_ended_and_what_it_found_stands(capsys) -> None:
    table = '{"title":"t","header":["what"],"rows":[["one"]],"figures":{"one":1},"notes":[]}'
    part = subprocess.Popen(
        ["sh", "-c", f"echo '{table}'; echo and words; sleep 60"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    figures: dict[str, object] = {}
    said: deque[str] = deque()
    assert command.follow(part, time.monotonic() + 1.0, figures, said) == "out of time"
    assert part.returncode == -9
    assert figures == {"one": 1}
    assert list(said) == ["and words"]
    assert "one" in capsys.readouterr().out


def test_tables_of_one_title_go_on(capsys) -> None:
    title, said = "", deque()
    for row in ("first", "second"):
        line = {"title": "t", "header": ["what", "us"], "rows": [[row, "1"]], "figures": {row: 1}}
        figures: dict[str, object] = {}
        title = command.show(json.dumps(line | {"notes": []}), figures, said, title)
        assert figures == {row: 1}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["t", "what", "first", "second"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_a_measurement_that_fails_costs_itself_alone(capsys) -> None:
    def fails() -> Table:
        raise ArithmeticError("no number")

    fine = Table("t", ("what",), [("one",)])
    tables = one_by_one([("first", fails), ("second", lambda: fine)])
    assert next(tables) is fine
    with pytest.raises(RuntimeError, match="first: ArithmeticError: no number"):
        next(tables)
    assert "Traceback" in capsys.readouterr().out


def test_what_is_found_is_written_down_after_every_part(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    command.keep({"parts": {}})
    assert json.loads((tmp_path / "gpu_all.json").read_text()) == {"parts": {}}
