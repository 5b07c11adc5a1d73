"""The table of mutations fits the code, runs are judged rightly, and a few guards are missed."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.mutation.mutation import Moved, Mutation
from scripts.mutation.runner import Outcome, judge, run_all
from scripts.mutation.table import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
FAST = {"drain-proof", "heartbeat-epoch", "resends"}
HARMLESS = Mutation(
    "harmless",
    "nothing",
    "tandem/outbox.py",
    "GROWTH = 2.0",
    "GROWTH = 1.0 + 1.0",
    ("tests/tandem/test_outbox.py",),
)


def test_every_snippet_is_in_its_file_once_and_the_rest_parses() -> None:
    moved = []
    for mutation in MUTATIONS:
        try:
            mutation.without(ROOT)
        except (Moved, OSError) as error:
            moved.append(str(error))
    assert not moved, "\n".join(moved)


def test_names_differ_and_tests_exist() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 40
    missing = {
        test
        for m in MUTATIONS
        for test in m.tests
        if not (ROOT / test.partition("::")[0]).is_file()
    }
    assert not missing
    assert all(m.tests and m.old != m.new for m in MUTATIONS)


def test_some_guards_are_missed_and_what_is_none_is_not() -> None:
    chosen = [mutation for mutation in MUTATIONS if mutation.name in FAST]
    results = {r.mutation.name: r for r in run_all(ROOT, [*chosen, HARMLESS], 1)}
    assert results.keys() == FAST | {"harmless"}
    outcomes = {name: result.outcome for name, result in results.items()}
    assert outcomes.pop("harmless") is Outcome.SURVIVED
    assert set(outcomes.values()) == {Outcome.KILLED}, results


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        (0, "3 passed", Outcome.SURVIVED),
        (1, "FAILED tests/a.py::test_b - assert 1 == 2\n1 failed", Outcome.KILLED),
        (1, "FAILED tests/a.py::test_b[with spaces]\n1 failed", Outcome.KILLED),
        (1, "FAILED tests/a.py::test_b - NameError: name 'x' is not defined", Outcome.BAD),
        (1, "ERROR tests/a.py::test_b - the fixture failed\n1 error", Outcome.BAD),
        (2, "ERROR tests/a.py - SyntaxError\n1 error during collection", Outcome.BAD),
        (5, "no tests ran", Outcome.BAD),
        (-9, "", Outcome.BAD),
        (None, "not done after 150 s", Outcome.BAD),
    ],
)
def test_only_a_test_that_fails_is_a_kill(
    status: int | None, output: str, outcome: Outcome
) -> None:
    assert judge(HARMLESS, status, output)[0] is outcome


def test_a_survivor_with_a_reason_is_an_equivalent() -> None:
    redundant = Mutation("r", "p", "f", "old", "new", ("t",), equivalent="another guard does")
    assert judge(redundant, 0, "1 passed") == (Outcome.EQUIVALENT, "another guard does")
    assert judge(redundant, 1, "FAILED t::x - assert 0")[0] is Outcome.KILLED


@pytest.mark.parametrize("source", ["nothing of it", "twice: old, old"])
def test_code_that_moved_is_named(source: str) -> None:
    with pytest.raises(Moved, match=r"guard: tandem/x\.py has its snippet"):
        Mutation("guard", "p", "tandem/x.py", "old", "new", ("t",)).apply(source)


def test_a_replacement_that_does_not_parse_is_named() -> None:
    with pytest.raises(Moved, match="does not parse"):
        Mutation("guard", "p", "tandem/x.py", "old", "new =", ("t",)).apply("old")


def test_the_list_has_every_name_and_an_unknown_one_is_refused() -> None:
    command = [sys.executable, "scripts/mutation_guards"]
    listed = subprocess.run(
        [*command, "--list"], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True
    )
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [m.name for m in MUTATIONS]
    refused = subprocess.run(
        [*command, "--only", "no-such"], cwd=ROOT, capture_output=True, text=True, timeout=10
    )
    assert refused.returncode != 0 and "there is no no-such" in refused.stderr
