"""Every required regression and every wire attack has a test that says so in its name.

`test_regression_NN_...` are other systems' bugs, by their numbers in the list of the hand-off
reference; `test_wNN_...` (or `test_w03_w04_...`) are the attacks of the reliability reference.
"""

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
REGRESSIONS = range(1, 23)
ATTACKS = range(1, 25)
REGRESSION = re.compile(r"test_regression_(\d\d)_\w+")
ATTACK = re.compile(r"test((?:_w\d\d)+)_\w+")


@functools.cache
def named_cases(folder: Path) -> dict[str, list[str]]:
    """Where each case is tested: file:name, by `regression 3` or `attack W7`."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            place = f"{path.relative_to(folder)}:{node.name}"
            if match := REGRESSION.fullmatch(node.name):
                found[f"regression {int(match[1])}"].append(place)
            if match := ATTACK.fullmatch(node.name):
                for number in re.findall(r"\d\d", match[1]):
                    found[f"attack W{int(number)}"].append(place)
    return found


@pytest.mark.parametrize(
    "case", [*(f"regression {n}" for n in REGRESSIONS), *(f"attack W{n}" for n in ATTACKS)]
)
def test_each_case_is_tested_by_name(case: str) -> None:
    found = named_cases(TESTS)
    listing = "\n".join(f"{name}: {place}" for name in sorted(found) for place in found[name])
    assert found.get(case), f"no test is named after {case}; there are\n{listing}"


def test_names_are_read_as_they_are_meant(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text(
        "def test_w03_w04_both(): ...\n"
        "def test_regression_12_x(): ...\n"
        "class A:\n    async def test_w19_in_a_class(self): ...\n"
        "def test_w1_is_no_number(): ...\ndef test_regression_7(): ...\ndef w05_no_test(): ...\n"
    )
    assert named_cases(tmp_path) == {
        "attack W3": ["test_x.py:test_w03_w04_both"],
        "attack W4": ["test_x.py:test_w03_w04_both"],
        "attack W19": ["test_x.py:test_w19_in_a_class"],
        "regression 12": ["test_x.py:test_regression_12_x"],
    }
