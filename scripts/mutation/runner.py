"""Runs tests on copies of the tree in which one guard is missing.

A copy is made once and used for one mutation after another. Whether a run counts as a kill is read
from what pytest says: a test that fails is one, a test module that cannot be imported is none.
"""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from scripts.mutation.mutation import Mutation

LIMIT_S = 150.0
BASELINE_LIMIT_S = 600.0
FAILED, PASSED = 1, 0
FAILURE = re.compile(r"^FAILED (.+?)(?: - (.*))?$", re.MULTILINE)
# A name that is missing is a mistake of the mutation, not a guard that was missed.
BROKEN = re.compile(r"^(E +)?(ImportError|ModuleNotFoundError|NameError|SyntaxError)\b")


class Outcome(Enum):
    """What became of a mutation."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    EQUIVALENT = "equivalent"  # it survived, and the table says why
    BAD = "BAD"  # no test could be run, or it took too long


@dataclass(frozen=True, slots=True)
class Result:
    """A mutation, what became of it, and the test that noticed (or what went wrong)."""

    mutation: Mutation
    outcome: Outcome
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the tree; `root` is where the interpreter is taken from."""

    folder: Path
    root: Path

    @classmethod
    def make(cls, root: Path, folder: Path) -> "Copy":
        """Files that git knows, and new ones that it does not ignore, as they are on the disk."""
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():  # deleted ones are listed too
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)
        (folder / ".venv").symlink_to(root / ".venv")
        copy = cls(folder, root)
        copy.check()
        return copy

    def check(self) -> None:
        """Raise RuntimeError where code is not imported from the copy."""
        program = "import gateway, tandem; print(gateway.__file__, tandem.__file__)"
        done = self._run(["-c", program], LIMIT_S)
        files = done[1].split()
        if done[0] != 0 or not all(Path(file).is_relative_to(self.folder) for file in files):
            raise RuntimeError(f"not imported from the copy at {self.folder}: {done[1]}")

    def test(self, tests: Sequence[str], limit_s: float) -> tuple[int | None, str]:
        """Exit status and output of pytest; no status where it took too long."""
        options = ["-q", "-x", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
        return self._run(["-m", "pytest", *options, *tests], limit_s)

    @contextlib.contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """The tree without one guard. Raises Moved."""
        path = self.folder / mutation.file
        original = path.read_text()
        path.write_text(mutation.apply(original))
        _forget_compiled(path)
        try:
            yield
        finally:
            path.write_text(original)
            _forget_compiled(path)

    def _run(self, arguments: list[str], limit_s: float) -> tuple[int | None, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
        }
        process = subprocess.Popen(
            [str(self.root / ".venv" / "bin" / "python"), *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        status: int | None = None
        try:
            output, _ = process.communicate(timeout=limit_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            output = f"not done after {limit_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return status, output


def _forget_compiled(path: Path) -> None:
    """Python compares whole seconds and sizes: a file changed twice could look unchanged."""
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def judge(mutation: Mutation, status: int | None, output: str) -> tuple[Outcome, str]:
    """What a run of the mutation's tests says."""
    failures = FAILURE.findall(output)
    if status == PASSED:
        if mutation.equivalent is not None:
            return Outcome.EQUIVALENT, mutation.equivalent
        return Outcome.SURVIVED, "every test passed: " + " ".join(mutation.tests)
    if status == FAILED and failures:
        test, reason = failures[0]
        if BROKEN.match(reason):
            return Outcome.BAD, f"{test}: {reason}"
        return Outcome.KILLED, test
    last = output.strip().splitlines()[-1:] or ["no output"]
    return Outcome.BAD, f"pytest ended with {status}: {last[0][:200]}"


def run_one(copy: Copy, mutation: Mutation) -> Result:
    """Take the guard away, run its tests, put it back."""
    began_at = time.monotonic()
    with copy.mutated(mutation):
        status, output = copy.test(mutation.tests, LIMIT_S)
    return Result(mutation, *judge(mutation, status, output), time.monotonic() - began_at)


def check_baseline(copy: Copy, mutations: Sequence[Mutation]) -> None:
    """Raise RuntimeError where a test fails with every guard in place."""
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    status, output = copy.test(tests, BASELINE_LIMIT_S)
    if status != PASSED:
        raise RuntimeError(f"tests fail although no guard is missing:\n{output[-4000:]}")


def run_all(root: Path, mutations: Sequence[Mutation], num_jobs: int) -> Iterator[Result]:
    """Results as they come. Raises RuntimeError where the tests fail before anything is changed."""
    num_jobs = max(1, min(num_jobs, len(mutations)))
    with tempfile.TemporaryDirectory(prefix="tandem-mutation-") as folder:
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(num_jobs):
            copies.put(Copy.make(root, Path(folder).resolve() / str(number)))
        first = copies.get()
        check_baseline(first, mutations)
        copies.put(first)

        def work(mutation: Mutation) -> Result:
            copy = copies.get()
            try:
                return run_one(copy, mutation)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(num_jobs) as pool:
            futures = [pool.submit(work, mutation) for mutation in mutations]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
