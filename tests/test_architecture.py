"""The house rules of docs/architecture.md: who may import whom, and how large anything may grow."""

import ast
import functools
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

_ALL_BUT_DEVICE = {
    "tandem", "scheduling", "node", "kv_transfer", "prefill_node", "decode_node", "coordinator",
    "gateway",
}  # fmt: skip
ALLOWED: dict[str, set[str]] = {
    "tandem": set(),
    "kernels": set(),
    "scheduling": {"tandem"},
    "node": {"scheduling", "tandem"},
    "engine": {"kernels", "node", "scheduling", "tandem"},
    "kv_transfer": {"kernels", "node", "scheduling", "tandem"},
    "prefill_node": {"kv_transfer", "node", "scheduling", "tandem"},
    "decode_node": {"kv_transfer", "node", "scheduling", "tandem"},
    "coordinator": {"scheduling", "tandem"},
    "gateway": {"scheduling", "tandem"},
    "simulator": {*_ALL_BUT_DEVICE, "loadgen"},  # its traces
    "loadgen": {"tandem"},
}
PACKAGES = sorted(name for name in ALLOWED if (ROOT / name / "__init__.py").exists())
WITH_TORCH = {"kernels", "engine"}
# Only these modules of kv_transfer may load a device library.
DEVICE_TRANSPORTS = {"kv_transfer.cupy_driver"}
DEVICE_LIBRARIES = {"torch", "triton", "cupy"}
# Policies are functions of views and time: none of these may reach them.
IMPURE = {"asyncio", "random", "secrets", "socket", "subprocess", "threading", "time", "zmq"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 100


@functools.cache
def parse(path: Path) -> ast.Module:
    """The syntax tree of a file: every rule below walks every file."""
    return ast.parse(path.read_bytes())


def modules_of(package: str) -> list[tuple[str, Path]]:
    """Dotted name and path of every module of `package`, `__init__` files under their folder."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted name and line of every import in a file, those under TYPE_CHECKING included."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def code_files() -> list[Path]:
    """Every Python file of ours: packages, tests, and scripts with or without the suffix."""
    files = [path for package in PACKAGES for _, path in modules_of(package)]
    files += sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
    for path in sorted((ROOT / "scripts").rglob("*")):
        is_script = path.is_file() and path.suffix == "" and b"python" in path.read_bytes()[:60]
        if path.suffix == ".py" or is_script:
            files.append(path)
    return files


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_flow_down(package: str) -> None:
    wrong = []
    for name, path in modules_of(package):
        if name.endswith(".__main__"):
            continue
        for target, line in imports_of(path):
            top = target.split(".")[0]
            forbidden = top in ALLOWED and top != package and top not in ALLOWED[package]
            if forbidden or top == "" or top in {"tests", "scripts"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, f"{package} may import only {sorted(ALLOWED[package])}:\n" + "\n".join(wrong)


def test_nobody_imports_a_composition_root() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in code_files()
        for target, line in imports_of(path)
        if "__main__" in target.split(".")
    ]
    assert not wrong, f"start a process instead of importing its __main__: {wrong}"


def test_policies_are_pure() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for _, path in modules_of("scheduling")
        for target, line in imports_of(path)
        if target.split(".")[0] in IMPURE
    ]
    assert not wrong, "time and randomness are arguments:\n" + "\n".join(wrong)


def test_importing_a_package_without_torch_leaves_torch_unloaded() -> None:
    """All modules of all such packages, in one fresh interpreter (starting one costs a second)."""
    names = [
        name
        for package in PACKAGES
        if package not in WITH_TORCH
        for name, _ in modules_of(package)
        if not name.endswith("__main__") and name not in DEVICE_TRANSPORTS
    ]
    program = (
        "import importlib, json, sys\n"
        f"libraries = {sorted(DEVICE_LIBRARIES)!r}\n"
        "guilty = {}\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    for library in libraries:\n"
        "        if library in sys.modules:\n"
        "            guilty.setdefault(library, name)\n"
        "print(json.dumps(guilty))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=25
    )
    assert done.returncode == 0, done.stderr
    guilty = json.loads(done.stdout.splitlines()[-1])
    assert guilty == {}, f"library: first module after whose import it was loaded: {guilty}"


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_are_docstrings(package: str) -> None:
    for name, path in modules_of(package):
        if path.name != "__init__.py":
            continue
        body = parse(path).body
        assert body, f"{path} needs a docstring that says what the folder is for"
        assert isinstance(body[0], ast.Expr), f"{path} must start with a docstring"
        for statement in body[1:]:
            # Its names are imported when they are used: the command line needs few of them.
            assert name == "tandem", f"{path}:{statement.lineno}: nothing but a docstring"
            if isinstance(statement, ast.FunctionDef):
                assert statement.name == "__getattr__", f"{path}:{statement.lineno}"
                continue
            allowed = ast.Import | ast.ImportFrom | ast.If | ast.Assign
            assert isinstance(statement, allowed), f"{path}:{statement.lineno}"


def test_pyproject_lists_exactly_the_package_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = settings["tool"]["setuptools"]["packages"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in PACKAGES
        for path in (ROOT / package).rglob("__init__.py")
    }
    without_init = {
        str(path.parent.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    }
    assert not without_init, f"these folders need an __init__.py: {sorted(without_init)}"
    assert sorted(listed) == sorted(folders), "[tool.setuptools] packages and the folders differ"
    beside = {"benchmarks", "scripts", "tests"}
    checked = [name for name in settings["tool"]["mypy"]["files"] if name not in beside]
    assert sorted(checked) == PACKAGES, "[tool.mypy] files and the folders differ"


def test_tests_have_no_init_files() -> None:
    """With tests/kernels/__init__.py, `import kernels` inside that folder finds the tests."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_modules_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in code_files() if not ast.get_docstring(parse(path))
    ]
    assert not silent, f"no module docstring: {silent}"


def test_files_stay_small() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in code_files()}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_FILE_LINES}
    assert not long, f"longer than {MAX_FILE_LINES} lines, split by subject: {long}"


def test_functions_stay_small() -> None:
    long = []
    for path in code_files():
        is_kernel = path.relative_to(ROOT).parts[0] == "kernels"
        limit = MAX_KERNEL_LINES if is_kernel else MAX_FUNCTION_LINES
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > limit:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {length}")
    assert not long, "functions longer than 60 lines (kernels 100):\n" + "\n".join(long)
