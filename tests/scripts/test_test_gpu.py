"""`scripts/test_gpu` where there is no GPU: each file by itself, and what is missing is named."""

import importlib.util
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FINE = "def test_one(): pass\ndef test_two(): pass\n"
HANGING = "import time\ndef test_first(): pass\ndef test_hangs(): time.sleep(60)\n"
DYING = "import os\ndef test_first(): pass\ndef test_dies(): os.abort()\n"
FAILING = "def test_first(): pass\ndef test_fails(): assert 1 == 2\n"
LACKING = "import no_such_package\ndef test_first(): pass\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, over a checkout of our own."""
    loader = SourceFileLoader("test_gpu_script", str(ROOT / "scripts/test_gpu"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)  # dataclasses look there
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PYTEST", (*module.PYTEST, "--rootdir", str(tmp_path)))
    (tmp_path / "tests/kernels").mkdir(parents=True)
    return module


def run(script: ModuleType, text: str, limit_s: float = 20.0):
    """One file of the checkout with this text."""
    (script.ROOT / "tests/kernels/test_it.py").write_text(text)
    deadline = time.monotonic() + limit_s
    log = script.ROOT / "log"
    return script.run_file(sys.executable, "tests/kernels/test_it.py", [], deadline, log)


@pytest.mark.timeout(60)
def test_what_ends_early_costs_its_own_file_alone(script: ModuleType) -> None:
    failing = run(script, FAILING)
    assert (failing.passed, failing.failed) == (1, 1)
    assert failing.failures == ["tests/kernels/test_it.py::test_fails"]
    dying = run(script, DYING)
    assert (dying.passed, dying.failed) == (1, 1)
    assert "test_dies" in dying.failures[0]
    late = run(script, HANGING, limit_s=5.5)
    assert (late.passed, late.failed) == (1, 1)
    assert late.failures == ["tests/kernels/test_it.py: did not end in time, in test_hangs"]


def test_a_missing_package_is_named_and_no_failure(script: ModuleType) -> None:
    row = run(script, LACKING)
    assert (row.passed, row.failed, row.left_out) == (0, 0, "needs no_such_package")
    assert run(script, FINE, limit_s=1.0).left_out == "no time was left"


def test_what_is_found_is_written_down_as_it_comes(script: ModuleType, tmp_path: Path) -> None:
    report = script.Report({"device": "none"}, str(tmp_path))
    report.add("one", script.Row(passed=3))
    assert '"passed": 3' in (tmp_path / "test_gpu.json").read_text()
    report.add("two", script.Row(left_out="needs numba"))
    report.add("three", script.Row(passed=1, failed=1, failures=["three::test_x"]))
    document = report.document()
    assert (document["ok"], document["passed"], document["failed"]) == (False, 4, 1)
    assert document["left_out"] == {"two": "needs numba"}
    assert "==== two" in (tmp_path / "test_gpu.log").read_text()


def test_packages_that_were_brought_along_are_found(script, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/brought")
    assert script.environment()["PYTHONPATH"] == f"{script.ROOT}:/brought"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" not in script.environment()
